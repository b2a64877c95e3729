"""What all trials need is found out, encoded and asked for once."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from ray import tune

import raybrew as rb
from raybrew.labels.remote import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.runs.resolve import MetadataCache
from raybrew.sweeps.space import JobSpace, range_of
from raybrew.sweeps.trial import prepare_sweep, with_saved_data
from tests.made import STUDENT_CONFIG, make_job, make_model

HIDDEN = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "cos", "teacher": "a"}
HIDDEN |= {"proj": ["linear", 16, 32]}
VECTOR = {**HIDDEN, "loss": "pkd", "teacher": "b"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def space_of(base: rb.DistillJob, given: dict[str, Any]) -> JobSpace:
    return JobSpace(base, {path: range_of(path, each) for path, each in given.items()})


def test_signals_of_all_trials_are_asked_for_in_one_pass(models, tmp_path):
    base = with_saved_data(make_job(models, tmp_path / "store"), tmp_path / "rows")
    space = space_of(
        base,
        {
            "distillation.matches": tune.choice([[], [HIDDEN], [VECTOR], [HIDDEN, VECTOR]]),
            "student.config.num_hidden_layers": tune.randint(1, 3),
            "training.learning_rate": tune.loguniform(1e-4, 1e-2),
        },
    )
    shared, [resolved] = prepare_sweep(space, tmp_path / "data")
    signals = {t.name: [s.statistic for s in t.signals] for t in resolved.teachers}
    assert [len(each) for each in signals.values()] == [2, 2]
    assert all(each[0] == "logits" for each in signals.values())
    # One tokenizer, one set of rows: encoded once.
    assert len(shared.folders) == len(shared.data) == 1
    cache = MetadataCache(shared.fingerprints)
    asked = {t.name: set(t.signals) for t in resolved.teachers}
    for config, _ in space.jobs():
        trial = shared.resolve(config, cache)
        for teacher in trial.teachers:
            assert set(teacher.signals) <= asked[teacher.name]
            assert not teacher.in_worker
        assert Path(trial.tasks[0].folders["train"]).is_dir()
        assert trial.student.config is not None
        layers = config["student.config.num_hidden_layers"]
        assert trial.student.config["num_hidden_layers"] == layers


def test_trials_that_read_other_rows_get_their_own_encoding(models, tmp_path):
    base = with_saved_data(make_job(models, tmp_path / "store"), tmp_path / "rows")
    space = space_of(base, {"tasks.sum.max_length": tune.choice([8, 32])})
    shared, passes = prepare_sweep(space, tmp_path / "data")
    assert len(passes) == len(shared.folders) == 2
    lengths = {int(each.tasks[0].train.student.lengths.max()) for each in passes}
    assert min(lengths) == 8 < max(lengths)


def test_a_teacher_that_is_searched_for_has_labels_of_each(models, tmp_path):
    base = with_saved_data(make_job(models, tmp_path / "store"), tmp_path / "rows")
    space = space_of(base, {"teachers.a.model": tune.grid_search([models["a"], models["b"]])})
    _, passes = prepare_sweep(space, tmp_path / "data")
    prints = {tuple(t.fingerprint for t in each.teachers) for each in passes}
    assert len(prints) == 2


def test_a_column_of_logits_is_stored_once_for_all_trials(models, tmp_path):
    job = make_job(models, tmp_path / "store")
    task = job.tasks[0]
    sides = {
        side: getattr(task, side).add_column(
            "logits", [[float(n), 0.0, 1.0] for n in range(len(getattr(task, side)))]
        )
        for side in ("train", "eval")
    }
    column = rb.Teacher(name="c", task="sum", logits="logits")
    job = job.model_copy(
        update={
            "tasks": (task.model_copy(update=sides),),
            "teachers": (*job.teachers, column),
            "student": rb.Student(config=STUDENT_CONFIG),
        }
    )
    space = space_of(
        with_saved_data(job, tmp_path / "rows"),
        {
            "distillation.temperature": tune.uniform(1, 8),
            "teachers.c.weight": tune.choice([0.5, 1.0]),
        },
    )
    shared, [resolved] = prepare_sweep(space, tmp_path / "data")
    # It isn't hosted; its values are there before any trial.
    assert [t.name for t in resolved.teachers if t.model] == ["a", "b"]
    teacher = resolved.teachers[2]
    store = LabelStore(StoreSpec.of(job.labels)).signal(teacher.fingerprint, teacher.signals[0])
    assert len(store) == 90
    for config, _ in space.jobs():
        trial = shared.resolve(config, MetadataCache(shared.fingerprints))
        assert [each.is_column for each in trial.teachers] == [False, False, True]
        split = trial.tasks[0].train
        assert store.contains(split.views[trial.teachers[2].view].keys).all()


def test_a_combination_that_does_not_fit_is_named(models, tmp_path):
    base = with_saved_data(make_job(models, tmp_path / "store"), tmp_path / "rows")
    space = space_of(
        base,
        {
            "distillation.matches": tune.choice([[], [{**HIDDEN, "layer_S": 2}]]),
            "student.config.num_hidden_layers": tune.choice([1, 2]),
        },
    )
    with pytest.raises(rb.ConfigError, match=r"num_hidden_layers = 1: .*layer"):
        prepare_sweep(space, tmp_path / "data")


def test_live_rows_are_saved_for_trials_and_yaml(models, tmp_path):
    job = make_job(models, tmp_path / "store")
    saved = with_saved_data(job, tmp_path / "rows")
    assert Path(saved.tasks[0].train).exists()
    again = with_saved_data(job, tmp_path / "rows")
    assert again.to_plain() == saved.to_plain()
    rb.DistillJob.model_validate(saved.to_plain())


def test_rows_whose_writing_broke_off_are_written_again(models, tmp_path, monkeypatch):
    job = make_job(models, tmp_path / "store")

    def break_off(rows: Dataset, path: str) -> None:
        Path(path).write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "to_parquet", break_off)
        with pytest.raises(OSError, match="No space left"):
            with_saved_data(job, tmp_path / "rows")
    saved = with_saved_data(job, tmp_path / "rows")
    rows = Dataset.from_parquet(saved.tasks[0].train, cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(job.tasks[0].train)
