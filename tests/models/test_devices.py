"""Devices follow from resources, and errors of a device differ from those of a computation."""

import pytest
import torch

import raybrew as rb
from raybrew.data.split import Padding
from raybrew.models.devices import check_device, device_fault, device_for
from raybrew.teachers.teacher import ModelTeacher
from tests.made import made_teacher, make_model


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.25, "cuda"), (1, "cuda")])
def test_the_device_is_that_of_the_resources_whatever_pytorch_sees(gpus, device, monkeypatch):
    for seen in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert device_for(gpus).type == device
        spec = made_teacher(
            "a", "nowhere", "f", "sequence-classification", "float32", None, Padding(0), 1
        )
        placed = spec.on({"CPU": 2, "GPU": gpus})
        assert (placed.device, placed.num_threads) == (device, 2)
        assert placed.forward_tokens == (512 if device == "cpu" else 4096)


def test_a_replica_without_a_gpu_stays_on_the_cpu_where_its_node_has_some(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = make_model(tmp_path / "a", 0)
    spec = made_teacher("a", model, "f", "sequence-classification", "float32", 64, Padding(0), 1)
    assert ModelTeacher(spec)._device == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that can't be used")
def test_a_gpu_that_pytorch_cannot_use_is_an_error_that_says_what_to_change(monkeypatch):
    # Seen but of no use, too: a driver that is too old, say.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pattern = r"teacher 'a'.*PyTorch .* can't use one.*set teachers\[a\].resources to \{CPU: 1\}"
    spec = ("a", "nowhere", "f", "sequence-classification", "float32", 64, Padding(0), 1)
    with pytest.raises(rb.ConfigError, match=pattern):
        ModelTeacher(made_teacher(*spec, device="cuda"))
    check_device(torch.device("cpu"), "a student worker", "nothing")


def test_a_replica_has_one_gpu_at_most():
    with pytest.raises(ValueError, match=r"one GPU: expected GPU: 1 or a part.*got 2.*replicas"):
        rb.Teacher(name="a", task="t", model="m", resources={"GPU": 2})
    assert rb.Teacher(name="a", task="t", model="m").resources is None


def wrapped(error: Exception) -> Exception:
    try:
        raise rb.TeacherError("can't be loaded") from error
    except rb.TeacherError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "memory"),
        (wrapped(torch.OutOfMemoryError("CUDA out of memory")), "memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "device"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered", 710), "device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "device"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), None),
        (IndexError("index out of range in self"), None),
        (rb.TeacherError("got NaN"), None),
        (ValueError("CUDA error"), None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_faults_of_memory_and_of_devices_are_told_from_others(error, fault):
    assert device_fault(error) == fault
