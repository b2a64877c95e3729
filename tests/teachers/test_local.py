"""Teachers in the client's process: the same answers, each label once, shares that are disjoint."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import Padding
from raybrew.errors import Event, TeacherError
from raybrew.labels.store import LabelStore
from raybrew.teachers.local import CombinedClient, LocalClient
from raybrew.teachers.teacher import ModelTeacher, ResolvedTeacher
from tests.made import made_teacher, make_data, make_model, make_tokenizer

SIGNALS = (Signal(),)
VIEW = encode(make_tokenizer(), make_data(40, twice=8)["text"][:], None, 32)[0]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ResolvedTeacher:
    model = make_model(tmp_path_factory.mktemp("models") / "a", 0)
    return made_teacher("a", model, "f", "sequence-classification", "float32", 128, Padding(0), 7)


@pytest.fixture(scope="module")
def expected(spec) -> np.ndarray:
    return ModelTeacher(spec).answer(VIEW, SIGNALS)[SIGNALS[0].name].values


def made_client(spec: ResolvedTeacher, store: Path) -> LocalClient:
    return LocalClient([(spec, SIGNALS)], str(store), num_threads=1)


def test_each_label_is_computed_once(spec, expected, tmp_path):
    client = made_client(spec, tmp_path)
    first = client.ask("a", VIEW.take(np.arange(30)), SIGNALS)
    second = client.ask("a", VIEW, SIGNALS)
    for answer, rows in ((first, 30), (second, 40)):
        got = answer.result()[SIGNALS[0].name].values
        np.testing.assert_allclose(got, expected[:rows], atol=1e-6)
    assert client.forwards() == 32
    client.flush()
    client.close()
    again = made_client(spec, tmp_path)
    again.ask("a", VIEW, SIGNALS).result()
    assert again.forwards() == 0
    again.close()


def test_shares_of_ranks_are_disjoint_and_together_all_there_is(spec, tmp_path):
    ranks = [made_client(spec, tmp_path) for _ in range(3)]
    for rank, client in enumerate(ranks):
        client.fill_share("a", VIEW, rank, 3)
    assert min(client.forwards() for client in ranks) > 0
    assert sum(client.forwards() for client in ranks) == 32
    assert LabelStore(tmp_path).signal("f", SIGNALS[0]).contains(VIEW.keys).all()
    for client in ranks:
        client.close()


class Named:
    def __init__(self):
        self.asked: list[str] = []
        self.flushed = 0

    def ask(self, teacher: str, view: EncodedView, signals: tuple[Signal, ...]) -> "Named":
        self.asked.append(teacher)
        return self

    def result(self) -> dict[str, Payload]:
        return {}

    def flush(self) -> None:
        self.flushed += 1


def test_each_teacher_has_its_own_asker_and_each_is_flushed_once():
    far, near = Named(), Named()
    clients = CombinedClient({"a": far, "b": near, "c": far})
    for teacher in "abc":
        clients.ask(teacher, VIEW, SIGNALS)
    clients.flush()
    assert (far.asked, near.asked) == (["a", "c"], ["b"])
    assert far.flushed == near.flushed == 1


def test_two_names_of_one_model_share_what_either_computed(spec, tmp_path):
    specs = [spec, replace(spec, config=spec.config.model_copy(update={"name": "b"}))]
    client = LocalClient([(each, SIGNALS) for each in specs], str(tmp_path), num_threads=1)
    answers = [client.ask(name, VIEW, SIGNALS) for name in "ab"]
    one, two = (answer.result()[SIGNALS[0].name].values for answer in answers)
    np.testing.assert_array_equal(one, two)
    assert client.forwards() == 32
    client.close()


class Failing(ModelTeacher):
    """Fails with these errors, one a forward, before it answers."""

    errors: ClassVar[list[Exception]] = []

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        if self.errors:
            raise self.errors.pop(0)
        return super().answer(view, signals)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    monkeypatch.setattr("raybrew.teachers.replica.ModelTeacher", Failing)
    monkeypatch.setattr(Failing, "errors", [])
    return Failing.errors


def test_too_little_memory_for_a_forward_makes_it_smaller_in_the_workers_process(
    spec, expected, tmp_path, failing
):
    failing += [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()]
    events: list[Event] = []
    client = LocalClient([(spec, SIGNALS)], str(tmp_path), num_threads=1, on_event=events.append)
    got = client.ask("a", VIEW, SIGNALS).result()[SIGNALS[0].name].values
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert [event.fault for event in events] == ["teacher out of memory"] * 2
    assert client.forwards() == 32
    client.close()


def test_a_single_example_that_memory_is_too_small_for_is_an_error_that_names_it(
    spec, tmp_path, failing
):
    failing += [torch.OutOfMemoryError("CUDA out of memory")]
    client = made_client(spec, tmp_path)
    pattern = rf"'a'.*1 examples, {VIEW.lengths[0]} tokens; a single example needs more memory"
    with pytest.raises(TeacherError, match=pattern):
        client.ask("a", VIEW.take(np.arange(1)), SIGNALS).result()
    client.close()


def test_an_error_of_the_device_ends_the_worker_as_it_was_raised(spec, tmp_path, failing):
    failing += [RuntimeError("CUDA error: uncorrectable ECC error encountered")]
    client = made_client(spec, tmp_path)
    # Not an error of ours, which would end the run: Ray Train starts the worker again.
    with pytest.raises(RuntimeError, match=r"^CUDA error: uncorrectable ECC"):
        client.fill_share("a", VIEW, 0, 1)
    client.close()


def test_a_model_is_unloaded_once_every_label_that_is_expected_is_in_the_store(
    spec, expected, tmp_path
):
    events: list[Event] = []
    client = LocalClient([(spec, SIGNALS)], str(tmp_path), num_threads=1, on_event=events.append)
    replica = client._replicas["a"]
    client.expect("a", VIEW)
    client.ask("a", VIEW.take(np.arange(30)), SIGNALS).result()
    client.flush()
    assert replica._teacher is not None
    assert events == []
    client.ask("a", VIEW, SIGNALS).result()
    client.flush()
    assert replica._teacher is None
    ((fault, is_fault),) = [(event.fault, event.is_fault) for event in events]
    assert (fault, is_fault) == ("teacher left", False)
    # One whose label is lost is loaded again.
    for shard in tmp_path.rglob("shard-*.arrow"):
        shard.unlink()
    again = made_client(spec, tmp_path)
    again.expect("a", VIEW)
    got = again.ask("a", VIEW, SIGNALS).result()[SIGNALS[0].name].values
    np.testing.assert_allclose(got, expected, atol=1e-6)
    for each in (client, again):
        each.close()
