"""Ray's own configs from `run:` and `scaling:`: a value that can't be used is refused at once."""

import pytest

import raybrew as rb
from raybrew.runs.folder import RunFolder
from raybrew.runs.ray_config import run_config_from, scaling_config_from
from raybrew.sweeps.settings import tune_run_config_from


@pytest.mark.parametrize("given", [0, -1, [0, 2], [-1, 2], (0, 0), [1, 2, 3], True, "2"])
def test_a_run_has_a_worker_at_least(given):
    with pytest.raises(rb.ConfigError, match=r"scaling\.num_workers: expected .* got "):
        scaling_config_from({"num_workers": given})


@pytest.mark.parametrize("given", [1, 3, [1, 2], (2, 2)])
def test_workers_may_be_as_many_as_ray_train_allows(given):
    config = scaling_config_from({"num_workers": given})
    assert config is not None
    assert config.num_workers == (given if isinstance(given, int) else tuple(given))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"stop": 5}, "stop: expected a mapping, got 5"),
        ({"stop": {"eval/score": "x"}}, "stop.eval/score: expected a valid number, got 'x'"),
        ({"stop": {"eval/score": None}}, "stop"),
        ({"verbose": "foo"}, "verbose: expected a valid integer, got 'foo'"),
        ({"verbose": -1}, "verbose"),
        ({"log_to_file": 5}, "log_to_file: expected true or false or a text or a list, got 5"),
        ({"log_to_file": ["out"]}, "log_to_file"),
        ({"sync_config": {}}, "sync_config: expected an instance of SyncConfig, got {}"),
        ({"progress_reporter": "x"}, "progress_reporter: expected an instance of ProgressReporter"),
    ],
)
def test_what_tune_cant_use_of_a_run_is_reported_before_anything_runs(given, what):
    with pytest.raises(rb.ConfigError, match=rf"run\.{what}"):
        tune_run_config_from(given)


def test_what_tune_can_use_of_a_run_is_left_alone():
    stop = {"eval/score": 0.9, "training_iteration": 3}
    given = {"stop": stop, "verbose": 2, "log_to_file": ["out", "errors"], "sync_config": None}
    config = tune_run_config_from(given)
    assert config is not None
    assert (config.stop, config.verbose) == (stop, 2)
    assert tune_run_config_from({"stop": None, "verbose": None, "log_to_file": True})


def test_a_run_of_the_longest_name_can_be_labelled(tmp_path):
    for name in ("x" * 200, "x" * 200 + "-label-20250131-235959"):
        RunFolder(str(tmp_path), name)
        assert run_config_from({"name": name})
    for name in ("x" * 201, "x" * 201 + "-label-20250131-235959", "x" * 200 + "-label-x"):
        for make in (lambda n: RunFolder(str(tmp_path), n), lambda n: run_config_from({"name": n})):
            with pytest.raises(rb.ConfigError, match=r"run\.name: expected .*at most 200 bytes"):
                make(name)


def test_every_mistake_of_a_run_is_reported_at_once():
    given = {"nam": "x", "storage_path": 5, "failure_config": {"max_failures": "x", "max": 1}}
    with pytest.raises(rb.ConfigError) as refused:
        run_config_from(given)
    assert [line.split(": ")[0] for line in str(refused.value).splitlines()] == [
        "run.failure_config.max_failures",
        "run.failure_config.max",
        "run.storage_path",
        "run.nam",
    ]
