"""Several processes on one store, each with a replica of the same teacher: one forward a label."""

import multiprocessing
import multiprocessing.process
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from raybrew.data.encoding import EncodedView, encode
from raybrew.data.payload import Payload, Signal
from raybrew.data.split import Padding
from raybrew.labels.store import LabelStore
from raybrew.teachers.replica import Replica
from tests.made import made_teacher, make_data, make_tokenizer

FORK = multiprocessing.get_context("fork")
SIGNALS = (Signal(), Signal(dtype="float16"))
SPEC = made_teacher("t", "nowhere", "f1", "sequence-classification", "float32", 40, Padding(0), 1)
HANG_S = 60.0


def made_view() -> EncodedView:
    view = encode(make_tokenizer(), make_data(90)["text"][:], None, 32)[0]
    _, first = np.unique(view.keys, axis=0, return_index=True)
    return view.take(np.sort(first))


VIEW = made_view()


class Slow:
    """Stands in for a model: takes its time, and writes down what it was asked for."""

    def __init__(self, log: Path):
        self._log = log

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        with self._log.open("ab") as file:
            file.write(view.keys.tobytes())
        time.sleep(0.003)
        values = (view.keys % np.uint64(1009)).astype(np.float32)
        return {s.name: Payload(values.astype(s.dtype)) for s in signals}


def ask_all(folder: Path, number: int, seed: int) -> None:
    """Ask for every label, in an order of one's own; the whole life of a process."""
    draw = random.Random(seed * 10 + number)
    replica = Replica(SPEC, SIGNALS, str(folder / "store"), Slow(folder / f"log-{number}"))
    (folder / f"began-{number}").touch()
    while len(list(folder.glob("began-*"))) < 3:  # on a busy machine one could be done before
        time.sleep(0.001)
    rows = draw.sample(range(len(VIEW)), len(VIEW))
    while rows:
        count = draw.randrange(1, 12)
        mine, rows = np.array(rows[:count]), rows[count:]
        got = replica.ask(VIEW.take(mine), SIGNALS[: draw.randrange(1, 3)]).payloads
        expected = (VIEW.keys[mine] % np.uint64(1009)).astype(np.float32)
        np.testing.assert_array_equal(got[SIGNALS[0].name].values, expected)
        # Not every process is always at work, nor writes what it has whenever it can.
        if draw.random() < 0.1:
            replica.flush()
    replica.flush()


def start(folder: Path, number: int, seed: int) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=ask_all, args=(folder, number, seed))
    process.start()
    return process


def computed(folder: Path) -> dict[bytes, int]:
    """Return how often each key was computed."""
    counts: dict[bytes, int] = {}
    for log in folder.glob("log-*"):
        content = log.read_bytes()
        for place in range(0, len(content), 16):
            key = content[place : place + 16]
            counts[key] = counts.get(key, 0) + 1
    return counts


def end(processes: list[multiprocessing.process.BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(HANG_S)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


@pytest.mark.parametrize("seed", range(4))
def test_processes_that_want_the_same_labels_at_once_compute_each_once(tmp_path, seed, monkeypatch):
    # All ask for both signals: who has one and not the other computes again, as it must.
    monkeypatch.setattr("tests.teachers.test_side_by_side.SIGNALS", SIGNALS[:1])
    assert end([start(tmp_path, number, seed) for number in range(3)]) == [0, 0, 0]
    counts = computed(tmp_path)
    assert len(counts) == len(VIEW)
    assert set(counts.values()) == {1}
    assert len(list(tmp_path.glob("log-*"))) > 1  # one alone would prove nothing
    assert not list(tmp_path.rglob("*.claim"))


@pytest.mark.parametrize("seed", range(3))
def test_what_a_process_took_along_is_computed_by_another(tmp_path, seed):
    processes = [start(tmp_path, number, seed) for number in range(3)]
    while len(computed(tmp_path)) < 30:
        time.sleep(0.001)
    victim = processes[seed]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    codes = end(processes)
    assert codes[seed] == -signal.SIGKILL
    assert [code for code in codes if code != -signal.SIGKILL] == [0, 0]
    assert len(computed(tmp_path)) == len(VIEW)
    store = LabelStore(tmp_path / "store").signal("f1", SIGNALS[0])
    assert store.contains(VIEW.keys).all()


def test_filling_leaves_what_another_is_at_and_waits_for_it_last(tmp_path):
    one = Replica(SPEC, SIGNALS[:1], str(tmp_path), Slow(tmp_path / "log-1"))
    other = Replica(SPEC, SIGNALS[:1], str(tmp_path), Slow(tmp_path / "log-2"))
    one.fill_view(VIEW.take(np.arange(10)))
    answer = other.fill_view(VIEW.take(np.arange(5, 20)), patient=False)
    assert answer.computed.tolist() == [False] * 5 + [True] * 10
    assert answer.left.tolist() == [0, 1, 2, 3, 4]
    assert other.metrics()["hits"] == 0

    def wait() -> None:
        waited.append(other.fill_view(VIEW.take(np.arange(5, 20))))

    waited: list = []
    thread = threading.Thread(target=wait)
    thread.start()
    until = time.monotonic() + HANG_S
    while not one.wanted():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert not waited
    assert other.lease_wait_s() > 0
    one.flush()
    thread.join(HANG_S)
    assert other.lease_wait_s() == 0
    assert not waited[0].computed.any()
    assert not len(waited[0].left)
    assert set(computed(tmp_path).values()) == {1}
