"""What a job says of its store: sizes, policies, places."""

import pytest
from pydantic import ValidationError

from raybrew.config import LabelConfig
from raybrew.jobfile import resolve_paths


def test_sizes_are_read_as_people_write_them():
    labels = LabelConfig.model_validate({"max_bytes": "1.5GB", "cache_max_bytes": 10})
    assert (labels.max_bytes, labels.cache_max_bytes) == (1_500_000_000, 10)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_bytes": "many"}, "expected a size such as 50GB.*'many'"),
        ({"max_bytes": 0}, "greater than 0"),
        ({"on_full": "go_on", "when": "ahead"}, "expected on_full: stop with when: ahead"),
        ({"max_bytes": 1, "store": "s3://bucket/x"}, "expected max_bytes for a store in a folder"),
    ],
)
def test_settings_of_a_store_that_cant_be_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        LabelConfig.model_validate(values)


def test_a_store_behind_a_uri_is_no_path_of_the_file(tmp_path):
    values = {"labels": {"store": "s3://bucket/labels", "cache": "cache"}}
    resolve_paths(values, tmp_path)
    assert values["labels"] == {"store": "s3://bucket/labels", "cache": str(tmp_path / "cache")}
