"""A trial's loop, without a cluster: one configuration after another in one process."""

from pathlib import Path
from typing import Any

import pytest
from ray import tune

import raybrew as rb
from raybrew.sweeps import trial as trial_module
from raybrew.sweeps.space import JobSpace, range_of
from raybrew.sweeps.trial import StudentTrial, TrialContext, prepare_sweep, with_saved_data
from tests.made import make_job, make_model
from tests.training.in_process import run

EPOCH = 6  # steps


class Channel:
    def __init__(self):
        self.messages: list[dict[str, Any]] = []
        self.put = self

    def remote(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> rb.DistillJob:
    folder = tmp_path_factory.mktemp("trial")
    models = {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}
    job = with_saved_data(make_job(models, folder / "store"), folder / "rows")
    run(job, folder / "labels")  # a run in this process fills the store
    return job


def context_of(job: rb.DistillJob, folder: Path) -> TrialContext:
    ranges = {
        path: range_of(path, given)
        for path, given in {
            "training.learning_rate": tune.loguniform(1e-4, 1e-2),
            "student.config.num_hidden_layers": tune.choice([1, 2]),
        }.items()
    }
    return prepare_sweep(JobSpace(job, ranges), folder)[0]


def started(
    shared: TrialContext, config: dict[str, Any], monkeypatch
) -> tuple[StudentTrial, Channel]:
    monkeypatch.setattr(trial_module.ray, "get", lambda reference: reference)
    channel = Channel()

    class Started(StudentTrial):
        trial_id = "t"  # type: ignore[assignment]

        def setup(self, config: dict[str, Any], *_: Any) -> None:  # pyright: ignore
            super().setup(config, shared=shared, channel=channel, resources={"CPU": 1})  # type: ignore[arg-type]

    return Started(config), channel


def config(rate: float, layers: int = 1) -> dict[str, Any]:
    return {"training.learning_rate": rate, "student.config.num_hidden_layers": layers}


def test_a_process_serves_one_configuration_after_another(job, tmp_path, monkeypatch):
    trial, channel = started(context_of(job, tmp_path), config(1e-3), monkeypatch)
    results = [trial.train(), trial.train()]
    assert [(each["step"], each["done"]) for each in results] == [
        (EPOCH, False),
        (2 * EPOCH, True),
    ]
    assert results[-1]["labels/hits"] == 2 * 2 * 90
    assert results[-1]["labels/misses"] == 0
    assert results[-1]["train/progress"] == 1.0
    assert {message["trial"] for message in channel.messages} == {"t"}
    steps = [m["step"] for m in channel.messages if "train/sum/loss" in m["values"]]
    assert steps == list(range(1, 2 * EPOCH + 1))
    assert trial.reset_config(config(1e-3, layers=2))
    again = [trial.train(), trial.train()]
    assert again[-1]["done"]
    assert again[-1]["train/sum/loss"] != results[-1]["train/sum/loss"]
    # The same configuration gives the same student again, whatever the process did before.
    assert trial.reset_config(config(1e-3))
    third = [trial.train(), trial.train()]
    assert third[-1]["train/sum/loss"] == results[-1]["train/sum/loss"]
    assert third[-1]["eval/score"] == results[-1]["eval/score"]


def test_a_trial_goes_on_from_a_checkpoint_with_its_own_learning_rate(job, tmp_path, monkeypatch):
    shared = context_of(job, tmp_path / "data")
    trial, _ = started(shared, config(1e-3), monkeypatch)
    trial.train()
    trial.save_checkpoint(str(tmp_path / "checkpoint"))
    whole = trial.train()
    assert trial.reset_config(config(1e-3))
    trial.load_checkpoint(str(tmp_path / "checkpoint"))
    resumed = trial.train()
    assert resumed["step"] == 2 * EPOCH
    assert resumed["train/sum/loss"] == whole["train/sum/loss"]
    # Another's checkpoint under another learning rate: its schedule from there on.
    assert trial.reset_config(config(4e-3))
    trial.load_checkpoint(str(tmp_path / "checkpoint"))
    mutated = trial.train()
    assert mutated["step"] == 2 * EPOCH
    assert mutated["train/sum/loss"] != whole["train/sum/loss"]
    # A copy of one that was done is done, and says so.
    trial.save_checkpoint(str(tmp_path / "done"))
    assert trial.reset_config(config(1e-3))
    trial.load_checkpoint(str(tmp_path / "done"))
    copy = trial.train()
    assert copy["done"]
    assert copy["train/progress"] == 1.0


def test_no_trial_asks_a_teacher(job, tmp_path, monkeypatch):
    labels = job.labels.model_copy(update={"store": str(tmp_path / "empty")})
    empty = job.model_copy(update={"labels": labels})
    trial, _ = started(context_of(empty, tmp_path), config(1e-3), monkeypatch)
    with pytest.raises(rb.LabelError, match="missing"):
        trial.train()
