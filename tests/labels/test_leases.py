"""Leases: one process at a time for each key, also after deaths and errors of the disk."""

import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.errors import LabelError
from raybrew.labels import leases as leases_module
from raybrew.labels.leases import Leases
from tests.labels.stores import make_keys
from tests.refusing import drop_privileges, in_child

FORK = multiprocessing.get_context("fork")


def acquire(leases: Leases, *numbers: int, waiting: bool = False) -> list[bool]:
    return leases.acquire(make_keys(*numbers), waiting=waiting).mine.tolist()


def test_what_one_has_leased_is_the_others_after_its_release(tmp_path):
    one, other = Leases(tmp_path), Leases(tmp_path)
    assert acquire(one, 1, 2, 3) == [True] * 3
    assert acquire(other, 2, 4, 3) == [False, True, False]
    assert acquire(one, 2, 4) == [True, False]  # its own stay its own
    one.release()
    taken = other.acquire(make_keys(2, 3))
    assert taken.mine.all()
    assert taken.released
    assert not other.acquire(make_keys(2)).released  # nothing was released since
    assert acquire(one, 1, 2) == [True, False]


def test_a_release_of_ones_own_is_no_news_and_another_s_is(tmp_path):
    one, other = Leases(tmp_path), Leases(tmp_path)
    for leases in (one, other):
        leases.acquire(make_keys(0))
    one.release()
    one.release()  # there was nothing to release
    assert not one.acquire(make_keys(1)).released
    other.acquire(make_keys(2))
    other.release()
    one.release()
    assert one.acquire(make_keys(1)).released


def test_who_waits_is_heard_by_the_one_it_waits_for(tmp_path):
    one, second, other = Leases(tmp_path), Leases(tmp_path), Leases(tmp_path)
    acquire(one, 1)
    acquire(second, 2)
    acquire(other, 1, 3)
    assert not one.wanted()
    acquire(other, 1, 3, waiting=True)
    assert (one.wanted(), second.wanted(), other.wanted()) == (True, False, False)
    one.release()
    assert not one.wanted()
    acquire(one, 5)
    assert not one.wanted()
    for leases in (one, second, other):
        leases.release()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def hold(folder: Path, numbers: list[int]) -> None:
    leases = Leases(folder)
    acquire(leases, *numbers)
    (folder / "held").touch()
    time.sleep(3600)


def test_the_leases_of_a_process_that_is_killed_are_anybody_s(tmp_path):
    holder = FORK.Process(target=hold, args=(tmp_path, [1, 2]))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    leases = Leases(tmp_path)
    assert acquire(leases, 1, 2, 3, waiting=True) == [False, False, True]
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    taken = leases.acquire(make_keys(1, 2))
    assert taken.mine.all()
    assert taken.released  # it may have written some of them
    leases.release()
    assert {path.name for path in tmp_path.iterdir()} == {"held", "lock"}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["acquire", "wait", "release", "die"]),
            st.integers(0, 2),
            st.lists(st.integers(0, 15), min_size=1, max_size=8),
        ),
        max_size=30,
    )
)
def test_no_key_is_ever_two_processes(actions):
    """Random sequences of what three processes do, against a dictionary."""
    with tempfile.TemporaryDirectory() as folder:
        leases = [Leases(Path(folder)) for _ in range(3)]
        owner: dict[int, int] = {}
        for action, who, numbers in actions:
            if action in ("acquire", "wait"):
                mine = acquire(leases[who], *numbers, waiting=action == "wait")
                assert mine == [owner.get(number, who) == who for number in numbers]
                owner |= {n: who for n, is_mine in zip(numbers, mine, strict=True) if is_mine}
                continue
            if action == "release":
                leases[who].release()
            else:
                leases[who] = Leases(Path(folder))  # what its old self had locked is closed
            owner = {number: each for number, each in owner.items() if each != who}


@contextmanager
def small_disk() -> Iterator[None]:
    """Let no file grow, as the operating system says it: not even one with pytest's output."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_on_a_full_disk_nothing_is_leased_and_the_run_goes_on(tmp_path, caplog):
    leases = Leases(tmp_path)
    with small_disk():
        taken = acquire(leases, 1, 2), acquire(leases, 3)
        leases.release()
    assert taken == ([True, True], [True])
    assert sum("can't hold leases" in record.getMessage() for record in caplog.records) == 1


def test_what_a_full_disk_took_only_half_of_is_leased_once_there_is_room(tmp_path):
    leases, other = Leases(tmp_path), Leases(tmp_path)
    with small_disk():
        acquire(leases, 1, 2)
    assert [path.stat().st_size for path in tmp_path.glob("*.claim")] == [0]
    assert acquire(leases, 1, 2) == [True, True]
    assert acquire(other, 1, 2) == [False, False]


def test_keys_that_are_leased_once_more_are_written_once(tmp_path):
    leases = Leases(tmp_path)
    acquire(leases, 1, 2)
    acquire(leases, 2, 3, 1)
    assert [path.stat().st_size for path in tmp_path.glob("*.claim")] == [3 * 16]


def test_a_lease_that_cant_be_locked_leaves_no_file(tmp_path, monkeypatch, caplog):
    lock = leases_module.fcntl.flock

    def refuse(file: FileIO, operation: int) -> None:
        if operation == leases_module.fcntl.LOCK_EX | leases_module.fcntl.LOCK_NB:
            raise OSError(leases_module.errno.ENOLCK, "no locks available")
        lock(file, operation)

    monkeypatch.setattr(leases_module.fcntl, "flock", refuse)
    assert acquire(Leases(tmp_path), 1) == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert "no locks available" in caplog.text


def test_where_files_have_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(leases_module.errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(leases_module.fcntl, "flock", refuse)
    assert acquire(Leases(tmp_path), 1) == [True]
    assert "may be computed more than once" in caplog.text


def test_leases_that_may_not_be_listed_are_not_taken_for_none(tmp_path):
    acquire(Leases(tmp_path), 1)
    (tmp_path / "lock").chmod(0o666)
    tmp_path.chmod(0o333)  # files can be made and opened in it, and not be listed

    def acquire_without_privileges() -> None:
        drop_privileges(tmp_path)
        with pytest.raises(LabelError, match=r"can't be written to.*Permission denied.*right to"):
            acquire(Leases(Path()), 1)

    in_child(acquire_without_privileges)
    tmp_path.chmod(0o755)


def test_a_folder_that_can_t_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LabelError, match=r"file/claims can't be written to"):
        Leases(tmp_path / "file" / "claims").acquire(make_keys(1))


def test_keys_are_read_whole_however_many_there_are(tmp_path):
    one, other = Leases(tmp_path), Leases(tmp_path)
    numbers = range(20_000)
    assert one.acquire(make_keys(*numbers)).mine.all()
    assert not other.acquire(make_keys(*numbers[::7])).mine.any()
    one.acquire(make_keys(*(number + 20_000 for number in numbers)))
    assert not other.acquire(make_keys(*(number + 20_000 for number in numbers[::7]))).mine.any()
