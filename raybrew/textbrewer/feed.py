"""What a training reads: batches of one loader, or of several tasks' loaders, drawn batch by batch.

The draws are TextBrewer's: from NumPy's global generator, with probability |loader|^tau.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybrew.textbrewer.stream import Stream

Postprocessor = Callable[[Any], Any]


@dataclass
class Feed:
    """Batches, each with the name of its task.

    Args:
        streams: by task.
        postprocessors: by task, what a batch goes through.
        draws: whether the task is drawn; else there is one.
        probabilities: of the tasks in order; all alike if None.
    """

    streams: Mapping[str, Stream]
    postprocessors: Mapping[str, Postprocessor]
    draws: bool = False
    probabilities: Sequence[float] | None = None

    def next(self) -> tuple[str, Any]:
        """Return a task and its next batch."""
        names = list(self.streams)
        number = 0
        if self.draws:
            number = int(np.random.choice(len(names), p=self.probabilities))
        name = names[number]
        batch = self.streams[name].next()
        postprocess = self.postprocessors.get(name)
        return name, batch if postprocess is None else postprocess(batch)

    def position(self) -> dict[str, Any]:
        """Return where each stream is, for JSON."""
        return {name: stream.position() for name, stream in self.streams.items()}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Bring every stream to a position; the generators are to be restored after it."""
        for name, stream in self.streams.items():
            stream.seek(position[name])


def task_probabilities(loaders: Mapping[str, Any], tau: float) -> list[float] | None:
    """Return |loader|^tau / Σ of each loader; None where the length of one isn't known."""
    if not all(hasattr(loader, "__len__") for loader in loaders.values()):
        return None
    sizes = [float(len(loader)) ** tau for loader in loaders.values()]
    return [size / sum(sizes) for size in sizes]
