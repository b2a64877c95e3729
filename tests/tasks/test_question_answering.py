"""Windows, answers and their texts by hand."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from torchmetrics.functional.text import squad

import raybrew as rb
from raybrew.data.payload import Payload
from raybrew.data.sources import load_source
from raybrew.data.split import STUDENT_VIEW, EncodedSplit
from raybrew.errors import DataError
from raybrew.tasks import TASK_TYPES
from raybrew.tasks.question_answering import character_metrics, decode_answers, squad_metrics
from tests.models.saved_families import WORDS, family_tokenizer
from tests.tasks.made_models import byte_pairs, wordpiece

KIND = TASK_TYPES["question-answering"]
PASSAGE = "one two three four five six seven eight nine ten"
NUMBERS = PASSAGE.split()
TOKENIZER = wordpiece("where", *NUMBERS)


def task(**changes) -> rb.Task:
    base = {"name": "t", "kind": KIND.name, "train": "x.csv", "max_length": 10, "stride": 2}
    return rb.Task(**{**base, **changes})


def row(answer: str | None, passage: str = PASSAGE, **changes) -> dict:
    found = {"text": [], "answer_start": []}
    if answer is not None:
        found = {"text": [answer], "answer_start": [passage.index(answer)]}
    return {"question": "where", "context": passage, "answers": found, **changes}


def encoded(rows: list[dict], own=None, **changes) -> EncodedSplit:
    made = task(**changes)
    _, read, _ = KIND.read(made, Dataset.from_list(rows), None)
    return KIND.encode(made, read, {STUDENT_VIEW: TOKENIZER} | ({"a": own} if own else {}))


def tokens(split: EncodedSplit, window: int, tokenizer=TOKENIZER, view=STUDENT_VIEW) -> list[str]:
    begin, stop = split.views[view].offsets[window : window + 2]
    return list(tokenizer.convert_ids_to_tokens(split.views[view].input_ids[begin:stop].tolist()))


def test_long_passages_become_windows_that_share_tokens():
    split = encoded([row("nine")])
    # [CLS] where [SEP] and [SEP] leave room for six numbers, of which two are shared.
    assert tokens(split, 0)[3:-1] == NUMBERS[0:6]
    assert tokens(split, 1)[3:-1] == NUMBERS[4:10]
    assert split.source is not None
    assert split.source.tolist() == [0, 0]
    # The answer is outside of the first window, which points at its first token.
    assert split.labels.tolist() == [[0, 0], [7, 7]]
    assert split.counts == {"questions": 1, "windows": 2, "windows_without_their_answer": 1}


def test_an_answer_that_a_window_cuts_is_outside_of_it():
    split = encoded([row("six seven")])
    assert split.labels.tolist() == [[0, 0], [4, 5]]


def test_unanswerable_and_unknown_questions():
    split = encoded([row(None, "one two"), row("two", "one two"), row("two", "one two")])
    assert split.labels.tolist() == [[0, 0], [4, 4], [4, 4]]
    table = Dataset.from_list([row("two", "one two"), row("two", "one two", answers=None)])
    made = task()
    _, rows, _ = KIND.read(made, table, None)
    unknown = KIND.encode(made, rows, {STUDENT_VIEW: TOKENIZER})
    assert unknown.labels.tolist() == [[4, 4], [-1, -1]]
    assert KIND.counts(unknown.labels) == (2, 2)
    assert KIND.num_labelled(rows) == 1


@pytest.mark.parametrize("passage", ["Zürich: one 🎉 two", "中国 one two", "one\u0301 two, one"])
def test_answers_are_found_at_their_characters_and_come_back_as_they_stand(passage):
    answer = passage[passage.index(" ") + 1 :]
    made = task(max_length=40)
    _, rows, _ = KIND.read(made, Dataset.from_list([row(answer, passage)]), None)
    split = KIND.encode(made, rows, {STUDENT_VIEW: TOKENIZER})
    assert decoded(split, peaks(split, split.labels[:, 0], split.labels[:, 1])) == {0: answer}


def peaks(split: EncodedSplit, starts, ends, height: float = 5.0) -> Payload:
    """Scores that are 0 but at one start and one end of each window."""
    values = np.zeros((split.student.offsets[-1], 2), np.float32)
    first = split.student.offsets[:-1]
    values[first + np.asarray(starts), 0] = height
    values[first + np.asarray(ends), 1] = height
    return Payload(values.reshape(-1), split.student.offsets * 2)


def decoded(split: EncodedSplit, scores: Payload, **changes) -> dict[int, str]:
    options = {"may_be_none": False, "max_answer_tokens": 30, **changes}
    found = decode_answers(scores, split, np.arange(len(split)), **options)
    return {row: answer.text for row, answer in found.items()}


def test_the_best_window_answers():
    split = encoded([row("nine")])
    scores = peaks(split, [3, 6], [4, 8])
    assert decoded(split, scores) == {0: "one two"}  # a tie: the first window
    scores.values.reshape(-1, 2)[split.student.offsets[1] + 6, 0] += 1
    assert decoded(split, scores) == {0: "eight nine ten"}


def test_answers_dont_end_before_they_start_nor_in_the_question():
    split = encoded([row("two", "one two three")])
    # The highest start is after the highest end, and the question's score is higher still.
    scores = peaks(split, [5], [3])
    scores.values.reshape(-1, 2)[1] = 99
    # Left are the high start with itself, and the high end with itself: the first one found.
    assert decoded(split, scores) == {0: "three"}
    scores.values.reshape(-1, 2)[4] = 4.5
    assert decoded(split, scores) == {0: "two"}


def test_long_answers_are_left_out():
    split = encoded([row("one")], max_length=32)
    scores = peaks(split, [3], [12])
    assert decoded(split, scores) == {0: PASSAGE}
    assert decoded(split, scores, max_answer_tokens=3) != {0: PASSAGE}


def test_no_answer_wins_where_every_window_says_so():
    split = encoded([row("nine")])
    scores = peaks(split, [0, 0], [0, 0])
    assert decoded(split, scores, may_be_none=True) == {0: ""}
    # One window that holds an answer is enough.
    scores = peaks(split, [0, 6], [0, 8])
    assert decoded(split, scores, may_be_none=True) == {0: "eight nine ten"}
    assert decoded(split, peaks(split, [0, 0], [0, 0])) != {0: ""}


def test_metrics_of_texts_are_those_of_squad():
    found = ["the Rhine", "1903", "", "sea", ""]
    true = [["Rhine", "river Rhine"], ["in 1903"], [], [], ["Alps"]]
    got = squad_metrics(found, true)
    predicted = [{"prediction_text": t, "id": str(n)} for n, t in enumerate(found)]
    known = [
        {"answers": {"text": t or [""], "answer_start": [0]}, "id": str(n)}
        for n, t in enumerate(true)
    ]
    reference = squad(predicted, known)
    assert got["exact_match"] == pytest.approx(float(reference["exact_match"]) / 100)
    assert got["f1"] == pytest.approx(float(reference["f1"]) / 100)
    # By hand: an article doesn't count; half of the words; right, wrong and missing silence.
    assert got["exact_match"] == pytest.approx(2 / 5)
    assert got["f1"] == pytest.approx((1 + 2 / 3 + 1 + 0 + 0) / 5)
    assert squad_metrics([], []) == {"examples": 0.0}


def test_metrics_of_texts_without_spaces_are_those_of_cmrc():
    found = ["光荣和ω-force", "光荣", "1990年代", "北京。", "", "上海"]
    true = [
        ["光荣和ω-force"],
        ["光荣和ω-force"],
        ["20世纪1990年"],
        ["北京"],
        [],
        ["香港", "上海市"],
    ]
    got = character_metrics(found, true)
    # By hand: a dash doesn't count, "ωforce" is one unit; 2 of 4; "1990 年" of 3 and of 5 units;
    # a full stop doesn't count; right silence; 2 of 3.
    assert got["f1"] == pytest.approx((1 + 2 * 2 / 6 + 2 * 2 / 8 + 1 + 1 + 2 * 2 / 5) / 6)
    assert got["exact_match"] == pytest.approx(3 / 6)
    assert got["examples"] == 6
    assert character_metrics([], []) == {"examples": 0.0}


def test_shared_characters_that_arent_one_run_dont_add_up():
    # "AB" and "CD" are shared, but with something between them on one side.
    got = character_metrics(["甲乙丙丁"], [["甲乙戊丙丁"]])
    assert got["f1"] == pytest.approx(2 * 2 / (4 + 5))
    assert got["exact_match"] == 0


def test_a_task_says_how_its_answers_are_compared():
    passage = "one two three four five"
    answer = {"answers": {"text": ["three, four two"], "answer_start": [0]}}
    for by, f1 in (("word", 2 * 2 / 5), ("character", 2 * 1 / 5)):
        # The text of an answer needn't be in the passage to be compared with.
        changes = {"answers_by": by, "answers_at": "search", "max_length": 32}
        split = encoded([row("two", passage, **answer)], **changes)
        scores = peaks(split, [4], [5])
        assert decoded(split, scores) == {0: "two three"}
        # As bags they share two words; as runs one, either "two" or "three".
        got = KIND.metrics(scores, split, np.arange(1), ("start", "end"))
        assert got["f1"] == pytest.approx(f1)


def test_a_task_says_how_long_an_answer_may_be():
    passage = "one two three four five"
    short = encoded([row("two", passage)], max_length=32, max_answer_tokens=1)
    scores = peaks(short, [4], [6])
    scores.values.reshape(-1, 2)[4, 1] = 1.0
    assert KIND.metrics(scores, short, np.arange(1), ("start", "end"))["exact_match"] == 1


def test_misplaced_answers_are_found_where_they_stand_nearest():
    passage = "one two one three one four"
    misplaced = row("one", passage, answers={"text": ["one"], "answer_start": [10]})
    absent = row("one", passage, answers={"text": ["six"], "answer_start": [4]})
    right = row("two", passage)
    with pytest.raises(
        DataError, match=r"row 0: expected the answer 'one' at character 10.*search"
    ):
        encoded([misplaced])
    split = encoded([misplaced, absent, right], max_length=32, answers_at="search")
    # [CLS] where [SEP] one two one: character 8 is nearer to 10 than 0 and 18 are.
    assert split.labels.tolist() == [[5, 5], [-1, -1], [4, 4]]
    assert split.counts["answers_moved"] == 1
    assert split.counts["answers_not_found"] == 1
    # The text that isn't there is still what the answer is compared with.
    assert split.reference is not None
    assert split.reference.column("answers").to_pylist() == [["one"], ["six"], ["two"]]


def test_metrics_of_windows_are_those_of_their_texts():
    split = encoded([row("nine"), row(None, "one two"), row("two", "one two")])
    scores = peaks(split, [0, 7, 0, 3], [0, 7, 0, 4])
    got = KIND.metrics(scores, split, np.arange(4), ("start", "end"))
    assert got == pytest.approx({"examples": 3, "exact_match": 2 / 3, "f1": (1 + 1 + 2 / 3) / 3})


def test_a_teachers_own_tokens_answer_for_the_same_characters():
    own = byte_pairs()
    split = encoded([row("nine")], own=own, max_length=60)
    aligned, view = split.alignments["a"], split.views["a"]
    text = own.convert_ids_to_tokens(view.input_ids.tolist())
    assert aligned.shape == (len(split.labels) * len(tokens(split, 0)), 2)
    assert aligned[0].tolist() == [0, 0]
    for place, token in enumerate(tokens(split, 0)[3:-1], start=3):
        start, end = aligned[place]
        assert "".join(text[start : end + 1]) == token
    assert (aligned[1:3] == -1).all()
    assert split.counts["positions_unaligned_a"] == 0


def at(text: str, start: int) -> dict:
    return {"text": [text], "answer_start": [start]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            row("two", answers={"text": ["two"], "answer_start": [5]}),
            r"row 1.*'two' at character 5",
        ),
        (
            row("two", answers={"text": ["twelve"], "answer_start": [4]}),
            r"row 1.*'twelve'.*'two th'",
        ),
        (row("two", question="where " * 9), r"row 1: expected a question that leaves room"),
    ],
)
def test_wrong_rows_are_named(wrong, message):
    with pytest.raises(rb.DataError, match=message):
        encoded([row("two"), wrong])


def test_answers_that_are_numbers():
    with pytest.raises(rb.DataError, match="row 0: expected answers as text in 'answers', got 5"):
        encoded([row("two", answers={"text": [5], "answer_start": [4]})])


def test_the_form_that_squad_is_published_in(tmp_path):
    questions = [
        {"id": 1, "question": "where", "answers": [{"text": "two", "answer_start": 4}]},
        {
            "id": "b",
            "question": "who",
            "is_impossible": True,
            "answers": [],
            "plausible_answers": [],
        },
    ]
    file = tmp_path / "dev.json"
    file.write_text(
        json.dumps(
            {
                "version": "v2.0",
                "data": [{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": questions}]}],
            }
        )
    )
    loaded = load_source(str(file), "tasks[t].train")
    assert loaded["id"][:] == ["1", "b"]
    assert loaded["context"][:] == [PASSAGE] * 2
    assert loaded["answers"][:] == [
        {"text": ["two"], "answer_start": [4]},
        {"text": [], "answer_start": []},
    ]
    file.write_text('{"version": 1, "data": [{"paragraphs": [{"qas": [{}]}]}]}')
    with pytest.raises(rb.DataError, match=r"tasks\[t\].train: expected questions in SQuAD's form"):
        load_source(str(file), "tasks[t].train")


def test_no_answer_is_at_the_class_token_also_where_that_is_last():
    xlnet = family_tokenizer("last")
    passage, other = "w1 w2 w3 w4 w5 w6 w7 w8 w9", "w1 w2"
    rows = [
        row("w9", passage, question="w0"),
        row(None, other, question="w0"),
        row("w2", other, question="w0"),
    ]
    made = task(max_length=10)
    _, read, _ = KIND.read(made, Dataset.from_list(rows), None)
    split = KIND.encode(made, read, {STUDENT_VIEW: xlnet, "a": wordpiece(*WORDS)})
    # The answer is outside of the first window.
    assert " ".join(tokens(split, 0, xlnet)) == "w0 <sep> w1 w2 w3 w4 w5 w6 <sep> <cls>"
    last = split.student.lengths - 1
    assert split.labels[0].tolist() == [last[0]] * 2
    assert split.labels[-2:].tolist() == [[last[-2]] * 2, [3, 3]]
    # It answers for the other tokenizer's class token, which is its first.
    ends = split.student.offsets[1:] - 1
    assert (split.alignments["a"][ends] == 0).all()
    assert (split.alignments["a"][split.student.offsets[:-1]] == -1).all()
    scores = np.full((len(split.student.input_ids), 2), -1.0, np.float32)
    every = np.arange(len(split))
    for score in (5.0, -5.0):
        scores[ends] = score
        payload = Payload(scores.reshape(-1), split.student.offsets * 2)
        found = decode_answers(payload, split, every, may_be_none=True, max_answer_tokens=1)
        assert all((answer.text == "") == (score > 0) for answer in found.values())


def test_padding_is_no_position():
    from raybrew.objective.rows import RowIndex

    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    index = RowIndex.of("position", torch.tensor([0, 1]), mask)
    rows = index.of_logits(torch.zeros(2, 3))
    assert rows.isneginf().tolist() == [[False, False, True], [False, False, False]]
