"""What a training needs to go on where it was stopped: batches by position, and its state on disk.

    <output_dir>/gs120.pkl                        the student's weights, as TextBrewer writes them
                 resume/step-00000120/            all else; deleted when the training ends
                     training.pt  state.json

It is written whole or not at all, is read back without running code, and names what it belongs to:
the settings, the student's first weights, the teachers, and the data.
"""

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PickleError
from typing import Any

import numpy as np
import torch

from raybrew.data.files import explain
from raybrew.errors import CheckpointError, DataError
from raybrew.textbrewer.label_cache import batch_digest
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.world import World

logger = logging.getLogger(__name__)

_FORMAT = "raybrew-textbrewer-2"
_TRAINING, _STATE = "training.pt", "state.json"


def generator_states() -> dict[str, Any]:
    """Return the states of PyTorch's, NumPy's and Python's generators, as plain values."""
    name, keys, *rest = np.random.get_state()
    # Asking begins a context on every GPU, also for a script that computes on the CPU.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def restore_generators(state: Mapping[str, Any]) -> None:
    """Bring all of them back to where they were."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    random.setstate(state["python"])


@dataclass
class Stream:
    """Batches of a loader without end, and the way back to any of them.

    A loader's order is drawn when a pass begins. A position is the state of the generators at that
    moment and the number of batches taken since.

    Args:
        loader: a `DataLoader`, or whatever can be iterated over again and again.
        postprocess: what every batch goes through; None for nothing.
        begin_pass: called with the number of each pass before it begins, from 0.
        keeps: whether the batches of one pass are kept, and shuffled for each pass, as TextBrewer
            does with `is_caching_logits`.
    """

    loader: Iterable[Any]
    postprocess: Callable[[Any], Any] | None = None
    begin_pass: Callable[[int], None] = lambda number: None
    keeps: bool = False
    _batches: Iterator[Any] | None = field(default=None, init=False)
    _kept: list[Any] = field(default_factory=list, init=False)
    _order: list[int] = field(default_factory=list, init=False)
    _drawn_from: dict[str, Any] | None = field(default=None, init=False)
    _own: Any = field(default=None, init=False)
    _pass: int = field(default=-1, init=False)
    _taken: int = field(default=0, init=False)
    _last: Any = field(default=None, init=False)

    def next(self) -> Any:
        """Return the next batch; begins the next pass where one ends.

        Raises:
            DataError: a pass without a batch.
        """
        for _ in range(2):
            if self._batches is None:
                self._begin(self._pass + 1)
            if self._take():
                return self._last if self.keeps else self._changed(self._last)
            self._batches = None
        raise DataError(
            "dataloader: expected at least one batch in each pass, got none; a generator can be "
            "read only once: give a DataLoader or a list"
        )

    def position(self) -> dict[str, Any]:
        """Return where it is, and what it read last."""
        return {
            "pass": self._pass,
            "taken": self._taken,
            "drawn_from": self._drawn_from,
            "own": self._own,
            "order": self._order,
            "last": batch_digest(self._last),
        }

    def seek(self, position: Mapping[str, Any]) -> bool:
        """Go to a position; the generators are to be restored after it.

        Returns:
            Whether it reads the same there as it did.
        """
        self.rewind()
        if position["drawn_from"] is None:
            return True
        restore_generators(position["drawn_from"])
        own = getattr(self.loader, "generator", None)
        if own is not None and position["own"] is not None:
            own.set_state(position["own"])
        self._begin(position["pass"], position["order"])
        return (
            all(self._take() for _ in range(position["taken"]))
            and batch_digest(self._last) == position["last"]
        )

    def rewind(self) -> None:
        """Go to the beginning."""
        self._batches = self._drawn_from = self._last = None
        self._pass, self._taken, self._kept, self._order = -1, 0, [], []

    def _take(self) -> bool:
        assert self._batches is not None, "a pass has begun"
        for batch in self._batches:
            self._last = batch
            self._taken += 1
            return True
        return False

    def _begin(self, number: int, order: Sequence[int] | None = None) -> None:
        self.begin_pass(number)
        if not self.keeps or not self._kept:
            own = getattr(self.loader, "generator", None)
            self._own = None if own is None else own.get_state()
            self._drawn_from = generator_states()
        if not self.keeps:
            self._batches = iter(self.loader)
        else:
            if not self._kept:
                self._kept = [self._changed(batch) for batch in self.loader]
                self._order = list(range(len(self._kept)))
            if order is None:
                random.shuffle(self._order)
            else:
                self._order = [each for each in order if each < len(self._kept)]
            self._batches = iter([self._kept[each] for each in self._order])
        self._pass, self._taken = number, 0

    def _changed(self, batch: Any) -> Any:
        return batch if self.postprocess is None else self.postprocess(batch)


@dataclass
class Feed:
    """What a training reads: batches of one task, or of several, drawn batch by batch.

    The draws are TextBrewer's: from NumPy's global generator.

    Args:
        streams: by task; one under "" where there are no tasks.
        probabilities: of the tasks in order; all alike if None.
    """

    streams: Mapping[str, Stream]
    probabilities: Sequence[float] | None = None

    def next(self) -> tuple[str, Any]:
        """Return a task and its next batch."""
        names = list(self.streams)
        name = names[0]
        if name:
            name = names[int(np.random.choice(len(names), p=self.probabilities))]
        return name, self.streams[name].next()

    def position(self) -> dict[str, Any]:
        """Return where each stream is."""
        return {name: stream.position() for name, stream in self.streams.items()}

    def seek(self, position: Mapping[str, Any]) -> bool:
        """Bring every stream to a position; return whether all read the same there."""
        return all(stream.seek(position[name]) for name, stream in self.streams.items())

    def rewind(self) -> None:
        """Bring every stream to its beginning."""
        for stream in self.streams.values():
            stream.rewind()


class Resumption:
    """The way back into a training.

    Args:
        output_dir: of the script.
        settings: what has to be the same for it to go on.
        parts: by name, what has a state: models, optimizer, scheduler, scaler.
        feed: the batches.
        world: this process among those that train.
    """

    def __init__(
        self,
        output_dir: Path,
        settings: Mapping[str, str],
        parts: Mapping[str, Any],
        feed: Feed,
        world: World,
    ):
        self._checkpoints = Checkpoints(output_dir / "resume")
        self._settings, self._feed, self._world = dict(settings), feed, world
        self._parts = {k: each for k, each in parts.items() if hasattr(each, "load_state_dict")}
        self._is_ours = self._is_off = False

    def save(self, step: int, values: Mapping[str, Any]) -> None:
        """Write where a training is; a collective where several processes train.

        Args:
            step: optimizer steps that were taken.
            values: plain ones, that `restore` returns.

        Raises:
            CheckpointError: it can't be written.
        """
        mine = {"generators": generator_states(), "feed": self._feed.position()}
        ranks = self._world.all_gather(mine)
        if self._world.rank != 0 or self._is_off:
            return
        if not self._is_ours:
            # What another training has left would be taken for the newest.
            self.done()
            self._is_ours = True
        training = {"values": dict(values), "ranks": ranks, "states": self._states()}
        progress = {"step": step, "score": None}
        record = {"format": _FORMAT, "progress": progress, "settings": self._settings}

        def write(folder: Path) -> None:
            torch.save(training, folder / _TRAINING)
            (folder / _STATE).write_text(json.dumps(record, indent=1))

        try:
            self._checkpoints.write(step, write)
        except (PickleError, AttributeError, TypeError) as error:
            # The training goes on, as in TextBrewer, which writes nothing of the kind.
            self._is_off = True
            logger.warning(
                "the state of the optimizer or of the scheduler can't be written (%s): this "
                "training begins again if it is stopped; with resume=False nothing is tried",
                error,
            )

    def restore(self) -> Mapping[str, Any] | None:
        """Bring a training to where an earlier one was stopped, if it is the same training.

        Returns:
            The values that were saved with it; None if there is nothing to go on with.

        Raises:
            CheckpointError: it can't be read back.
        """
        folder = self._checkpoints.newest()
        if folder is None:
            return None
        before = generator_states()
        with _readable(folder):
            record = json.loads((folder / _STATE).read_text())
            changed, training = self._changed(record), {}
            if not changed:
                # Objects in a state are of the script's own classes, which may be read.
                with torch.serialization.safe_globals(list(_classes_in(self._states()))):
                    training = torch.load(folder / _TRAINING, "cpu", weights_only=True)
                if not self._feed.seek(training["ranks"][self._world.rank]["feed"]):
                    changed = ["data: other batches now"]
            # All processes begin at the same step.
            changed = [each for found in self._world.all_gather(changed) for each in found]
            if not changed:
                for name, part in self._parts.items():
                    part.load_state_dict(training["states"][name])
                restore_generators(training["ranks"][self._world.rank]["generators"])
        if changed:
            self._feed.rewind()
            restore_generators(before)
            logger.warning(
                "%s holds another training than this, which was stopped (%s): this one begins at "
                "step 0. A student with weights that are drawn is the same if the script calls "
                "torch.manual_seed before it builds it",
                folder,
                "; ".join(changed),
            )
            return None
        self._is_ours = True
        step = record["progress"]["step"]
        logger.warning("going on from step %d of a training that was stopped", step)
        return training["values"]

    def done(self) -> None:
        """Forget it: the training has ended, and the next one begins at its own beginning."""
        if self._world.rank == 0:
            shutil.rmtree(self._checkpoints.folder, ignore_errors=True)

    def _states(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def _changed(self, record: Mapping[str, Any]) -> list[str]:
        if record.get("format") != _FORMAT:
            return [f"format {record.get('format')} then, {_FORMAT} now"]
        was, now = record["settings"], self._settings
        return [
            f"{key}: {was.get(key)} then, {now.get(key)} now"
            for key in sorted({*was, *now})
            if was.get(key) != now.get(key)
        ]


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Its checksums were right a moment ago, so nothing is to be deleted.
        raise CheckpointError(f"{folder}: can't be read back: {explain(error)}") from error
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, PickleError) as error:
        raise CheckpointError(
            f"{folder}: can't be read back: {error!r}; delete it to begin again"
        ) from error


def _classes_in(value: Any) -> set[type]:
    if isinstance(value, Mapping | list | tuple):
        each = value.values() if isinstance(value, Mapping) else value
        return set().union(*map(_classes_in, each))
    plain = isinstance(value, torch.Tensor | bool | int | float | str | bytes | type(None))
    return set() if plain else {type(value)}
