"""A rank's labels: in order, from store or teacher, whatever the windows are."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Payload, Signal
from raybrew.errors import LabelsLost, TeacherDropped
from raybrew.labels.source import LabelSource, TeacherLabels
from raybrew.labels.store import LabelStore
from tests.made import make_data, make_tokenizer

SIGNAL = Signal()
VIEW = encode(make_tokenizer(), make_data(20)["text"][:], None, 32)[0]


def answer(view: EncodedView) -> Payload:
    # What is answered follows from the key, so that a mix-up shows.
    return Payload((view.keys % np.uint64(1009)).astype(np.float32))


@dataclass
class Teacher:
    """Answers when it is waited for, and remembers what it was asked."""

    asked: list[int] = field(default_factory=list)
    waited: int = 0
    flushed: int = 0

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> "Answer":
        self.asked.append(len(view))
        return Answer(self, view)

    def flush(self) -> None:
        self.flushed += 1


@dataclass
class Answer:
    teacher: Teacher
    view: EncodedView

    def result(self) -> dict[str, Payload]:
        self.teacher.waited += 1
        return {SIGNAL.name: answer(self.view)}


def rows_of(step: int) -> tuple[int, np.ndarray]:
    # Two tasks in turn; some steps have no rows, as a rank of a small last batch.
    generator = np.random.default_rng(step)
    return step % 2, generator.integers(0, 20, generator.integers(0, 5))


def source_of(folder, client, *, window=3, max_windows=2, num_steps=14, stored=()) -> LabelSource:
    store = LabelStore(folder)
    if len(stored):
        part = VIEW.take(np.array(stored))
        store_one = store.signal("t", SIGNAL)
        store_one.append(part.keys, answer(part))
        store_one.flush()
    teachers = [
        TeacherLabels(name, task, VIEW, {SIGNAL: store.signal("t", SIGNAL)})
        for name, task in (("a", 0), ("b", 1), ("c", 1))
    ]
    return LabelSource(teachers, client, rows_of, num_steps, window, max_windows)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 3), st.sets(st.integers(0, 19)), st.integers(0, 5))
def test_each_step_gets_the_labels_of_its_rows(tmp_path_factory, window, ahead, stored, first):
    folder = tmp_path_factory.mktemp("store")
    source = source_of(folder, Teacher(), window=window, max_windows=ahead, stored=sorted(stored))
    for step in range(first, 14):
        task, rows = rows_of(step)
        got = source.get(step)
        assert set(got) == ({"a"} if task == 0 else {"b", "c"})
        expected = answer(VIEW.take(rows)).values
        for by_signal in got.values():
            np.testing.assert_array_equal(by_signal[SIGNAL.name].values, expected)
    counted = sum(len(rows_of(s)[1]) * (1 if s % 2 == 0 else 2) for s in range(first, 14))
    assert source.counts["hits"] + source.counts["misses"] == counted


def test_windows_are_asked_for_before_they_are_needed_and_not_beyond_the_end(tmp_path):
    teacher = Teacher()
    source = source_of(tmp_path, teacher, window=2, max_windows=3, num_steps=6)
    source.get(0)
    total = sum(len(rows_of(s)[1]) * (1 if s % 2 == 0 else 2) for s in range(6))
    assert sum(teacher.asked) == total
    assert teacher.waited <= 3
    for step in range(1, 6):
        source.get(step)
    assert sum(teacher.asked) == total


def test_nothing_is_asked_when_the_store_has_everything(tmp_path):
    teacher = Teacher()
    source = source_of(tmp_path, teacher, stored=range(20))
    for step in range(14):
        source.get(step)
    assert not teacher.asked
    assert source.counts["misses"] == 0
    source.settle()
    assert teacher.flushed == 0


def test_settling_flushes_once_for_what_was_asked_since(tmp_path):
    teacher = Teacher()
    source = source_of(tmp_path, teacher)
    source.get(0)
    source.settle()
    source.settle()
    assert teacher.flushed == 1


def test_a_label_that_no_teacher_can_give_is_an_error(tmp_path):
    source = source_of(tmp_path, None, stored=range(3))

    def serve_all() -> None:
        for step in range(14):
            source.get(step)

    with pytest.raises(LabelsLost, match=r"teacher '.'.*labels are missing from the store"):
        serve_all()


class Mortal(Teacher):
    """Answers for `b` a number of times, and is dropped then."""

    def __init__(self, answers: int):
        super().__init__()
        self.left = answers

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> "Answer":
        if teacher != "b":
            return super().ask(teacher, view, signals)
        self.left -= 1
        return Answer(self, view) if self.left >= 0 else Dropped(self, view)


class Dropped(Answer):
    def result(self) -> dict[str, Payload]:
        raise TeacherDropped("teacher 'b' was dropped")


def test_a_dropped_teacher_is_left_out_of_the_steps_that_need_it(tmp_path):
    source = source_of(tmp_path, Mortal(2), window=2)
    answered = [set(source.get(step)) for step in range(14)]
    # Task 1 is every other step; `b` answers for two windows of two steps.
    assert answered == [{"a"}, {"b", "c"}] * 2 + [{"a"}, {"c"}] * 5
    assert source.counts["dropped"] == sum(len(rows_of(step)[1]) for step in range(5, 14, 2))


class Leaving(Teacher):
    """Has left when it is asked: its labels were on their way to the store, or are lost."""

    def __init__(self, store: LabelStore, *, wrote: bool):
        super().__init__()
        self.store, self.wrote = store, wrote

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> "Answer":
        return Left(self, view)


class Left(Answer):
    def result(self) -> dict[str, Payload]:
        assert isinstance(self.teacher, Leaving)
        if self.teacher.wrote:
            signal = self.teacher.store.signal("t", SIGNAL)
            signal.append(self.view.keys, answer(self.view))
            signal.flush()
        raise LabelsLost("it has left")


def test_a_teacher_that_left_with_its_labels_in_the_store_is_not_missed(tmp_path):
    source = source_of(tmp_path, Leaving(LabelStore(tmp_path), wrote=True), stored=[2, 3, 5])
    for step in range(14):
        expected = answer(VIEW.take(rows_of(step)[1])).values
        for by_signal in source.get(step).values():
            np.testing.assert_array_equal(by_signal[SIGNAL.name].values, expected)


def test_labels_that_are_not_in_the_store_of_a_teacher_that_left_are_lost(tmp_path):
    source = source_of(tmp_path, Leaving(LabelStore(tmp_path), wrote=False), stored=[2, 3, 5])

    def serve_all() -> None:
        for step in range(14):
            source.get(step)

    with pytest.raises(LabelsLost, match="it has left"):
        serve_all()
