"""What a training needs to go on where it was stopped.

    <output_dir>/gs120.pkl                        the student's weights, as TextBrewer writes them
                 resume/step-00000120/            all else; deleted when the training ends
                     training.pt  state.json

It is written whole or not at all, is read back without running code, and names what it belongs to:
the settings, the student's first weights, the teachers, and the data.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch

from raybrew.data.files import explain
from raybrew.errors import CheckpointError
from raybrew.textbrewer.feed import Feed, generator_states, restore_generators
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.world import World

logger = logging.getLogger(__name__)

_FORMAT = "raybrew-textbrewer-2"
_TRAINING, _STATE = "training.pt", "state.json"


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
