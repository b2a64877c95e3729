"""What `run:` and `scaling:` may say, so far as Ray's classes don't check it."""

import pytest

import raybrew as rb
from raybrew.ray_arguments import check_ray_arguments


@pytest.mark.parametrize("given", [0, -1, [0, 2], [-1, 2], (0, 0), [1, 2, 3], True, "2"])
def test_a_run_has_a_worker_at_least(given):
    with pytest.raises(rb.ConfigError, match=r"scaling\.num_workers: expected .* from 1"):
        check_ray_arguments("scaling", {"num_workers": given})


@pytest.mark.parametrize("given", [1, 3, [1, 2], (2, 2)])
def test_workers_may_be_as_many_as_ray_train_allows(given):
    check_ray_arguments("scaling", {"num_workers": given})
