import json

import pytest
from datasets import Dataset

from raybrew.config import Task
from raybrew.data.columns import AnswerSpan, read_answers, read_routes
from raybrew.data.sources import load_source
from raybrew.errors import DataError

# Columns that name something: each value is checked for what it is before it is looked up.


@pytest.mark.parametrize("value", [["a"], {"of": "a"}, 0, None])
def test_a_route_is_the_name_of_a_teacher(value):
    task = Task(name="t", train="x", teacher_column="who")
    rows = Dataset.from_dict({"text": ["x"], "who": [value]})
    with pytest.raises(DataError, match=r"w: row 0: expected a teacher of the task \(a, b\).*got"):
        read_routes(task, rows, ["a", "b"], "w")


# Where answers stand in their passages: characters from the start, as whole numbers.

PASSAGE = "one two three"


def found(text: str, start: object, passage: str = PASSAGE, *, search: bool = False):
    rows = Dataset.from_dict({"answers": [{"text": [text], "answer_start": [start]}]})
    return read_answers(rows, "answers", [passage], "w", search=search)


def test_a_place_is_not_counted_from_the_end():
    with pytest.raises(DataError, match="row 0: expected the answer 'two' at character -9"):
        found("two", -9)
    # CMRC 2018 writes -1 for an answer that is to be looked for.
    for start in (-1, -9):
        assert found("two", start, search=True) == [[AnswerSpan("two", 4, moved=True)]]


@pytest.mark.parametrize("search", [False, True])
def test_a_bool_is_no_place(search):
    with pytest.raises(DataError, match="row 0: expected the answer 'one' at character True"):
        found("one", True, " one", search=search)


def squad(start: object) -> str:
    answers = [{"text": "two", "answer_start": start}]
    questions = [{"id": "q7", "question": "where", "answers": answers}]
    return json.dumps({"data": [{"paragraphs": [{"context": PASSAGE, "qas": questions}]}]})


@pytest.mark.parametrize("start", [10**30, -(10**30), 1e30, True, 1.5, None, "4"])
def test_a_file_in_squads_form_with_a_place_that_is_no_whole_number(start, tmp_path):
    file = tmp_path / "dev.json"
    file.write_text(squad(start))
    with pytest.raises(
        DataError, match=r"t\.train: .*'q7': expected a whole number .*got"
    ) as caught:
        load_source(str(file), "t.train")
    assert repr(start) in str(caught.value)


@pytest.mark.parametrize("start", [4, 4.0])
def test_a_whole_number_may_be_written_as_a_float(start, tmp_path):
    file = tmp_path / "dev.json"
    file.write_text(squad(start))
    assert load_source(str(file), "t.train")["answers"][0]["answer_start"] == [4]
