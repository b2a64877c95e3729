"""The checkpoints of a run: whole or not there, damaged ones set aside, best and last kept."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

import raybrew as rb
from raybrew.training.checkpoints import Checkpoints, CheckpointSchedule
from raybrew.training.world import World
from tests.refusing import drop_privileges, in_child


def fill(score: float | None = None, text: str = "weights"):
    def write(folder: Path) -> None:
        (folder / "student").mkdir()
        (folder / "student" / "model.safetensors").write_text(text)
        (folder / "state.json").write_text(json.dumps({"progress": {"score": score}}))

    return write


def names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.paths()]


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.newest() is None
    assert checkpoints.best() is None
    for step, score in [(10, 0.5), (20, 0.9), (30, None), (40, 0.9), (50, float("nan")), (60, 0.1)]:
        checkpoints.write(step, fill(score))
    assert names(checkpoints) == ["step-00000020", "step-00000050", "step-00000060"]
    assert checkpoints.best() == tmp_path / "c" / "step-00000020"
    assert checkpoints.newest() == tmp_path / "c" / "step-00000060"
    assert not list((tmp_path / "c").glob(".tmp-*"))


def test_as_many_as_asked_for_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in range(1, 7):
        checkpoints.write(step, fill())
    assert names(checkpoints) == ["step-00000004", "step-00000005", "step-00000006"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a flipped bit": lambda f: flip(f / "student" / "model.safetensors"),
    "cut short": lambda f: os.truncate(f / "student" / "model.safetensors", 3),
    "a file missing": lambda f: (f / "state.json").unlink(),
    "a file too many": lambda f: (f / "optimizer.safetensors").write_text("x"),
    "no checksums": lambda f: (f / "checksums.json").unlink(),
    "checksums of another form": lambda f: (f / "checksums.json").write_text("[1]"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_newest_one_is_set_aside_for_the_one_before(tmp_path, case):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, fill())
    newest = checkpoints.write(2, fill())
    DAMAGE[case](newest)
    messages: list[str] = []
    assert checkpoints.newest(messages.append) == tmp_path / "step-00000001"
    assert len(messages) == 1
    assert "step-00000002" in messages[0]
    assert (tmp_path / "step-00000002.damaged").is_dir()
    # The run gets there again, and this time it is whole.
    checkpoints.write(2, fill())
    assert checkpoints.newest(messages.append) == tmp_path / "step-00000002"
    assert len(messages) == 1
    # It may be damaged once more.
    DAMAGE[case](newest)
    assert checkpoints.newest(messages.append) == tmp_path / "step-00000001"


@pytest.mark.parametrize(
    "name", ["checksums.json", "state.json", "student", "student/model.safetensors", "."]
)
def test_one_that_may_not_be_read_is_an_error_and_no_older_one_is_taken(tmp_path, name):
    tmp_path.chmod(0o755)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, fill(0.9))
    place = checkpoints.write(2, fill()) / name
    mode = place.stat().st_mode
    place.chmod(0)

    def look_as_nobody() -> str:
        drop_privileges(tmp_path)
        with pytest.raises(rb.CheckpointError) as caught:
            Checkpoints(Path()).newest()
        return str(caught.value)

    message = in_child(look_as_nobody)
    place.chmod(mode)
    assert "step-00000002: can't be read, and is left as it is" in message
    assert "Permission denied" in message
    assert "--resume" in message
    assert checkpoints.newest() == tmp_path / "step-00000002"


def test_a_folder_of_checkpoints_that_may_not_be_listed_is_not_taken_for_none(tmp_path):
    tmp_path.chmod(0o755)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.write(1, fill())
    (tmp_path / "c").chmod(0)

    def look_as_nobody() -> None:
        drop_privileges(tmp_path)
        with pytest.raises(rb.CheckpointError, match=r"can't be listed.*Permission denied"):
            Checkpoints(Path("c")).newest()

    in_child(look_as_nobody)


def test_the_best_one_stays_where_no_file_can_be_opened(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    best = checkpoints.write(1, fill(0.9))
    for step in (2, 3):
        checkpoints.write(step, fill(0.1))
    read = Path.read_text

    def refuse(path: Path, *arguments: str) -> str:
        if path.name == "state.json" and path.parent == best:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return read(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        for look in (checkpoints.best, lambda: checkpoints.write(4, fill(0.1))):
            with pytest.raises(rb.CheckpointError, match=r"Too many open files.*ulimit -n"):
                look()
    assert checkpoints.best() == best


def test_only_damaged_ones_are_an_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        flip(checkpoints.write(step, fill()) / "student" / "model.safetensors")
    with pytest.raises(rb.CheckpointError, match=r"step-00000002.*step-00000001.*the beginning"):
        checkpoints.newest(lambda _: None)


def test_what_differs_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, fill())
    flip(checkpoints.write(2, fill()) / "student" / "model.safetensors")
    messages: list[str] = []
    checkpoints.newest(messages.append)
    assert "is damaged: student/model.safetensors differ from what was written" in messages[0]


def test_a_step_that_is_written_once_more_replaces_what_there_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, fill(text="first"))
    place = checkpoints.write(1, fill(text="second"))
    assert (place / "student" / "model.safetensors").read_text() == "second"
    assert names(checkpoints) == ["step-00000001"]


def test_a_checkpoint_has_its_name_only_once_all_of_it_is_on_disk(tmp_path, monkeypatch):
    synced: list[str] = []
    before_rename: list[str] = []
    sync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        before_rename.extend(synced)
        synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    handles = os.listdir("/proc/self/fd")
    place = Checkpoints(tmp_path).write(1, fill())
    assert os.listdir("/proc/self/fd") == handles
    made = {str(path.relative_to(place)) for path in place.rglob("*")} | {"."}
    temporary = os.path.commonpath(before_rename)
    assert {os.path.relpath(path, temporary) for path in before_rename} == made
    assert synced == [str(tmp_path)]


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.write(1, fill())

    def full(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(rb.CheckpointError, match=r"step 2.*No space left.*--resume"):
        checkpoints.write(2, full)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001"]


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, fill())
    fill()(_made(tmp_path / ".tmp-1234"))
    assert checkpoints.newest() == tmp_path / "step-00000001"
    checkpoints.clean()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def _made(path: Path) -> Path:
    path.mkdir()
    return path


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_cadence_in_steps_and_minutes():
    clock = _Clock()
    by_steps = CheckpointSchedule(3, None, World(), clock)
    assert [step for step in range(1, 10) if by_steps.due(step)] == [3, 6, 9]
    both = CheckpointSchedule(100, 2.0, World(), clock)
    due = []
    for step in range(1, 111):
        clock.now += 5.0
        if both.due(step):
            due.append(step)
    # Every 24 steps of 5 s; a checkpoint by steps counts too.
    assert due == [24, 48, 72, 96, 100]
    assert CheckpointSchedule(1, None, World()).is_set
    assert not CheckpointSchedule(None, None, World()).is_set
    assert not CheckpointSchedule(None, None, World()).due(1)


def test_a_disk_that_is_full_under_safetensors_is_our_error(tmp_path):
    def full(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    with pytest.raises(rb.CheckpointError, match=r"step 8.*No space left.*--resume"):
        Checkpoints(tmp_path).write(8, full)
    assert list(tmp_path.iterdir()) == []


def test_the_student_that_is_kept_is_of_a_whole_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    assert checkpoints.kept("best") is None
    for step, score in [(10, 0.9), (20, 0.7), (30, 0.1)]:
        checkpoints.write(step, fill(score))
    best, next_best, last = checkpoints.paths()
    assert checkpoints.kept("best") == best
    assert checkpoints.kept("last") == last
    flip(best / "student" / "model.safetensors")
    assert checkpoints.kept("best") == next_best
    assert not best.exists()
    assert best.with_name(f"{best.name}.damaged").is_dir()
    checkpoints.remove()
    assert checkpoints.kept("best") is None


def test_without_scores_the_last_one_is_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.write(step, fill())
    assert checkpoints.kept("best") == tmp_path / "step-00000002"
