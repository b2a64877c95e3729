"""What a job says of its store: sizes, policies, places."""

import pytest
from pydantic import ValidationError

from raybrew.config import LabelConfig
from raybrew.config.job_file import resolve_paths


def test_sizes_are_read_as_people_write_them():
    labels = LabelConfig.model_validate({"max_bytes": "1.5GB", "cache_max_bytes": 10})
    assert (labels.max_bytes, labels.cache_max_bytes) == (1_500_000_000, 10)
    for size in ("50GB", "50 gb", " 50 GB ", "50000000000", "50000MB"):
        assert LabelConfig.model_validate({"max_bytes": size}).max_bytes == 50_000_000_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_bytes": "many"}, "expected a size such as 50GB.*'many'"),
        ({"max_bytes": "10%"}, "expected a size such as 50GB.*'10%'"),
        ({"max_bytes": "1,000,000GB"}, "expected a size"),
        ({"max_bytes": "1,5GB"}, "expected a size"),
        ({"max_bytes": "50.GB"}, "expected a size"),
        ({"max_bytes": "50 GB free"}, "expected a size"),
        ({"max_bytes": "5GB-"}, "expected a size"),
        ({"max_bytes": True}, "expected a size"),
        ({"store": ""}, "at least 1 character"),
        ({"max_bytes": 0}, "greater than 0"),
        ({"on_full": "go_on", "when": "ahead"}, "expected on_full: stop with when: ahead"),
        ({"max_bytes": 1, "store": "s3://bucket/x"}, "expected max_bytes for a store in a folder"),
    ],
)
def test_settings_of_a_store_that_cant_be_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        LabelConfig.model_validate(values)


def test_a_store_behind_a_uri_is_no_path_of_the_file(tmp_path):
    values = {"labels": {"store": "s3://bucket/labels", "cache": "cache"}}
    resolve_paths(values, tmp_path)
    assert values["labels"] == {"store": "s3://bucket/labels", "cache": str(tmp_path / "cache")}
