"""What `run:` and `scaling:` may say, so far as Ray's classes don't check it."""

import pytest

import raybrew as rb
from raybrew.runs.ray_config import check_ray_arguments
from raybrew.sweeps.settings import tune_run_config_from


@pytest.mark.parametrize("given", [0, -1, [0, 2], [-1, 2], (0, 0), [1, 2, 3], True, "2"])
def test_a_run_has_a_worker_at_least(given):
    with pytest.raises(rb.ConfigError, match=r"scaling\.num_workers: expected .* from 1"):
        check_ray_arguments("scaling", {"num_workers": given})


@pytest.mark.parametrize("given", [1, 3, [1, 2], (2, 2)])
def test_workers_may_be_as_many_as_ray_train_allows(given):
    check_ray_arguments("scaling", {"num_workers": given})


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"stop": 5}, "stop: expected a mapping of metrics to numbers"),
        ({"stop": {"eval/score": "x"}}, "stop: expected a mapping of metrics to numbers"),
        ({"stop": {"eval/score": None}}, "stop"),
        ({"verbose": "foo"}, "verbose: expected a whole number from 0 to 3.*got 'foo'"),
        ({"verbose": -1}, "verbose"),
        ({"log_to_file": 5}, "log_to_file: expected true, false"),
        ({"log_to_file": ["out"]}, "log_to_file"),
        ({"sync_config": {}}, "sync_config: expected none, since only a script"),
        ({"progress_reporter": "x"}, "progress_reporter: expected none"),
    ],
)
def test_what_tune_cant_use_of_a_run_is_said_before_anything_runs(given, what):
    with pytest.raises(rb.ConfigError, match=rf"run\.{what}"):
        tune_run_config_from(given)


def test_what_tune_can_use_of_a_run_is_left_alone():
    stop = {"eval/score": 0.9, "training_iteration": 3}
    given = {"stop": stop, "verbose": 2, "log_to_file": ["out", "errors"], "sync_config": None}
    config = tune_run_config_from(given)
    assert config is not None
    assert (config.stop, config.verbose) == (stop, 2)
    assert tune_run_config_from({"stop": None, "verbose": None, "log_to_file": True})


def test_a_run_of_the_longest_name_can_be_labelled():
    for name in ("x" * 200, "x" * 200 + "-label-20250131-235959"):
        check_ray_arguments("run", {"name": name})
    for name in ("x" * 201, "x" * 201 + "-label-20250131-235959", "x" * 200 + "-label-x"):
        with pytest.raises(rb.ConfigError, match=r"run\.name: expected .*at most 200 bytes"):
            check_ray_arguments("run", {"name": name})
