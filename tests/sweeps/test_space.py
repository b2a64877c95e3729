"""Paths, values and combinations are checked before any trial, and say what would help."""

import re
from pathlib import Path
from typing import Any

import pytest
from ray import tune

import raybrew as rb
from raybrew.sweeps.space import JobSpace, range_of, space_from
from tests.made import make_job, make_model

STUDENT = rb.Student(layers_from=("a", (0,)))
MATCH = {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "cos", "teacher": "a"}


def job(**changes: Any) -> rb.DistillJob:
    return make_job({"a": "nowhere/a", "b": "nowhere/b"}, Path("store"), **changes)


def space_of(given: dict[str, Any], base: rb.DistillJob | None = None) -> JobSpace:
    return JobSpace(base or job(), {path: range_of(path, each) for path, each in given.items()})


def refused(given: dict[str, Any], base: rb.DistillJob | None = None) -> str:
    with pytest.raises(rb.ConfigError) as error:
        space_of(given, base).check()
    return str(error.value)


def test_trials_find_what_is_relative_to_the_drivers_folder(tmp_path, monkeypatch):
    for name in ("a", "base"):
        make_model(tmp_path / "models" / name, 0)
    monkeypatch.chdir(tmp_path)
    base = make_job({"a": "models/a", "b": "hub/b"}, Path("store"), student=STUDENT)
    space = space_of({"student.layers_from.0": tune.choice(["a", "models/base"])}, base)
    monkeypatch.chdir("/")
    made = [space.job({"student.layers_from.0": of}) for of in ("a", "models/base")]
    assert [teacher.model for teacher in made[0].teachers] == [f"{tmp_path}/models/a", "hub/b"]
    assert made[0].labels.store == f"{tmp_path}/store"
    layers = [job.student.layers_from for job in made]
    assert layers == [("a", (0,)), (f"{tmp_path}/models/base", (0,))]


def test_paths_of_every_section_can_be_set():
    base = job(distillation=rb.DistillationConfig(matches=[MATCH]))
    space = space_of(
        {
            "distillation.temperature": tune.uniform(1, 10),
            "distillation.temperature_scheduler": tune.choice(["constant", "logit_std"]),
            "distillation.kd_loss": tune.grid_search(["ce", "kl"]),
            "distillation.matches.0.weight": tune.uniform(0, 2),
            "teachers.b.weight": tune.uniform(0.1, 1),
            "student.config.num_hidden_layers": tune.randint(1, 3),
            "training.learning_rate": tune.loguniform(1e-4, 1e-2),
            "labels.top_k": tune.choice([None, 2]),
        },
        base,
    )
    space.check()
    made = space.job(
        {
            "distillation.matches.0.weight": 0.5,
            "teachers.b.weight": 0.25,
            "student.config.num_hidden_layers": 2,
        }
    )
    assert made.distillation.matches[0].weight == 0.5
    assert [teacher.weight for teacher in made.teachers] == [1.0, 0.25]
    assert made.student.config == {**(base.student.config or {}), "num_hidden_layers": 2}
    # What isn't named stays, live data sets too.
    assert made.tasks[0].train is base.tasks[0].train
    assert made.training == base.training


def test_an_unknown_path_names_the_nearest():
    message = refused(
        {
            "distillation.temprature": tune.uniform(1, 2),
            "teachers.c.weight": 1.0,
            "training.seed": tune.choice([0, 1]),
        }
    )
    assert "distillation.temprature" in message
    assert "did you mean 'temperature'" in message
    assert "teachers.c.weight" in message  # both are reported


@pytest.mark.parametrize(
    ("path", "given", "what"),
    [
        ("distillation.temperature", tune.uniform(0, 10), r"can give 0\.0.*greater than 0"),
        ("distillation.temperature", tune.choice([1, 5000]), r"can give 5000.*1000"),
        ("training.warmup_ratio", tune.uniform(0, 1.5), r"can give 1\.5"),
        ("training.learning_rate", tune.randn(1e-3, 1e-3), r"can give -"),
        ("training.batch_size", tune.randint(0, 9), r"can give 0"),
        ("training.precision", tune.grid_search(["fp32", "fp8"]), r"can give 'fp8'.*bf16"),
        ("training.num_steps", tune.choice([5, 10]), r"num_epochs.*both"),
        ("training.learning_rate", tune.sample_from(lambda spec: -1.0), r"can give -1\.0"),
        ("distillation", {"temperature": tune.uniform(1, 2)}, r"distillation\.temperature"),
        ("training.batch_size", tune.uniform(1, 2), r"can give 1\.4.*valid integer"),
        ("training.batch_size", tune.quniform(1, 2, 0.5), r"can give 1\.5.*valid integer"),
        ("distillation.temperature", tune.uniform(10, 1), r"lower end is below.*\(10, 1\)"),
        ("distillation.temperature", tune.uniform(1, 1), r"lower end is below"),
        ("distillation.temperature", tune.loguniform(10, 1), r"lower end is below"),
        ("distillation.temperature", tune.qrandn(5, 0.1, 0), r"greater than 0 as q"),
        ("training.batch_size", tune.randint(5, 5), r"lower end is below"),
        ("training.batch_size", tune.randint(9, 1), r"lower end is below"),
        ("training.batch_size", tune.randint(1, "x"), r"an interval of integers with ends"),  # type: ignore[arg-type]
        ("training.batch_size", tune.randint(1.5, 2.5), r"an interval of integers"),  # type: ignore[arg-type]
        ("training.batch_size", tune.qrandint(1, 10, 0), r"greater than 0 as q"),
        ("training.batch_size", tune.qrandint(1, 3, 5), r"a multiple of 5"),
    ],
)
def test_a_value_out_of_its_fields_range_is_found_before_any_trial(path, given, what):
    with pytest.raises(rb.ConfigError) as error:
        space_of({path: given, "training.seed": tune.choice([0, 1])}).check()
    assert re.search(what, str(error.value), re.DOTALL), error.value


def test_a_space_with_nothing_to_choose_is_refused():
    assert "several values" in refused({"distillation.temperature": 4.0})


def test_integers_end_before_their_upper_bound_unless_they_are_quantized():
    assert range_of("x", tune.randint(1, 4)).values == (1, 2, 3)
    assert range_of("x", tune.qrandint(2, 8, 2)).values == tuple(range(2, 9))
    wide = range_of("x", tune.lograndint(1, 1000))
    assert (wide.values, wide.complete, wide.log) == ((1, 999), False, True)


def test_steps_that_are_whole_suit_a_field_of_integers():
    space_of({"training.seed": tune.quniform(2, 10, 2)}).check()
    space_of({"training.learning_rate": tune.randn(1e-3, 1e-4)}).check()


def test_combinations_are_looked_at_while_they_are_few():
    given = {
        "distillation.kd_loss": tune.choice(["ce", "kl"]),
        "distillation.matches": tune.choice([[], [MATCH]]),
        "training.learning_rate": tune.loguniform(1e-4, 1e-2),
    }
    configs = [config for config, _ in space_of(given).jobs()]
    assert len(configs) == 2 * 2 * 2


def test_of_many_combinations_those_that_ask_for_labels_are_looked_at():
    seeds, losses = list(range(100)), ["ce", "kl", "mse"]
    given = {
        "training.seed": tune.choice(seeds),
        "distillation.kd_loss": tune.choice(losses),
        "distillation.matches": tune.choice([[], [MATCH]]),
    }
    configs = [config for config, _ in space_of(given).jobs()]
    assert len(configs) == 2 + 100 + 3
    assert {len(config["distillation.matches"]) for config in configs} == {0, 1}
    matches = [[{**MATCH, "weight": float(n)}] for n in range(1, 301)]
    with pytest.raises(rb.ConfigError, match="300 combinations"):
        list(space_of({"distillation.matches": tune.choice(matches)}).jobs())


def test_top_k_labels_are_kept_for_every_temperature_of_the_space():
    base = job(labels=rb.LabelConfig(store="s", top_k=2))
    listed = space_of({"distillation.temperature": tune.choice([1, 2.5])}, base)
    assert listed.temperatures == (1.0, 2.5)
    endless = space_of({"distillation.temperature": tune.uniform(1, 2)}, base)
    with pytest.raises(rb.ConfigError, match="expected a choice or a grid, got float"):
        _ = endless.temperatures


def test_a_space_in_yaml_is_tunes_own():
    space = space_from(
        {
            "distillation.temperature": {"uniform": [1, 10]},
            "training.learning_rate": {"loguniform": {"lower": 1e-4, "upper": 1e-2}},
            "distillation.kd_loss": {"choice": ["ce", "kl"]},
            "training.seed": {"grid_search": [0, 1]},
            "training.num_epochs": {"randint": [1, 4]},
        }
    )
    assert isinstance(space["distillation.temperature"], type(tune.uniform(1, 2)))
    assert space["training.seed"] == tune.grid_search([0, 1])
    assert space["distillation.kd_loss"].categories == ["ce", "kl"]
    assert (space["training.num_epochs"].lower, space["training.num_epochs"].upper) == (1, 4)
    assert range_of("x", space["training.learning_rate"]).log


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"unifrom": [1, 2]}, "did you mean 'uniform'"),
        ([1, 2], "function: arguments"),
        (4, "function: arguments"),
        ({"choice": []}, r"choice.categories: expected at least 1 element, got \[\]"),
        ({"choice": "ce"}, "choice.categories: expected a list, got 'ce'"),
        ({"uniform": [1, 2, 3]}, r"uniform takes lower, upper; got \[1, 2, 3\]"),
        ({"uniform": {"low": 1, "upper": 2}}, "uniform.low: .*did you mean 'lower'"),
        ({"uniform": 1}, "uniform refused .*'upper'"),
        ({"loguniform": [-1, 2]}, "refused"),
        ({"loguniform": [1, 10, 1]}, "loguniform takes lower, upper; got"),
        ({"loguniform": [1, 10, 0]}, "loguniform takes lower, upper; got"),
        ({"quniform": [1, 2, 0]}, "quniform.q: expected a number greater than 0, got 0"),
        ({"quniform": [1, 2, -1]}, "quniform.q: expected a number greater than 0, got -1"),
        ({"qloguniform": [1, 2, 0]}, "qloguniform.q: expected a number greater than 0, got 0"),
        ({"qrandn": [5, 0.1, 0]}, "qrandn.q: expected a number greater than 0, got 0"),
        ({"randn": [5, 0]}, "randn refused .*SD has to be strictly greater than 0"),
        ({"qrandint": [1, 10, 0]}, "qrandint.q: expected a number greater than 0, got 0"),
        ({"qlograndint": [1, 10, 0]}, "qlograndint.q: expected a number greater than 0, got 0"),
        ({"randint": [1, "x"]}, "randint.upper: expected a valid integer, got 'x'"),
        ({"randint": [1.5, 2.5]}, r"randint.lower: expected a valid integer, got 1\.5"),
        ({"uniform": [1, True]}, "uniform.upper: expected a valid number, got true"),
        ({"uniform": [1, None]}, "uniform.upper: expected a valid number, got null"),
        ({"uniform": [1, float("inf")]}, "uniform.upper: expected a finite number, got inf"),
        ({"sample_from": ["import os"]}, "function: arguments"),
    ],
)
def test_what_is_no_space_in_yaml_is_reported_with_its_path(given, what):
    with pytest.raises(rb.ConfigError, match=what) as error:
        space_from({"training.seed": given})
    assert "space.training.seed" in str(error.value)


def test_what_is_remembered_of_a_space_is_the_same_in_every_process():
    class Live:
        pass

    def made() -> list[str]:
        def function(spec: Any) -> float:
            return 1.0

        given = (
            tune.sample_from(lambda spec: 1.0),
            tune.sample_from(function),
            tune.choice([function, made]),
            tune.grid_search([Live().__init__]),
            Live(),
        )
        return [range_of("x", each).text for each in given]

    texts = made()
    assert not any("0x" in each for each in texts)  # an address, which the next process hasn't got
    assert "made.<locals>.function" in texts[1]
