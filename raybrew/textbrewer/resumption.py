"""What a training needs to go on where it was stopped: written beside TextBrewer's checkpoints.

    <output_dir>/gs120.pkl                        the student's weights, as TextBrewer writes them
                 resume/step-00000120/            all else; deleted when the training ends
                     model.safetensors  projections.safetensors  optimizer.safetensors  state.json

It holds no code, is written whole or not at all, and names the settings that it belongs to.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raybrew.data.files import explain
from raybrew.errors import CheckpointError
from raybrew.textbrewer.loop import Loop
from raybrew.textbrewer.rng import generators, restore_generators
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.optimization import joined_state, plain, split_state
from raybrew.training.world import World

logger = logging.getLogger(__name__)

_FORMAT = "raybrew-textbrewer-1"
_MODEL, _PROJECTIONS = "model.safetensors", "projections.safetensors"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"


@dataclass
class Resumption:
    """The way back into a training.

    Args:
        output_dir: of the script.
        settings: what has to be the same for it to go on.
        model: the bare student.
        projections: what learns beside it.
        world: this process among those that train.
    """

    output_dir: Path
    settings: Mapping[str, str]
    model: nn.Module
    projections: nn.Module
    world: World
    _is_ours: bool = field(default=False, init=False)

    def save(self, loop: Loop) -> None:
        """Write where a training is; a collective where several processes train.

        Raises:
            CheckpointError: it can't be written.
        """
        ranks = self.world.all_gather({"generators": generators(), "feed": loop.feed.position()})
        if self.world.rank != 0:
            return
        if not self._is_ours:
            # What another training has left would be taken for the newest.
            self.done()
            self._is_ours = True
        tensors, optimizer = split_state(loop.optimizer)
        scheduled = hasattr(loop.scheduler, "state_dict")
        record = {
            "format": _FORMAT,
            "progress": {"step": loop.step, "score": None},
            "batches": loop.done,
            "settings": dict(self.settings),
            "ranks": ranks,
            "optimizer": optimizer,
            "scheduler": plain(loop.scheduler.state_dict()) if scheduled else None,
            "precision": loop.precision.state(),
        }

        def write(folder: Path) -> None:
            save_file(_copied(self.model.state_dict()), folder / _MODEL)
            save_file(_copied(self.projections.state_dict()), folder / _PROJECTIONS)
            save_file(_copied(tensors), folder / _OPTIMIZER)
            (folder / _STATE).write_text(json.dumps(record))

        self._checkpoints.write(loop.step, write)

    def restore(self, loop: Loop) -> bool:
        """Bring a training to where an earlier one of the same settings was stopped.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: it can't be read back.
        """
        folder = self._checkpoints.newest()
        if folder is None:
            return False
        try:
            record = json.loads((folder / _STATE).read_text())
            changed = self._changed(record)
            if changed:
                logger.warning(
                    "%s holds a training that was stopped, of other settings (%s): beginning anew",
                    folder,
                    "; ".join(changed),
                )
                return False
            self._load(folder, record, loop)
        except OSError as error:
            # Its checksums were right a moment ago, so nothing is to be deleted.
            raise CheckpointError(f"{folder}: can't be read back: {explain(error)}") from error
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: can't be read back: {error!r}; delete it to begin anew"
            ) from error
        self._is_ours = True
        logger.warning("going on from step %d of a training that was stopped", loop.step)
        return True

    def done(self) -> None:
        """Forget: the training has ended, and the next one begins anew."""
        if self.world.rank == 0:
            shutil.rmtree(self._checkpoints.folder, ignore_errors=True)

    def _load(self, folder: Path, record: dict[str, Any], loop: Loop) -> None:
        self.model.load_state_dict(load_file(folder / _MODEL))
        self.projections.load_state_dict(load_file(folder / _PROJECTIONS))
        tensors = load_file(folder / _OPTIMIZER)
        loop.optimizer.load_state_dict(joined_state(record["optimizer"], tensors))
        if record["scheduler"] is not None:
            loop.scheduler.load_state_dict(record["scheduler"])
        loop.precision.restore(record["precision"])
        mine = record["ranks"][self.world.rank]
        loop.feed.seek(mine["feed"])
        restore_generators(mine["generators"])
        loop.done = record["batches"]

    def _changed(self, record: dict[str, Any]) -> list[str]:
        if record.get("format") != _FORMAT:
            return [f"format {record.get('format')}"]
        was, now = record["settings"], dict(self.settings)
        return [
            f"{key}: {was.get(key)} then, {now.get(key)} now"
            for key in sorted({*was, *now})
            if was.get(key) != now.get(key)
        ]

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.output_dir / "resume")


def _copied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    # Apart from each other in memory, as the format asks; tied tensors are written twice.
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
