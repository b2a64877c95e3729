"""Teachers in the rank's process, and teachers that are dropped: whole trainings without Ray."""

from pathlib import Path

import pytest
import torch

import raybrew as rb
from raybrew.data.encoding import EncodedView
from raybrew.data.payload import Payload, Signal
from raybrew.errors import TeacherDropped
from raybrew.labels.store import LabelStore
from raybrew.runs.resolve import resolve_job
from raybrew.training.build import build_training
from raybrew.training.loop import StudentTraining
from raybrew.training.ray_worker import client_of, flush_at_end, host_teachers, precompute_shares
from raybrew.training.world import World
from tests.made import make_job, make_model
from tests.training.in_process import Answered, LocalPool, Recorder, build

UNIQUE_TRAIN, UNIQUE_EVAL = 84, 30  # rows of make_job's data that differ


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def weights(training: StudentTraining) -> dict[str, torch.Tensor]:
    training.run(Recorder())
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        # A bias of keys has a gradient of 0 but for rounding, which Adam makes whole steps of.
        if "key.bias" not in name:
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("when", ["along", "ahead"])
def test_teachers_in_the_worker_teach_what_a_pool_teaches(models, tmp_path, when):
    expected = weights(build(make_job(models, tmp_path / "pool"), tmp_path / "1")[0])
    teachers = [
        rb.Teacher(name=name, task="sum", model=model, placement="worker")
        for name, model in models.items()
    ]
    labels = rb.LabelConfig(store=str(tmp_path / "own"), window=3, when=when)
    job = make_job(models, tmp_path, teachers=teachers, labels=labels)
    resolved = resolve_job(job, tmp_path / "2")
    local = host_teachers(resolved, num_threads=1, world=World())
    assert local is not None
    training = build_training(resolved, World(), client_of(resolved, local, None))
    precompute_shares(resolved, local, World())
    before = UNIQUE_EVAL + (UNIQUE_TRAIN if when == "ahead" else 0)
    assert local.forwards() == 2 * before
    assert_close(weights(training), expected)
    assert local.forwards() == 2 * (UNIQUE_EVAL + UNIQUE_TRAIN)
    assert training.labels is not None
    assert (training.labels.counts["misses"] == 0) == (when == "ahead")
    local.close()


def test_what_was_computed_is_in_the_store_wherever_training_ends(models, tmp_path):
    inside = rb.Teacher(name="a", task="sum", model=models["a"], placement="worker")
    # Not the end of an epoch, which writes labels by itself.
    steps = rb.TrainingConfig(num_steps=3, batch_size=16, num_threads=1, prefetch=0)
    job = make_job(models, tmp_path / "store", teachers=[inside], training=steps)
    resolved = resolve_job(job, tmp_path / "data")
    local = host_teachers(resolved, num_threads=1, world=World())
    assert local is not None
    training = build_training(resolved, World(), client_of(resolved, local, None))
    with flush_at_end(local):
        training.run(Recorder())
    (teacher,) = resolved.teachers
    signal = teacher.signals[0]
    stored = LabelStore(resolved.store).signal(teacher.fingerprint, signal)
    assert len(stored) == local.forwards() > 0
    local.close()


class Dying(LocalPool):
    """`a` answers a number of requests, and is dropped."""

    left = 0

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> Answered:
        if teacher == "a":
            self.left -= 1
            if self.left < 0:
                return Dropped({})
        return super().ask(teacher, view, signals)


class Dropped(Answered):
    def result(self) -> dict[str, Payload]:
        raise TeacherDropped("teacher 'a' is dropped")


def test_the_others_go_on_where_a_teacher_is_dropped(models, tmp_path):
    def trained(names: str, answers: int, folder: Path) -> StudentTraining:
        job = make_job({name: models[name] for name in names}, folder / "store")
        preparation = resolve_job(job, folder / "data")
        pool = Dying(preparation, job.labels.store)
        pool.left = answers
        return build_training(preparation, World(), pool)

    never = trained("ab", 0, tmp_path / "never")
    assert_close(weights(never), weights(trained("b", 0, tmp_path / "alone")))
    assert never.labels is not None
    assert never.labels.counts["dropped"] == 2 * 90
    # Dropped half way: no longer what both teach, and not what `b` teaches alone.
    half = trained("ab", 2, tmp_path / "half")
    logits = weights(half)["classifier.weight"]
    assert half.labels is not None
    assert 0 < half.labels.counts["dropped"] < 2 * 90
    both = weights(trained("ab", 99, tmp_path / "both"))["classifier.weight"]
    assert (logits - both).abs().max() > 1e-6
    assert (logits - weights(never)["classifier.weight"]).abs().max() > 1e-6
