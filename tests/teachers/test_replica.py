"""A replica: what is known is not computed, and what is damaged is computed again."""

import itertools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import EncodedSplit, Padding
from raybrew.errors import TeacherError
from raybrew.labels import store as store_module
from raybrew.labels.remote import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.teachers.failure import ReplicaFailure
from raybrew.teachers.replica import Answer, Replica
from tests.made import made_teacher, make_data, make_tokenizer

SIGNALS = (Signal(), Signal(dtype="float16"))
SPEC = made_teacher("t", "nowhere", "f1", "sequence-classification", "float32", 512, Padding(0), 1)
VIEW = encode(make_tokenizer(), make_data(12)["text"][:], None, 32)[0]


class Counting:
    """Stands in for a model; answers with what the key says."""

    def __init__(self):
        self.keys: list[bytes] = []

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        self.keys += [key.tobytes() for key in view.keys]
        values = (view.keys % np.uint64(1009)).astype(np.float32)
        return {s.name: Payload(values.astype(s.dtype)) for s in signals}


def replica_of(folder, teacher, signals=SIGNALS) -> Replica:
    return Replica(SPEC, signals, str(folder), teacher)


def expected(rows) -> np.ndarray:
    return (VIEW.keys[rows] % np.uint64(1009)).astype(np.float32)


def test_each_content_is_computed_once_however_often_it_is_asked_for(tmp_path):
    teacher = Counting()
    replica = replica_of(tmp_path, teacher)
    for rows in ([3, 1, 3, 0], [1, 5], [5, 5, 4]):
        got = replica.ask(VIEW.take(np.array(rows)), SIGNALS).payloads
        for signal in SIGNALS:
            np.testing.assert_array_equal(got[signal.name].values, expected(rows))
    assert len(teacher.keys) == len(set(teacher.keys)) == 5
    assert replica.metrics()["examples"] == 5
    assert replica.metrics()["hits"] == 4


def test_what_another_process_wrote_is_not_computed_again(tmp_path):
    first = replica_of(tmp_path, Counting())
    second_teacher = Counting()
    second = replica_of(tmp_path, second_teacher)
    first.ask(VIEW, SIGNALS)
    first.flush()
    second.ask(VIEW, SIGNALS)
    assert not second_teacher.keys


def test_a_second_signal_is_computed_without_storing_the_first_twice(tmp_path):
    replica_of(tmp_path, Counting(), SIGNALS[:1]).ask(VIEW, SIGNALS[:1])
    first = replica_of(tmp_path, Counting(), SIGNALS[:1])
    first.ask(VIEW, SIGNALS[:1])
    first.flush()
    both = replica_of(tmp_path, Counting())
    both.ask(VIEW, SIGNALS)
    both.flush()
    assert len(LabelStore(tmp_path).signal("f1", SIGNALS[0])) == len(VIEW)
    assert len(LabelStore(tmp_path).signal("f1", SIGNALS[1])) == len(VIEW)


def test_labels_whose_file_was_deleted_are_computed_when_the_store_is_filled(tmp_path):
    writer = replica_of(tmp_path, Counting())
    writer.ask(VIEW, SIGNALS)
    writer.flush()
    teacher = Counting()
    filler = replica_of(tmp_path, teacher)
    filler.ask(VIEW, SIGNALS)
    assert not teacher.keys
    for shard in tmp_path.rglob("shard-*.arrow"):
        shard.unlink()
    # They are mapped, so that it could answer still; but a later process could not.
    filler.fill_view(VIEW)
    filler.flush()
    assert len(teacher.keys) == len(VIEW)
    assert len(LabelStore(tmp_path).signal("f1", SIGNALS[0])) == len(VIEW)


def test_a_shard_damaged_between_two_questions_is_computed_again(tmp_path):
    writer = replica_of(tmp_path, Counting())
    writer.ask(VIEW, SIGNALS)
    writer.flush()
    teacher = Counting()
    reader = replica_of(tmp_path, teacher)
    for shard in tmp_path.rglob("shard-*.arrow"):
        data = bytearray(shard.read_bytes())
        value = expected([0]).astype(np.float32 if "float32" in str(shard) else np.float16)
        data[data.index(value.tobytes())] ^= 1
        shard.write_bytes(data)
    got = reader.ask(VIEW, SIGNALS).payloads
    np.testing.assert_array_equal(got[SIGNALS[0].name].values, expected(np.arange(12)))
    assert len(teacher.keys) >= 12
    assert len(list(tmp_path.rglob("*.damaged"))) == 2


def test_filling_computes_what_is_missing_of_a_split(tmp_path):
    EncodedSplit({"student": VIEW}, np.zeros(12, np.int64)).save(tmp_path / "split")
    teacher = Counting()
    replica = replica_of(tmp_path / "store", teacher)
    assert replica.fill(str(tmp_path / "split"), "student", np.arange(8)).computed.all()
    later = replica.fill(str(tmp_path / "split"), "student", np.arange(12))
    assert later.computed.tolist() == [False] * 8 + [True] * 4
    assert later.payloads == {}
    assert len(teacher.keys) == 12


class Picky(Counting):
    """Refuses questions with one example."""

    def __init__(self, refused: bytes):
        super().__init__()
        self.refused = refused

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        if any(key.tobytes() == self.refused for key in view.keys):
            raise TeacherError("no")
        return super().answer(view, signals)


def test_questions_that_are_answered_together_are_answered_as_if_alone(tmp_path):
    teacher = Counting()
    replica = replica_of(tmp_path, teacher)
    rows = ([0, 1, 2], [2, 3], [], [5, 0])
    answers = replica.ask_together([VIEW.take(np.array(r, int)) for r in rows], SIGNALS)
    for each, answer in zip(rows, answers, strict=True):
        assert isinstance(answer, Answer)
        for signal in SIGNALS:
            if each:
                np.testing.assert_array_equal(answer.payloads[signal.name].values, expected(each))
    computed = [answer.computed.tolist() for answer in answers if isinstance(answer, Answer)]
    assert computed == [[True] * 3, [False, True], [], [True, False]]
    assert len(teacher.keys) == 5
    assert replica.metrics()["batches"] == 1


def test_one_questions_error_is_not_the_others(tmp_path):
    teacher = Picky(VIEW.keys[3].tobytes())
    replica = replica_of(tmp_path, teacher)
    good, bad = replica.ask_together([VIEW.take(np.arange(3)), VIEW.take(np.arange(2, 5))], SIGNALS)
    assert isinstance(good, Answer)
    assert isinstance(bad, TeacherError)
    np.testing.assert_array_equal(good.payloads[SIGNALS[0].name].values, expected([0, 1, 2]))


def test_what_has_been_computed_for_a_while_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("raybrew.teachers.replica.FLUSH_S", 0.0)
    replica, other = replica_of(tmp_path, Counting()), Counting()
    assert not replica.flush_due()
    replica.ask(VIEW, SIGNALS)
    assert replica.flush_due()
    replica.ask(VIEW.take(np.arange(1)), SIGNALS)  # before it looks at the next question
    assert not replica.flush_due()
    replica_of(tmp_path, other).ask(VIEW, SIGNALS)
    assert not other.keys


def test_a_full_store_answers_questions_larger_than_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "FLUSH_BYTES", 4 * VIEW.keys[0].nbytes)
    teacher = Counting()
    spec = StoreSpec(str(tmp_path), max_bytes=1, on_full="go_on")
    small = replace(SPEC, config=SPEC.config.model_copy(update={"batch_tokens": 32}))
    replica = Replica(small, SIGNALS, spec, teacher)
    for _ in range(2):
        answer = replica.ask(VIEW, SIGNALS)
        for signal in SIGNALS:
            found = answer.payloads[signal.name].values
            np.testing.assert_array_equal(found, expected(np.arange(len(VIEW))))
    # Nothing of it is on disk, and what was asked for again was computed again.
    assert replica.metrics()["unstored"] > 0
    assert len(teacher.keys) >= 2 * len(VIEW)


class Broken(Counting):
    """Fails with these errors, one a forward, before it answers."""

    def __init__(self, *errors: Exception):
        super().__init__()
        self.errors = list(errors)
        self.sizes: list[int] = []

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        self.sizes.append(len(view))
        if self.errors and self.errors[0].args != ("later",):
            raise self.errors.pop(0)
        del self.errors[:1]
        return super().answer(view, signals)


ECC = RuntimeError("CUDA error: uncorrectable ECC error encountered")


def test_after_an_error_of_its_device_a_replica_computes_nothing_any_more(tmp_path):
    teacher = Broken(Exception("later"), ECC)
    replica = replica_of(tmp_path, teacher)
    one, two, three = (VIEW.take(np.arange(n, n + 4)) for n in (0, 4, 8))
    replica.ask(one, SIGNALS)
    with pytest.raises(ReplicaFailure, match=r"uncorrectable ECC.*forward of 8 examples") as failed:
        replica.ask_together([two, three], SIGNALS)
    assert not failed.value.blames  # there were two of them
    assert failed.value.life == replica.life
    # Neither is tried again with a context that is broken, nor is what comes later to blame.
    assert teacher.sizes == [4, 8]
    for ask in (lambda: replica.ask(two, SIGNALS), lambda: replica.fill_view(three), replica.load):
        with pytest.raises(ReplicaFailure, match="ECC") as refused:
            ask()
        assert not refused.value.blames
    assert teacher.sizes == [4, 8]
    # What it had computed before is on disk: nothing is lost with its process.
    assert LabelStore(str(tmp_path)).signal("f1", SIGNALS[0]).contains(one.keys).all()


def test_a_question_that_fails_alone_may_be_at_fault(tmp_path):
    replica = replica_of(tmp_path, Broken(ECC))
    (failure,) = replica.ask_together([VIEW.take(np.arange(2))], SIGNALS)
    assert isinstance(failure, ReplicaFailure)
    assert failure.blames
    again = pickle.loads(pickle.dumps(failure))
    assert vars(again) == vars(failure)
    assert str(again) == str(failure)


def test_too_little_memory_asks_for_half_of_what_the_forward_had_down_to_one_example(tmp_path):
    longest = int(VIEW.lengths.max())
    failures = []
    teacher = Broken(*[torch.OutOfMemoryError("CUDA out of memory") for _ in range(20)])
    replica = replica_of(tmp_path, teacher)
    while not failures or failures[-1].smaller is not None:
        with pytest.raises(ReplicaFailure) as failed:
            replica.ask(VIEW, SIGNALS)
        failures.append(failed.value)
        if failures[-1].smaller is not None:
            replica.recover(failures[-1].smaller)
    sizes, tokens = teacher.sizes, [each.tokens for each in failures]
    assert sizes[0] == len(VIEW)
    assert sizes[-1] == 1
    assert tokens[0] == len(VIEW) * longest
    assert all(small <= large // 2 for large, small in itertools.pairwise(tokens[:-1]))
    assert failures[-1].blames
    # In a process that had too little memory for a batch the next one goes on.
    well = replica_of(tmp_path, Broken())
    well.shrink(2 * longest)
    well.ask(VIEW, SIGNALS)
    assert max(well._teacher.sizes) <= 2 * longest // int(VIEW.lengths.min())  # type: ignore
    assert len(well._teacher.sizes) >= len(VIEW) * int(VIEW.lengths.min()) // (2 * longest)  # type: ignore


def test_one_bad_question_leaves_the_answers_of_those_batched_with_it(tmp_path):
    class Picky(Counting):
        def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
            if (view.keys == VIEW.keys[5]).all(axis=1).any():
                raise IndexError("index out of range in self")
            return super().answer(view, signals)

    replica = replica_of(tmp_path, Picky())
    views = [VIEW.take(np.arange(n, n + 3)) for n in (0, 3, 6)]
    first, bad, last = replica.ask_together(views, SIGNALS)
    assert isinstance(bad, IndexError)
    for answer, rows in ((first, range(3)), (last, range(6, 9))):
        assert isinstance(answer, Answer)
        values = answer.payloads[SIGNALS[0].name].values
        np.testing.assert_array_equal(values, expected(list(rows)))
