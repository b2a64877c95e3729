"""Nothing that a run reads can run code, and nothing secret is written: each is tried here."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from raybrew.config.job_file import load_job
from raybrew.data.payload import Payload, Signal
from raybrew.labels.store import LabelStore
from raybrew.models.pretrained import load_model, read_config, read_tokenizer
from raybrew.runs.tracking import Tracker
from raybrew.training.checkpoints import Checkpoints
from tests.made import make_job, make_model
from tests.training.in_process import build


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


@pytest.fixture
def trap(sprung: Path) -> bytes:
    return pickle.dumps(Trap(sprung), protocol=2)


def test_the_trap_works(trap, sprung):
    pickle.loads(trap)
    assert sprung.exists()


@pytest.mark.parametrize(
    "name", ["state.json", "optimizer.safetensors", "student/model.safetensors"]
)
def test_a_checkpoint_is_never_unpickled(name, trap, sprung, tmp_path):
    model = make_model(tmp_path / "a", 0)
    job = make_job({"a": model}, tmp_path / "store")
    training, _ = build(job, tmp_path / "data")
    training.save(folder := tmp_path / "checkpoint")
    (folder / name).write_bytes(trap)
    with pytest.raises(rb.CheckpointError, match="can't be read back"):
        training.resume(folder)
    for link in ("pytorch_model.bin", "optimizer.pt"):
        (folder / link).write_bytes(trap)
    with pytest.raises(rb.CheckpointError):
        training.resume(folder)
    assert not sprung.exists()


def test_checksums_don_t_make_a_pickle_of_a_checkpoint_readable(trap, sprung, tmp_path):
    def write(folder: Path) -> None:
        (folder / "state.json").write_bytes(trap)

    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.write(1, write)
    with pytest.raises(rb.CheckpointError, match="can't be read"):
        checkpoints.newest(lambda _: None)
    assert not sprung.exists()


def test_labels_are_never_unpickled(trap, sprung, tmp_path):
    signal = Signal(dtype="float32")
    store = LabelStore(tmp_path).signal("f" * 32, signal)
    keys = np.array([[1, 2]], np.uint64)
    store.append(keys, Payload(np.zeros((1, 3), np.float32)))
    store.flush()
    files = [path for path in tmp_path.rglob("*.arrow") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(trap)
    again = LabelStore(tmp_path).signal("f" * 32, signal)
    found, _ = again.read(keys)
    assert not found.any()
    assert not sprung.exists()


def load_teacher(folder: Path) -> None:
    config = read_config(str(folder), "x")
    load_model(AutoModelForSequenceClassification, str(folder), "teachers[a].model", config)


def test_a_teacher_s_pickled_weights_can_t_run_code(trap, sprung, tmp_path):
    folder = Path(make_model(tmp_path / "a", 0))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(trap)
    with pytest.raises(rb.ConfigError, match=r"teachers\[a\]\.model: expected weights"):
        load_teacher(folder)
    torch.save({"x": Trap(sprung)}, folder / "pytorch_model.bin")
    with pytest.raises(rb.ConfigError, match=r"teachers\[a\]\.model: expected weights"):
        load_teacher(folder)
    assert not sprung.exists()


def test_code_in_a_model_s_folder_is_not_run(sprung, tmp_path):
    folder = Path(make_model(tmp_path / "a", 0))
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(sprung)!r}).touch()")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {
            "AutoConfig": "evil.Config",
            "AutoModelForSequenceClassification": "evil.Model",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    asked = r"needs code of its own.*set teachers\[a\]\.trust_remote_code: true"
    with pytest.raises(rb.ConfigError, match=asked):
        read_config(str(folder), "teachers[a].model")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    )
    with pytest.raises(rb.ConfigError):
        read_tokenizer(str(folder), "teachers[a].model")
    assert not sprung.exists()


EVIL_YAML = [
    "tasks: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{0}]]",
    "tasks: !!python/object/new:subprocess.Popen [[touch, {0}]]",
    "tasks: !!python/name:os.system",
    "tasks: !!python/module:this",
]


@pytest.mark.parametrize("text", EVIL_YAML)
def test_a_job_file_can_t_name_python_objects(text, sprung, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text.format(sprung))
    with pytest.raises(rb.ConfigError):
        load_job(rb.DistillJob, path)
    assert not sprung.exists()


def test_texts_of_a_job_file_are_never_evaluated(sprung, tmp_path):
    code = f"__import__('pathlib').Path({str(sprung)!r}).touch()"
    job = make_job({"a": "x/a"}, tmp_path / "store").to_plain()
    for section, field in [
        ("training", "optimizer"),
        ("training", "lr_scheduler"),
        ("distillation", "kd_loss"),
        ("distillation", "temperature"),
        ("distillation", "mixture"),
    ]:
        changed = {**job, section: {**job[section], field: code}}
        changed["tasks"] = [{**job["tasks"][0], "train": code, "text": code}]
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(rb.RaybrewError):
            build(load_job(rb.DistillJob, tmp_path / "job.yaml").job, tmp_path / "data")
        assert not sprung.exists()


def test_a_job_file_s_import_paths_are_all_that_it_can_import(tmp_path):
    # A module is imported because the file names it as code, never because a text looks like it.
    job = make_job({"a": "x/a"}, tmp_path / "store").to_plain()
    job["tasks"][0] |= {"train": "tests.trapped_module:x", "text": "tests.trapped_module:x"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.raises(rb.RaybrewError):
        build(load_job(rb.DistillJob, tmp_path / "job.yaml").job, tmp_path / "data")
    assert "tests.trapped_module" not in sys.modules
    job["tasks"][0]["adaptor"] = "tests.trapped_module:x"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.raises(rb.RaybrewError, match=r"tests\.trapped_module:x"):
        build(load_job(rb.DistillJob, tmp_path / "job.yaml").job, tmp_path / "data")


def test_no_secret_reaches_the_run_s_files(tmp_path, monkeypatch):
    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    job = make_job(
        {"a": make_model(tmp_path / "a", 0)},
        tmp_path / "store",
        tracking=rb.TrackingConfig(wandb=True, progress=False),
        training=rb.TrainingConfig(num_steps=2, num_threads=1),
    )
    training, _ = build(job, tmp_path / "run" / "data")
    with Tracker(tmp_path / "run", job.tracking, job.to_plain(), "run") as tracker:
        tracker.log({"train/loss": 1.0}, step=1)
        tracker.summary({"x": 1.0})
    Checkpoints(tmp_path / "run" / "checkpoints").write(1, training.snapshot().write)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    found = [path for path in files if secret.encode() in path.read_bytes()]
    assert not found


LISTENING = """
from pathlib import Path
from raybrew.runs.cluster import ray_session

def inodes(pid):
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(fd.readlink().name)
        except OSError:
            pass
    return found

with ray_session():
    mine = Path("/proc/self").resolve().name
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            command = place.joinpath("cmdline").read_text()
            if parent != mine or "dashboard/dashboard.py" not in command:
                continue
            held = inodes(place.name)
        except OSError:
            continue
        print("dashboard", place.name)
        for line in place.joinpath("net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in held:
                print("listens", fields[1].partition(":")[0])
"""


@pytest.mark.ray
def test_the_dashboard_listens_on_loopback_if_at_all():
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
    )
    lines = done.stdout.split("\n")
    assert any(line.startswith("dashboard") for line in lines)
    # 127.0.0.1, as the kernel writes it.
    assert {line.split()[1] for line in lines if line.startswith("listens")} <= {"0100007F"}
