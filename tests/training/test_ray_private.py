"""Ray's private interfaces are used in one file, and give what its documentation doesn't."""

import re
from pathlib import Path

from ray.train import ScalingConfig

import raybrew
from raybrew.training.ray_private import root_error, worker_resources

PRIVATE = re.compile(r"\bray(\.\w+)*\._|ray_constants|_resources_per_worker_not_none|\b_base_exc\b")


def test_only_one_file_of_the_package_uses_what_ray_keeps_private():
    package = Path(raybrew.__file__).parent
    files = [each for each in package.rglob("*.py") if PRIVATE.search(each.read_text())]
    assert [each.name for each in files] == ["ray_private.py"]


def test_workers_have_ray_trains_default_resources():
    assert worker_resources(ScalingConfig()) == {"CPU": 1}
    assert worker_resources(ScalingConfig(use_gpu=True))["GPU"] == 1
    assert worker_resources(ScalingConfig(resources_per_worker={"CPU": 2})) == {"CPU": 2}


def test_an_error_that_ray_train_did_not_wrap_is_itself():
    error = ValueError("mine")
    assert root_error(error) is error
