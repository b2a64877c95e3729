"""A replica: what is known is not computed, and what is damaged is computed again."""

import numpy as np
import pytest

from raybrew.data.encoding import EncodedSplit, EncodedView, encode
from raybrew.labels.payload import Payload, Signal
from raybrew.labels.store import LabelStore
from raybrew.teachers.client import home_of
from raybrew.teachers.replica import Replica
from raybrew.teachers.teacher import TeacherSpec, chunks_by_tokens
from tests.made import make_data, make_tokenizer

SIGNALS = (Signal(), Signal(dtype="float16"))
SPEC = TeacherSpec("t", "nowhere", "f1", "sequence-classification", "float32", 512, 0, 1)
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
        got = replica.ask(VIEW.take(np.array(rows)), SIGNALS)
        for signal in SIGNALS:
            np.testing.assert_array_equal(got[signal.name].values, expected(rows))
    assert len(teacher.keys) == len(set(teacher.keys)) == 5
    assert replica.figures()["examples"] == 5
    assert replica.figures()["hits"] == 4


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
    got = reader.ask(VIEW, SIGNALS)
    np.testing.assert_array_equal(got[SIGNALS[0].name].values, expected(np.arange(12)))
    assert len(teacher.keys) >= 12
    assert len(list(tmp_path.rglob("*.damaged"))) == 2


def test_filling_computes_what_is_missing_of_a_split(tmp_path):
    EncodedSplit({"student": VIEW}, np.zeros(12, np.int64)).save(tmp_path / "split")
    teacher = Counting()
    replica = replica_of(tmp_path / "store", teacher)
    assert replica.fill(str(tmp_path / "split"), "student", np.arange(8)) == 8
    assert replica.fill(str(tmp_path / "split"), "student", np.arange(12)) == 4
    assert len(teacher.keys) == 12


@pytest.mark.parametrize("budget", [1, 16, 40, 10_000])
def test_chunks_hold_each_example_once_and_keep_to_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    chunks = list(chunks_by_tokens(lengths, budget))
    assert sorted(np.concatenate(chunks)) == list(range(50))
    for chunk in chunks:
        assert len(chunk) == 1 or len(chunk) * lengths[chunk].max() <= budget
    assert [c.tolist() for c in chunks] == [c.tolist() for c in chunks_by_tokens(lengths, budget)]
    assert list(chunks_by_tokens(np.empty(0, np.int64), budget)) == []


def test_a_key_has_one_home_and_homes_share_the_keys():
    keys = np.random.default_rng(0).integers(0, 2**63, (4000, 2)).astype(np.uint64)
    home = home_of(keys, 4)
    assert (home == home_of(keys[::-1], 4)[::-1]).all()
    assert np.bincount(home, minlength=4).min() > 900
