"""Columns that name something: each value is checked for what it is before it is looked up."""

import pytest
from datasets import Dataset

from raybrew.config import Task
from raybrew.data.columns import read_routes
from raybrew.errors import DataError


@pytest.mark.parametrize("value", [["a"], {"of": "a"}, 0, None])
def test_a_route_is_the_name_of_a_teacher(value):
    task = Task(name="t", train="x", teacher_column="who")
    rows = Dataset.from_dict({"text": ["x"], "who": [value]})
    with pytest.raises(DataError, match=r"w: row 0: expected a teacher of the task \(a, b\).*got"):
        read_routes(task, rows, ["a", "b"], "w")
