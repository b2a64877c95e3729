"""What the settings of a sweep name of its job is looked at before anything is labelled."""

import re
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.train import ScalingConfig
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

import raybrew as rb
from raybrew.sweeps.settings import check_metric, tune_config_from
from raybrew.sweeps.space import JobSpace
from raybrew.sweeps.sweep import check_sweep
from tests.made import make_job

SPACE = {
    "training.learning_rate": tune.loguniform(1e-4, 1e-2),
    "distillation.kd_loss": tune.choice(["ce", "kl"]),
    "student.config.num_hidden_layers": tune.choice([1, 2]),
}


def job(**changes: Any) -> rb.DistillJob:
    return make_job({"a": "nowhere/a", "b": "nowhere/b"}, Path("store"), **changes)


def without_rows() -> rb.DistillJob:
    made = job()
    return job(tasks=[task.model_copy(update={"eval": None}) for task in made.tasks])


def check(space: dict[str, Any], **settings: Any) -> JobSpace:
    jobs, _ = check_sweep(job(), space, tune_config_from(settings))
    return jobs


@pytest.mark.parametrize(
    ("metric", "got"),
    [
        ("eval/scroe", r"expected eval/score or eval/sum/<metric>, got 'eval/scroe'"),
        ("eval/smu/accuracy", r"expected eval/score or eval/sum/<metric>"),
        ("eval/sum/", r"expected eval/score or eval/sum/<metric>"),
        ("evl/score", r"begins with eval/, train/, labels/, time/, or one of step.*'evl/score'"),
        ("accuracy", r"begins with"),
    ],
)
def test_a_metric_that_no_trial_reports_is_named(metric, got):
    with pytest.raises(rb.ConfigError, match=rf"tune\.metric: .*{got}"):
        check(SPACE, metric=metric)


def test_a_score_needs_rows_to_evaluate_on():
    for metric in ("eval/score", "eval/sum/accuracy"):
        with pytest.raises(rb.ConfigError, match=rf"tune\.metric: expected a task with .*{metric}"):
            check_metric(metric, without_rows())
    check_metric("train/sum/loss", without_rows())


@pytest.mark.parametrize(
    "metric",
    [
        "eval/score",
        "eval/sum/accuracy",
        "train/sum/loss",
        "train/progress",
        "labels/misses",
        "time/step_s",
        "time_total_s",
        "step",
    ],
)
def test_what_trials_report_is_a_metric(metric):
    check(SPACE, metric=metric)


@pytest.mark.parametrize(
    ("searcher", "point", "what"),
    [
        ("random", {"training.lr": 1e-3}, r"\[0\]: expected paths of the space .*'training\.lr'"),
        ("random", {5: 1e-3}, r"expected paths of the space .*got 5"),
        ("random", {"training.learning_rate": -1.0}, r"make a job, .*-1\.0.*greater than"),
        ("random", {"distillation.kd_loss": "foo"}, r"make a job, .*foo"),
        ("random", {"student.config.num_hidden_layers": 5}, r"choice\(\[1, 2\]\) can give, got 5"),
        ("optuna", {"training.learning_rate": 1e-3}, r"every path that Optuna searches"),
    ],
)
def test_a_point_that_cant_be_tried_is_named(searcher, point, what):
    with pytest.raises(rb.ConfigError) as error:
        check(SPACE, search_alg={searcher: {"points_to_evaluate": [point]}})
    assert re.search(rf"points_to_evaluate.*{what}", str(error.value), re.DOTALL), error.value


def test_optuna_begins_with_what_its_choices_list():
    point = {
        "training.learning_rate": 1e-3,
        "distillation.kd_loss": "ce",
        "student.config.num_hidden_layers": 2,
    }
    check(SPACE, search_alg={"optuna": {"points_to_evaluate": [point]}})
    point["distillation.kd_loss"] = "mse"
    with pytest.raises(rb.ConfigError, match=r"kd_loss: expected what choice\(.*got 'mse'"):
        check(SPACE, search_alg={"optuna": {"points_to_evaluate": [point]}})


def test_points_that_can_be_tried_are_left_alone():
    points = [{"training.learning_rate": 0.5}, {"distillation.kd_loss": "mse"}, {}]
    check(SPACE, search_alg={"random": {"points_to_evaluate": points}})


def test_a_mutation_of_a_searched_path_is_checked_and_remembered():
    def mutated(values: list[float]) -> dict[str, Any]:
        return {"pbt": {"hyperparam_mutations": {"distillation.temperature": values}}}

    space = {"distillation.temperature": tune.choice([1.0, 2.0])}
    with pytest.raises(rb.ConfigError, match=r"temperature: .*then one of .* can give -1"):
        check(space, scheduler=mutated([-1.0, 2.0]))
    joined = check(space, scheduler=mutated([2.0, 4.0])).ranges["distillation.temperature"]
    assert joined.values == (1.0, 2.0, 4.0)
    assert joined.text == "choice([1.0, 2.0]), then one of [2.0, 4.0]"


def test_a_mutation_within_an_interval_widens_it():
    rates = {"training.learning_rate": tune.uniform(1e-3, 1e-2)}
    for given, interval in ((tune.uniform(1e-4, 5e-3), (1e-4, 1e-2)), ([1e-3, 5e-2], None)):
        scheduler = PopulationBasedTraining(hyperparam_mutations={"training.learning_rate": given})
        config = tune.TuneConfig(scheduler=scheduler)
        jobs, _ = check_sweep(job(), rates, config)
        assert jobs.ranges["training.learning_rate"].interval == interval


def test_a_sweep_of_a_script_has_workers_too():
    message = r"scaling\.num_workers: expected a number greater than or equal to 1 or .*got 0"
    with pytest.raises(rb.ConfigError, match=message):
        check_sweep(job(), SPACE, scaling_config=ScalingConfig(num_workers=0))


def test_every_mistake_of_a_sweep_is_reported_at_once():
    labels = rb.LabelConfig(store="s", on_full="go_on")
    config = tune.TuneConfig(metric="accuracy", search_alg=OptunaSearch())
    grid = SPACE | {"training.seed": tune.grid_search([0, 1])}
    with pytest.raises(rb.ConfigError) as refused:
        check_sweep(job(labels=labels), grid, config, ScalingConfig(num_workers=0))
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "tune.metric",
        "labels.on_full",
        "scaling.num_workers",
        "space.training.seed",
    ]
