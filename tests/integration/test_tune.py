"""Whole sweeps on a real Ray: labels once, trials in few processes, what they leave behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch
from transformers import AutoModelForSequenceClassification

import raybrew as rb
from raybrew.config.job_file import load_job
from tests.made import STUDENT_CONFIG, make_data, make_job

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

UNIQUE = 84 + 30  # rows of make_job's data that differ
WORKER = ScalingConfig(resources_per_worker={"CPU": 1})


def one(models: dict[str, str]) -> dict[str, str]:
    """One teacher is enough where it isn't about several; each is a process."""
    return {"a": models["a"]}


def sweep(job: rb.DistillJob, space: dict, folder: Path, **arguments) -> rb.TuneResult:
    arguments.setdefault("scaling_config", WORKER)
    arguments.setdefault("tune_config", tune.TuneConfig(max_concurrent_trials=2))
    run_config = tune.RunConfig(name="sweep", storage_path=str(folder))
    return rb.tune(job, space, run_config=run_config, **arguments)


def test_a_sweep_labels_once_and_leaves_a_report_and_the_best_job(models, tmp_path):
    job = make_job(models, tmp_path / "store")
    hidden = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "hidden_mse"}
    hidden |= {"teacher": "a", "proj": ["linear", 16, 32]}
    space = {
        "distillation.temperature": tune.grid_search([1.0, 4.0]),
        "distillation.matches": tune.grid_search([[], [hidden]]),
        "training.learning_rate": tune.loguniform(1e-4, 1e-2),
    }
    result = sweep(job, space, tmp_path)
    assert len(result.trials) == 4
    assert {row.status for row in result.trials} == {"finished"}, result.trials
    # Two signals of one teacher, one forward for each (teacher, example), none by a trial.
    assert result.labels["needed"] == result.labels["forwards"] == 2 * UNIQUE
    assert result.labels["misses"] == 0
    assert result.labels["hits"] == 4 * 2 * 2 * 90
    scores = [row.score or 0.0 for row in result.trials]
    assert scores == sorted(scores, reverse=True)
    assert result.best is not None
    assert result.best == result.trials[0]
    assert {row.evaluations for row in result.trials} == {2}
    # The best student is the one that was scored, and its job is ready to run.
    AutoModelForSequenceClassification.from_pretrained(result.student)
    best = load_job(rb.DistillJob, result.best_job).job
    assert best.distillation.temperature == result.best.config["distillation.temperature"]
    assert best.training.learning_rate == result.best.config["training.learning_rate"]
    folder = Path(result.folder)
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == [row.name for row in result.trials]
    assert float(table[0]["eval/score"]) == result.best.score
    page = (folder / "report.html").read_text()
    assert all(row.name in page for row in result.trials)
    for name in ("learning_curves", "parallel_coordinates"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG", name
    # Four trials tell nothing of importance.
    assert not (folder / "importance.png").exists()
    swept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert f"trials/{result.best.name}/eval/score" in {key for line in swept for key in line}
    lines = (folder / "trials" / result.best.name / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if "train/sum/loss" in line]) >= 12
    assert json.loads(lines[-1])["summary"]["eval/score"] == result.best.score
    # The best job gives the best score again, from the same labels.
    again = rb.distill(
        best,
        scaling_config=WORKER,
        run_config=RunConfig(name="run", storage_path=str(tmp_path / "again")),
    )
    assert again.metrics["eval/score"] == result.best.score
    assert again.labels["forwards"] == 0


def test_a_failing_trial_is_kept_with_its_error_and_the_sweep_goes_on(models, tmp_path):
    training = rb.TrainingConfig(num_epochs=2, batch_size=16, optimizer="SGD", num_threads=1)
    job = make_job(one(models), tmp_path / "store", training=training)
    # torch itself refuses the second one, when the optimizer is built.
    options = [{}, {"nesterov": True}, {"momentum": 0.9}]
    result = sweep(job, {"training.optimizer_options": tune.grid_search(options)}, tmp_path)
    assert [row.status for row in result.trials] == ["finished", "finished", "failed"]
    failed = result.trials[-1]
    assert failed.config["training.optimizer_options"] == {"nesterov": True}
    assert "Nesterov momentum requires a momentum" in failed.error
    assert "Nesterov" in Path(result.folder, "results.csv").read_text()
    assert "Nesterov" in Path(result.folder, "report.html").read_text()
    assert result.best is not None
    assert result.best.status == "finished"


def test_asha_stops_trials_and_optuna_proposes_them(models, tmp_path):
    training = rb.TrainingConfig(num_epochs=4, batch_size=16, learning_rate=1e-3, num_threads=1)
    tracking = rb.TrackingConfig(log_every=1, progress=False, wandb=True)
    job = make_job(one(models), tmp_path / "store", training=training, tracking=tracking)
    config = tune.TuneConfig(
        num_samples=6,
        # Not the score: of thirty rows it is the same for many, and who is as good isn't stopped.
        metric="train/sum/loss",
        mode="min",
        scheduler=ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2),
        search_alg=OptunaSearch(seed=0),
        max_concurrent_trials=2,
    )
    space = {
        "training.learning_rate": tune.loguniform(1e-5, 1e-2),
        "distillation.kd_loss": tune.choice(["ce", "mse"]),
    }
    result = sweep(job, space, tmp_path, tune_config=config)
    assert len(result.trials) == 6
    statuses = {row.status for row in result.trials}
    assert "failed" not in statuses, result.trials
    assert "stopped" in statuses
    assert result.labels["forwards"] == UNIQUE
    # One run of W&B's a trial, in one group.
    runs = sorted(Path(result.folder).glob("trials/*/wandb/offline-run-*/*.wandb"))
    assert len(runs) == 6
    assert all(b"sweep/trial-" in run.read_bytes() for run in runs)
    # A process serves several trials.
    lines = [
        json.loads(path.read_text().splitlines()[-1])
        for path in Path(result.folder).glob("trials/*/result.json")
    ]
    assert len({line["pid"] for line in lines}) <= 3


def test_population_based_training_goes_on_from_the_better_ones_checkpoint(models, tmp_path):
    training = rb.TrainingConfig(num_epochs=6, batch_size=16, learning_rate=1e-3, num_threads=1)
    job = make_job(one(models), tmp_path / "store", training=training)
    config = tune.TuneConfig(
        num_samples=4,
        metric="train/sum/loss",
        mode="min",
        scheduler=PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=1,
            quantile_fraction=0.5,
            hyperparam_mutations={"training.learning_rate": tune.loguniform(1e-6, 1e-2)},
        ),
    )
    space = {"training.learning_rate": tune.loguniform(1e-6, 1e-2)}
    result = sweep(job, space, tmp_path, tune_config=config)
    assert {row.status for row in result.trials} == {"finished"}, result.trials
    assert {row.step for row in result.trials} == {36}
    assert result.labels["misses"] == 0
    copies = (Path(result.folder) / "trials" / "pbt_global.txt").read_text().splitlines()
    assert copies  # a trial went on from another one's checkpoint
    changed = [json.loads(line) for line in copies]
    rates = [
        (old["training.learning_rate"], new["training.learning_rate"]) for *_, old, new in changed
    ]
    assert any(old != new for old, new in rates)


def test_trials_of_two_workers_run_a_trainer_inside(models, tmp_path):
    job = make_job(one(models), tmp_path / "store")
    workers = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
    space = {"distillation.temperature": tune.grid_search([1.0, 4.0])}
    result = sweep(job, space, tmp_path, scaling_config=workers)
    assert [row.status for row in result.trials] == ["finished", "finished"], result.trials
    assert result.labels["forwards"] == UNIQUE
    assert result.best is not None
    assert result.best.evaluations == 2
    AutoModelForSequenceClassification.from_pretrained(result.student)
    scaling = load_job(rb.DistillJob, result.best_job).scaling
    assert scaling == {"num_workers": 2, "resources_per_worker": {"CPU": 1}}


def test_what_can_never_fit_is_an_error_before_any_label(models, tmp_path):
    job = make_job(models, tmp_path / "store")
    space = {"distillation.temperature": tune.grid_search([1.0, 4.0])}
    with pytest.raises(rb.ConfigError, match=r"a student worker needs.*GPU"):
        sweep(job, space, tmp_path / "1", scaling_config=ScalingConfig(use_gpu=True))
    many = ScalingConfig(num_workers=7, resources_per_worker={"CPU": 1})
    with pytest.raises(rb.ConfigError, match=r"needs 7 CPU"):
        sweep(job, space, tmp_path / "2", scaling_config=many)
    assert not (tmp_path / "store").exists()


def test_combinations_that_cannot_be_are_named_before_any_label(models, tmp_path):
    job = make_job(models, tmp_path / "store")
    space = {
        "distillation.mixture": tune.choice(["mean_logits", "mean_probs"]),
        "distillation.kd_loss": tune.choice(["ce", "mse"]),
    }
    with pytest.raises(rb.ConfigError, match=r"mixture = 'mean_probs', .*kd_loss = 'mse'"):
        sweep(job, space, tmp_path)
    assert not (tmp_path / "store").exists()


def test_labels_that_may_be_left_out_are_no_labels_for_a_sweep(models, tmp_path):
    labels = rb.LabelConfig(store=str(tmp_path / "store"), on_full="go_on")
    job = make_job(models, tmp_path / "store", labels=labels)
    with pytest.raises(rb.ConfigError, match=r"labels\.on_full: expected stop in a sweep"):
        sweep(job, {"distillation.temperature": tune.grid_search([1.0, 4.0])}, tmp_path)


@pytest.mark.long
def test_a_stopped_sweep_goes_on_where_it_was(models, tmp_path):
    make_data(90, twice=6).to_parquet(str(tmp_path / "train.parquet"))
    make_data(30, seed=1).to_parquet(str(tmp_path / "eval.parquet"))
    values = {
        "tasks": [
            {"name": "sum", "train": "train.parquet", "eval": "eval.parquet", "max_length": 32}
        ],
        "teachers": [
            {"name": name, "task": "sum", "model": model, "resources": {"CPU": 0.25}}
            for name, model in one(models).items()
        ],
        "student": {"config": STUDENT_CONFIG},
        "training": {"num_steps": 400, "evaluate_every": 20, "num_threads": 1},
        "labels": {"store": "store"},
        "tracking": {"progress": False},
        "run": {"name": "sweep", "storage_path": str(tmp_path / "runs")},
        "space": {
            "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
            "training.seed": {"grid_search": [0, 1, 2, 3]},
        },
        "tune": {"max_concurrent_trials": 1},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(values))
    trials = tmp_path / "runs" / "sweep" / "trials"

    def steps(number: int) -> list[int]:
        found = trials / f"trial-0000{number}" / "result.json"
        lines = found.read_text().splitlines() if found.exists() else []
        return [json.loads(line)["step"] for line in lines]

    command = [sys.executable, "-m", "raybrew", "tune", str(file)]
    local = {**os.environ, "RAY_ADDRESS": "local"}
    with (tmp_path / "err.txt").open("w") as log:
        first = subprocess.Popen(command, stderr=log, start_new_session=True, env=local)
        deadline = time.monotonic() + 240
        while len(steps(1)) < 3:  # the second trial is under way
            assert first.poll() is None, (tmp_path / "err.txt").read_text()
            assert time.monotonic() < deadline, "the sweep didn't get to its second trial"
            time.sleep(0.2)
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=90) == 130
    output = (tmp_path / "err.txt").read_text()
    assert "--resume" in output
    assert "Traceback" not in output
    assert steps(0)[-1] == 400
    assert not steps(3)
    second = subprocess.run(
        [*command, "--resume"], capture_output=True, text=True, env=local, timeout=300, check=True
    )
    report = json.loads((tmp_path / "runs" / "sweep" / "report.json").read_text())
    assert [row["status"] for row in report["trials"]] == ["finished"] * 4, second.stdout
    assert report["labels"]["forwards"] == 0  # all of them in the store
    # No step of a finished trial was taken again; the stopped one went on from its checkpoint.
    # (Tune writes a report before its checkpoint: the last one before the stop can be there twice.)
    assert steps(0) == list(range(20, 401, 20))
    assert sorted(set(steps(1))) == list(range(20, 401, 20))
    assert len(steps(1)) <= 21
    assert steps(1)[-1] == 400
    # A sweep that is done, but for its report, gets that.
    (tmp_path / "runs" / "sweep" / "report.json").unlink()
    subprocess.run([*command, "--resume"], env=local, timeout=300, check=True)
    again = json.loads((tmp_path / "runs" / "sweep" / "report.json").read_text())
    scores = [{row["name"]: row["score"] for row in each["trials"]} for each in (report, again)]
    assert scores[0] == scores[1]
    changed = subprocess.run(
        [*command, "--resume", "--set", "distillation.temperature=9"],
        capture_output=True,
        text=True,
        env=local,
        timeout=120,
    )
    assert changed.returncode == 2
    assert "distillation.temperature" in changed.stderr
