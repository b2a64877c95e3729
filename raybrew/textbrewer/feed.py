"""What a training reads and when it steps: batches by position, the generators, the schedule."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from raybrew.errors import ConfigError, DataError
from raybrew.textbrewer.configurations import TrainingConfig
from raybrew.textbrewer.label_cache import batch_digest


class TrainingSchedule:
    """When a training steps, saves and ends, which follows from the batches, and where it is.

    Args:
        config: batches of a step, and when checkpoints are due.
        loader: the batches.
        num_epochs: passes over the loader.
        num_steps: optimizer steps, in their place.

    Attributes:
        num_epochs: passes over the loader; 1 where `num_steps` is given.
        per_epoch: batches of an epoch, the last of which may make no whole step.
        accumulation: batches of an optimizer step.
        checkpoints: steps with a checkpoint after them.
        done: batches that were trained on.

    Raises:
        ConfigError: neither is given, the loader has no length, or an epoch is less than a step.
    """

    def __init__(
        self, config: TrainingConfig, loader: Any, num_epochs: int | None, num_steps: int | None
    ):
        self.accumulation, self.done = config.gradient_accumulation_steps, 0
        if num_steps is not None:
            steps = int(num_steps)
            self.num_epochs, self.per_epoch = 1, steps * self.accumulation
            every = config.ckpt_steps or max(1, steps)
            self.checkpoints = {*range(every, steps + 1, every), steps}
            return
        if num_epochs is None:
            raise ConfigError("train: expected num_epochs or num_steps, got neither")
        if not hasattr(loader, "__len__"):
            raise ConfigError("train: expected num_steps with a dataloader without a length")
        self.num_epochs, self.per_epoch = int(num_epochs), len(loader)
        steps = self.steps_per_epoch
        if not steps:
            raise ConfigError(
                f"gradient_accumulation_steps: expected no more than the {len(loader)} batches of "
                f"an epoch, got {self.accumulation}"
            )
        # As in TextBrewer, the place 0 of an epoch is its end.
        parts, every = config.ckpt_frequency, config.ckpt_epoch_frequency
        places = {int(steps * part / parts) or steps for part in range(parts)}
        epochs = {*range(every - 1, self.num_epochs, every), self.num_epochs - 1}
        self.checkpoints = {epoch * steps + place for epoch in epochs for place in places}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.per_epoch // self.accumulation

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def step(self) -> int:
        """Optimizer steps that were taken."""
        epochs, rest = divmod(self.done, self.per_epoch)
        return epochs * self.steps_per_epoch + rest // self.accumulation


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


class Stream:
    """Batches of a loader without end, and the way back to any of them.

    A loader's order is drawn when a pass begins. A position is the state of the generators at that
    moment and the number of batches taken since.

    Args:
        loader: a `DataLoader`, or whatever can be iterated over again and again.
        postprocess: what every batch goes through; None for nothing.

    Attributes:
        begin_pass: called with the number of each pass before it begins, from 0.
        keeps: whether the batches of one pass are kept, and shuffled for each pass, as TextBrewer
            does with `is_caching_logits`.
    """

    def __init__(self, loader: Iterable[Any], postprocess: Callable[[Any], Any] | None = None):
        self._loader, self._postprocess = loader, postprocess
        self.begin_pass: Callable[[int], None] = lambda number: None
        self.keeps = False
        self._own: Any = None
        self.rewind()

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
        own = getattr(self._loader, "generator", None)
        if own is not None and position["own"] is not None:
            own.set_state(position["own"])
        self._begin(position["pass"], position["order"])
        return (
            all(self._take() for _ in range(position["taken"]))
            and batch_digest(self._last) == position["last"]
        )

    def rewind(self) -> None:
        """Go to the beginning."""
        self._batches: Iterator[Any] | None = None
        self._drawn_from: dict[str, Any] | None = None
        self._last: Any = None
        self._pass, self._taken = -1, 0
        self._kept: list[Any] = []
        self._order: list[int] = []

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
            own = getattr(self._loader, "generator", None)
            self._own = None if own is None else own.get_state()
            self._drawn_from = generator_states()
        if not self.keeps:
            self._batches = iter(self._loader)
        else:
            if not self._kept:
                self._kept = [self._changed(batch) for batch in self._loader]
                self._order = list(range(len(self._kept)))
            if order is None:
                random.shuffle(self._order)
            else:
                self._order = [each for each in order if each < len(self._kept)]
            self._batches = iter([self._kept[each] for each in self._order])
        self._pass, self._taken = number, 0

    def _changed(self, batch: Any) -> Any:
        return batch if self._postprocess is None else self._postprocess(batch)


class Feed:
    """What a training reads: batches of one task, or of several, drawn batch by batch.

    The draws are TextBrewer's: from NumPy's global generator.

    Args:
        streams: by task; one under "" where there are no tasks.
        probabilities: of the tasks in order; all alike if None.
    """

    def __init__(self, streams: Mapping[str, Stream], probabilities: Sequence[float] | None = None):
        self._streams, self._probabilities = streams, probabilities

    def next(self) -> tuple[str, Any]:
        """Return a task and its next batch."""
        names = list(self._streams)
        name = names[0]
        if name:
            name = names[int(np.random.choice(len(names), p=self._probabilities))]
        return name, self._streams[name].next()

    def position(self) -> dict[str, Any]:
        """Return where each stream is."""
        return {name: stream.position() for name, stream in self._streams.items()}

    def seek(self, position: Mapping[str, Any]) -> bool:
        """Bring every stream to a position; return whether all read the same there."""
        return all(stream.seek(position[name]) for name, stream in self._streams.items())

    def rewind(self) -> None:
        """Bring every stream to its beginning."""
        for stream in self._streams.values():
            stream.rewind()
