"""A pool on a real Ray: who computes what, how often, and what is known while it computes."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group_table

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Signal
from raybrew.data.split import EncodedSplit, Padding
from raybrew.errors import LabelsLost, TeacherError
from raybrew.labels.contents import model_fingerprint
from raybrew.labels.store import LabelStore
from raybrew.teachers.client import PoolClient, PrecomputeRequest
from raybrew.teachers.pool import TeacherPool
from raybrew.teachers.teacher import ModelTeacher, ResolvedTeacher
from tests.integration.lab_cluster import wait_for
from tests.made import made_teacher, make_data, make_tokenizer
from tests.teachers import faulty

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

SIGNALS = (Signal(),)
BATCH_TOKENS = 64


def hosted(spec: ResolvedTeacher, replicas: int) -> ResolvedTeacher:
    config = spec.config.model_copy(update={"replicas": replicas})
    resources = {"CPU": 0.5}
    return replace(spec, config=config, view="student", signals=SIGNALS, resources=resources)


@pytest.fixture(scope="module")
def view() -> EncodedView:
    view = encode(make_tokenizer(), make_data(200)["text"][:], None, 32)[0]
    _, first = np.unique(view.keys, axis=0, return_index=True)
    return view.take(np.sort(first))


@pytest.fixture(scope="module")
def spec(models, cluster) -> ResolvedTeacher:
    return made_teacher(
        name="a",
        model=models["a"],
        fingerprint=model_fingerprint(models["a"], dtype="float32", adaptor="faulty"),
        kind="sequence-classification",
        dtype="float32",
        batch_tokens=BATCH_TOKENS,
        padding=Padding(0),
        num_threads=1,
        adaptor="tests.teachers.faulty:faulty",
    )


@pytest.fixture(scope="module")
def expected(spec, view) -> np.ndarray:
    return ModelTeacher(spec).answer(view, SIGNALS)[SIGNALS[0].name].values


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def pool(spec, store) -> Iterator[TeacherPool]:
    """Two replicas for all tests here; each test asks for rows of its own."""
    faulty.clear()
    with TeacherPool([hosted(spec, 2)], str(store)) as pool:
        pool.wait()
        yield pool


@pytest.fixture(autouse=True)
def faults() -> Iterator[None]:
    faulty.clear()
    yield
    faulty.clear()


def computed(counts_before: dict[str, float], pool: TeacherPool) -> float:
    return pool.metrics()["a"]["forwards"] - counts_before["forwards"]


OVERLAPPING = [np.arange(0, 60), np.arange(30, 70)[::-1], np.repeat(np.arange(20, 40), 2)]


def ask_at_once(pool, view, expected) -> None:
    """Have three clients want much the same labels at once."""
    clients = [PoolClient(pool.address) for _ in OVERLAPPING]
    asked = [c.ask("a", view.take(r), SIGNALS) for c, r in zip(clients, OVERLAPPING, strict=True)]
    for answer, mine in zip(asked, OVERLAPPING, strict=True):
        got = answer.result()[SIGNALS[0].name].values
        np.testing.assert_array_equal(got, expected[mine])
    for client in clients:
        client.close()


def test_a_label_that_several_want_at_once_is_asked_of_one_replica(spec, view, expected, tmp_path):
    """Also where nothing in the store keeps two replicas from computing it both."""
    faulty.plan("sleep", "0.3")
    unclaimed = replace(spec, adaptor="tests.teachers.unclaimed:faulty")
    with TeacherPool([hosted(unclaimed, 2)], str(tmp_path)) as pool:
        pool.wait()
        ask_at_once(pool, view, expected)
        assert pool.metrics()["a"]["forwards"] == 70
    assert sum(map(sum, faulty.forwards().values())) == 70
    assert len(faulty.forwards()) == 2


def test_what_two_clients_want_at_once_is_computed_once(pool, view, expected):
    before = pool.metrics()["a"]
    faulty.plan("sleep", "0.05")
    ask_at_once(pool, view, expected)
    assert computed(before, pool) == 70
    assert sum(map(sum, faulty.forwards().values())) == 70
    assert len(faulty.forwards()) == 2
    metrics = pool.metrics()["a"]
    assert metrics["retried"] == metrics["losses"] == 0
    assert metrics["queued_tokens"] == 0
    assert 0.3 < metrics["batch_fill"] <= 1.0
    assert metrics["payload_bytes"] == metrics["forwards"] * 3 * 4
    assert metrics["tokens_per_s"] > 0


def test_health_is_reported_during_a_forward(pool, view):
    client = PoolClient(pool.address)
    faulty.plan("sleep", "3")
    asked = client.ask("a", view.take(np.array([70, 71])), SIGNALS)
    while not faulty.forwards():
        time.sleep(0.02)
    took = []
    for _ in range(5):
        start = time.monotonic()
        handles: list[Any] = list(pool.address.teachers["a"].replicas)
        calls = [h.health.options(concurrency_group="control").remote() for h in handles]
        forwards_s = [health["forward_s"] for health in ray.get(calls)]
        took.append(time.monotonic() - start)
        assert max(forwards_s) > 0
    assert np.median(took) < 0.2
    asked.result()
    client.close()


def test_a_slow_replica_does_less_and_nothing_is_done_twice(pool, view, expected, tmp_path):
    before = pool.metrics()["a"]
    faulty.plan("sleep", "0.1")
    faulty.plan("slow", "1")
    rows = np.arange(80, len(view))
    EncodedSplit({"student": view}, np.zeros(len(view), np.int64)).save(tmp_path / "split")
    done: list[int] = []
    start = time.monotonic()
    pool.fill([PrecomputeRequest("a", str(tmp_path / "split"), "student", view, rows, done.append)])
    took = time.monotonic() - start
    assert sum(done) == computed(before, pool) == len(rows)
    by_replica = sorted(map(len, faulty.forwards().values()))
    # Shared evenly, each would have half of them; on a busy machine the fast one isn't that fast.
    assert by_replica[0] * 2 < by_replica[1]
    assert took < 0.7 * sum(by_replica) / 2  # what halves would take, at 1 s a forward
    client = PoolClient(pool.address)
    got = client.ask("a", view.take(rows), SIGNALS).result()[SIGNALS[0].name].values
    client.close()
    np.testing.assert_array_equal(got, expected[rows])
    assert computed(before, pool) == len(rows)


def test_more_than_a_clients_credit_waits_its_turn(pool, view, expected, monkeypatch):
    monkeypatch.setattr("raybrew.teachers.client.MAX_REQUESTS", 1)
    faulty.plan("sleep", "0.05")
    client = PoolClient(pool.address)
    rows = np.arange(70, 80)
    asked = [client.ask("a", view.take(rows[i : i + 1]), SIGNALS) for i in range(10)]
    for row, answer in zip(rows, asked, strict=True):
        got = answer.result()[SIGNALS[0].name].values
        np.testing.assert_array_equal(got, expected[row : row + 1])
    client.close()
    # One request at a time of this client: nothing could be batched.
    assert all(n == 1 for each in faulty.forwards().values() for n in each)


def test_flushed_labels_are_found_by_every_process(pool, spec, view, store):
    client = PoolClient(pool.address)
    client.ask("a", view.take(np.arange(0, 70)), SIGNALS).result()
    client.flush()
    client.close()
    on_disk = LabelStore(store).signal(spec.fingerprint, SIGNALS[0])
    assert on_disk.contains(view.keys[:70]).all()


def test_what_was_computed_before_an_interrupt_is_not_computed_again(
    pool, spec, view, store, tmp_path
):
    others = encode(make_tokenizer(), make_data(80, seed=3)["text"][:], None, 32)[0]
    _, first = np.unique(others.keys, axis=0, return_index=True)
    new = others.take(np.sort(first))
    rows = np.flatnonzero(
        ~LabelStore(store).signal(spec.fingerprint, SIGNALS[0]).contains(new.keys)
    )
    EncodedSplit({"student": new}, np.zeros(len(new), np.int64)).save(tmp_path / "split")
    before = pool.metrics()["a"]
    done: list[int] = []

    def interrupt(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    def request(rows: np.ndarray, on_done) -> PrecomputeRequest:
        return PrecomputeRequest("a", str(tmp_path / "split"), "student", new, rows, on_done)

    with pytest.raises(KeyboardInterrupt):
        pool.fill([request(rows, interrupt)])
    kept = LabelStore(store).signal(spec.fingerprint, SIGNALS[0]).contains(new.keys[rows])
    assert sum(done) <= kept.sum() < len(rows)
    pool.fill([request(rows[~kept], done.append)])
    # What an interrupted request computed is kept, and its replica counts it.
    assert computed(before, pool) == len(rows)
    stored = LabelStore(store).signal(spec.fingerprint, SIGNALS[0])
    assert stored.contains(new.keys[rows]).all()


def test_two_pools_that_want_the_same_labels_compute_each_once(
    pool, spec, view, expected, tmp_path
):
    """One fills, the other fills and is asked at the same time: two runs on one store."""
    faulty.plan("sleep", "0.02")
    store, place = str(tmp_path / "store"), str(tmp_path / "split")
    EncodedSplit({"student": view}, np.zeros(len(view), np.int64)).save(Path(place))
    one, other = (TeacherPool([hosted(spec, 1)], store) for _ in range(2))
    done: dict[TeacherPool, int] = {one: 0, other: 0}
    with one, other, ThreadPoolExecutor(3) as threads:
        for each in (one, other):
            each.wait()

        def fill(mine: TeacherPool) -> None:
            def note(count: int) -> None:
                done[mine] += count

            mine.fill([PrecomputeRequest("a", place, "student", view, np.arange(len(view)), note)])

        client = PoolClient(other.address)
        filling = [threads.submit(fill, each) for each in (one, other)]
        answer = client.ask("a", view.take(np.arange(len(view))[::-1]), SIGNALS).result()
        np.testing.assert_array_equal(answer[SIGNALS[0].name].values, expected[::-1])
        for each in filling:
            each.result()
        client.close()
        forwards = [each.metrics()["a"]["forwards"] for each in (one, other)]
    assert list(done.values()) == [len(view)] * 2
    assert sum(forwards) == sum(map(sum, faulty.forwards().values())) == len(view)
    assert min(forwards) > 0  # one alone would prove nothing


def test_a_teacher_whose_replicas_always_die_is_named(spec, view, tmp_path):
    for number in range(40):
        faulty.plan(f"kill-{number:02}")
    with TeacherPool([hosted(spec, 1)], str(tmp_path)) as dying:
        dying.wait()
        client = PoolClient(dying.address)
        asked = client.ask("a", view.take(np.arange(3)), SIGNALS)
        with pytest.raises(TeacherError, match=r"'a'.*(no replica|replicas were lost)"):
            asked.result()
        client.close()
        assert [event.fault for event in dying.take_events()].count("replica lost") >= 4


def test_a_replica_that_memory_is_too_small_for_computes_less_at_once(spec, view, tmp_path):
    faulty.plan("memory", "3")
    store, rows = str(tmp_path / "store"), np.arange(40)
    EncodedSplit({"student": view}, np.zeros(len(view), np.int64)).save(tmp_path / "split")
    done: list[int] = []
    with TeacherPool([hosted(spec, 1)], store) as pool:
        pool.wait()
        pool.fill(
            [PrecomputeRequest("a", str(tmp_path / "split"), "student", view, rows, done.append)]
        )
        events = [event for event in pool.take_events() if event.fault == "replica failed"]
        assert pool.metrics()["a"]["forwards"] == sum(done) == len(rows)
    assert LabelStore(store).signal(spec.fingerprint, SIGNALS[0]).contains(view.keys[rows]).all()
    # Of 64 tokens a forward 32, then perhaps 16: processes of their own each, that go on.
    assert 1 <= len(events) <= 3
    assert all("out of memory" in event.what for event in events)
    assert "at most 32 tokens a forward" in events[0].what or len(faulty.forwards()) > 1
    assert len(faulty.forwards()) == len(events) + 1


def test_one_bad_question_fails_after_two_replicas_and_those_beside_it_are_answered(
    spec, view, expected, tmp_path
):
    faulty.plan("sleep", "0.05")
    with TeacherPool([hosted(spec, 2)], str(tmp_path)) as pool:
        pool.wait()
        for number in range(3):  # the question's first forward, and its next two, alone
            faulty.plan(f"device-{number}")
        client = PoolClient(pool.address)
        bad = client.ask("a", view.take(np.arange(1)), SIGNALS)
        with pytest.raises(TeacherError, match=r"'a'.*failed . times on a request of 1 examples"):
            bad.result()
        got = client.ask("a", view.take(np.arange(1, 20)), SIGNALS).result()
        np.testing.assert_array_equal(got[SIGNALS[0].name].values, expected[1:20])
        client.close()


def test_a_teacher_that_left_gives_its_resources_back(spec, view, tmp_path):
    config = spec.config.model_copy(update={"name": "b"})
    other = replace(spec, config=config, fingerprint="other")
    teachers = [hosted(each, 1) for each in (spec, other)]
    with TeacherPool(teachers, str(tmp_path)) as pool:
        pool.wait()
        client = PoolClient(pool.address)
        for name in "ab":
            client.ask(name, view.take(np.arange(4)), SIGNALS).result()
        pool.flush()
        group, b = pool._groups["a"], pool._groups["b"]
        assert pool.release("a")
        assert pool.teachers == {"b"}
        wait_for(lambda: placement_group_table(group)["state"] == "REMOVED", 30)
        assert placement_group_table(b)["state"] == "CREATED"
        with pytest.raises(LabelsLost, match="'a'"):
            client.ask("a", view.take(np.arange(4, 8)), SIGNALS).result()
        client.ask("b", view.take(np.arange(4, 8)), SIGNALS).result()
        assert {n: f["forwards"] for n, f in pool.metrics().items()} == {"a": 4, "b": 8}
        client.close()
