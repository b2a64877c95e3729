"""The folder of a run's checkpoints: when one is due, writing, checking, pruning.

    <run>/checkpoints/step-00000120/     see `snapshot`
                          checksums.json of every file in it: written last
                      step-00000080.damaged   set aside
                      .tmp-*                  being written

A folder gets its name only when all of it is on disk. So whichever process dies, and whatever Ray
knows of it, the newest folder whose checksums match is where the run continues. One that the system
refuses to read is not damaged: an older one in its place would lose steps without need.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import xxhash
from safetensors import SafetensorError

from raybrew.data.files import explain
from raybrew.errors import CheckpointError
from raybrew.training.world import World

logger = logging.getLogger(__name__)

STATE = "state.json"
CHECKSUMS = "checksums.json"
_NAME = re.compile(r"step-(\d{8,})")
_DAMAGE = (
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    ValueError,
    KeyError,
    TypeError,
)


class Checkpoints:
    """The checkpoints in a folder.

    Args:
        folder: made with the first of them.
        keep: how many of the newest are kept, besides the best; two, so that there is one before
            a damaged one.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self._keep = folder, keep

    def write(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint, then delete those that are not kept.

        Args:
            step: steps that were taken.
            write: fills an empty folder.

        Raises:
            CheckpointError: it can't be written, e.g. the disk is full; nothing of it is left.
        """
        temporary = self.folder / f".tmp-{uuid.uuid4().hex}"
        target = self.folder / f"step-{step:08d}"
        with _system_errors(f"checkpoint of step {step}: {self.folder} can't be written"):
            try:
                temporary.mkdir(parents=True)
                write(temporary)
                sums = {name: _checksum(temporary / name) for name in _files(temporary)}
                (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=1))
                _sync_all(temporary)
                # It was written before, and the run fell back to an earlier one since.
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
                _sync(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            self._prune()
        return target

    def newest(self, on_damage: Callable[[str], None] = logger.warning) -> Path | None:
        """Return the newest checkpoint that is whole; damaged ones are set aside.

        Args:
            on_damage: called with a message about each.

        Raises:
            CheckpointError: there are checkpoints, but all of them are damaged, or the system
                refuses to read one.
        """
        damaged = []
        for path in reversed(self.paths()):
            damage = _damage(path)
            if damage is None:
                return path
            damaged.append(damage)
            on_damage(f"{_set_aside(path, damage)}, the one before is taken")
        if damaged:
            raise CheckpointError(
                f"{self.folder}: expected a whole checkpoint, got only damaged ones: "
                f"{'; '.join(damaged)}. Delete the folder to start from the beginning"
            )
        return None

    def best(self) -> Path | None:
        """Return the checkpoint with the highest score; None if none has a score.

        Raises:
            CheckpointError: the system refuses to read one.
        """
        scored = [(_score(path), path) for path in self.paths()]
        known = [(score, path) for score, path in scored if score is not None and score == score]
        if not known:
            return None
        # The earliest of equals: a run's best is what nothing later exceeds.
        return max(known, key=lambda each: (each[0], -_step(each[1])))[1]

    def kept(self, which: Literal["best", "last"]) -> Path | None:
        """Return the checkpoint whose student a run keeps; None if there is none.

        Args:
            which: `best`: the one with the highest score, or the newest where none has a score;
                `last`: the newest. Damaged ones are set aside.

        Raises:
            CheckpointError: as `newest`.
        """
        newest = self.newest()
        while which == "best" and (best := self.best()) is not None:
            damage = _damage(best)
            if damage is None:
                return best
            logger.warning("%s, the next best is taken", _set_aside(best, damage))
        return newest

    def remove(self) -> None:
        """Delete all checkpoints, those that were set aside too."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def paths(self) -> list[Path]:
        """Return all checkpoints, the oldest first.

        Raises:
            CheckpointError: the system refuses to list them.
        """
        with _system_errors(f"checkpoints {self.folder}: can't be listed"):
            if not self.folder.is_dir():
                return []
            return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), key=_step)

    def clean(self) -> None:
        """Delete what killed processes left unfinished."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        paths = self.paths()
        keep = {*paths[-self._keep :], self.best()}
        for path in paths:
            if path not in keep:
                # Renamed first: half a checkpoint never has the name of one.
                doomed = path.with_name(f".tmp-{uuid.uuid4().hex}")
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def read_evaluation(folder: Path) -> dict[str, float]:
    """Return the metrics of the evaluation at a checkpoint's step, by `eval/…`."""
    found = json.loads((folder / STATE).read_text())["progress"]["figures"]
    return {name: value for name, value in found.items() if name.startswith("eval/")}


def read_score(folder: Path) -> float | None:
    """Return the score of the evaluation at a checkpoint's step, if it had one."""
    return json.loads((folder / STATE).read_text())["progress"]["score"]


@contextmanager
def _system_errors(what: str) -> Iterator[None]:
    """Turn an error of the operating system into a CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = explain(error) if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{what}: {reason}; then go on with --resume") from error


def _set_aside(path: Path, damage: str) -> str:
    """Rename a damaged checkpoint; return what to say of it."""
    aside = path.with_name(f"{path.name}.damaged")
    with _system_errors(f"checkpoint {damage}, and can't be set aside"):
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    return f"checkpoint {damage}; set aside as {aside.name}"


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files; None if they are as they were written."""
    with _system_errors(_unreadable(path)):
        try:
            sums = dict(json.loads((path / CHECKSUMS).read_text()))
            found = {name: _checksum(path / name) for name in _files(path) if name != CHECKSUMS}
            read_score(path)
        except _DAMAGE as error:
            return f"{path} is damaged and can't be read: {error!r}"
    if sums == found:
        return None
    wrong = sorted(name for name in {*sums, *found} if sums.get(name) != found.get(name))
    return f"{path} is damaged: {', '.join(wrong)} differ from what was written"


def _score(path: Path) -> float | None:
    # A damaged one is for `newest` to find.
    with _system_errors(_unreadable(path)):
        try:
            return read_score(path)
        except _DAMAGE:
            return None


def _unreadable(path: Path) -> str:
    return f"checkpoint {path}: can't be read, and is left as it is (delete it to do without it)"


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _files(folder: Path) -> list[str]:
    found = [
        Path(parent, name).relative_to(folder)
        for parent, _, names in os.walk(folder, onerror=_raise)
        for name in names
    ]
    return sorted(map(str, found))


def _raise(error: OSError) -> None:
    raise error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()  # type: ignore[arg-type]


def _sync_all(folder: Path) -> None:
    # Files first, then the folders that name them.
    for path in [*sorted(folder.rglob("*"), key=Path.is_dir), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class CheckpointWriter:
    """Writes checkpoints on a thread while training continues, one at a time.

    A context manager: when it ends without an error, everything is on disk.

    Args:
        checkpoints: where to.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="raybrew-checkpoint")
        self._writing: Future[Path] | None = None

    def submit(self, step: int, write: Callable[[Path], None]) -> None:
        """Start `Checkpoints.write` once the checkpoint before is on disk.

        Raises:
            CheckpointError: the one before could not be written.
        """
        self.wait()
        self._writing = self._pool.submit(self._checkpoints.write, step, write)

    def wait(self) -> None:
        """Return when everything that was submitted is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown()


class CheckpointSchedule:
    """Whether a checkpoint is due after a step: every so many steps or minutes, on all ranks alike.

    Args:
        every: steps between checkpoints.
        minutes: time between them, by the clock of rank 0.
        world: this rank.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        every: int | None,
        minutes: float | None,
        world: World,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._every, self._minutes, self._world = every, minutes, world
        self._clock = clock
        self._last = clock()

    @property
    def is_set(self) -> bool:
        """Whether the job asks for checkpoints at all."""
        return self._every is not None or self._minutes is not None

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step` steps; a collective with minutes."""
        by_steps = self._every is not None and step % self._every == 0
        if self._minutes is None:
            return by_steps
        late = self._clock() - self._last >= self._minutes * 60
        due = bool(self._world.broadcast(float(by_steps or late)))
        if due:
            self._last = self._clock()
        return due
