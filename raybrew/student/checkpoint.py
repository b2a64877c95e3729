"""A checkpoint: everything that the rest of a run depends on, in files that hold no code.

    student/               the model as transformers loads it, with its tokenizer
    projections.safetensors  what brings its features to the teachers' sizes, where matches do
    optimizer.safetensors  the optimizer's tensors
    state.json             step, optimizer settings, schedule, best score

Dropout needs no generator state: each step seeds it with (seed, step, rank).
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import CheckpointError

__all__ = ["STUDENT", "load_checkpoint", "save_checkpoint"]

STUDENT = "student"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"
_PROJECTIONS = "projections.safetensors"
_FORMAT = "raybrew-checkpoint-1"


def save_checkpoint(
    folder: Path,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    step: int,
    projections: nn.Module | None = None,
) -> None:
    """Write a checkpoint into an empty folder.

    Args:
        folder: where.
        model: the bare model, not its DDP wrapper.
        tokenizer: saved beside it.
        optimizer: its tensors and settings.
        scheduler: its position.
        step: steps that were taken.
        projections: of the student's matches.
    """
    model.save_pretrained(folder / STUDENT)
    tokenizer.save_pretrained(str(folder / STUDENT))
    projected = {} if projections is None else projections.state_dict()
    if projected:
        save_file({k: v.contiguous() for k, v in projected.items()}, folder / _PROJECTIONS)
    state = optimizer.state_dict()
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            target = tensors if isinstance(value, Tensor) else scalars
            target[f"{index}.{name}"] = value
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / _OPTIMIZER)
    record = {
        "format": _FORMAT,
        "step": step,
        "optimizer": {"scalars": scalars, "param_groups": state["param_groups"]},
        "scheduler": _plain(scheduler.state_dict()),
    }
    (folder / _STATE).write_text(json.dumps(record, indent=1))


def load_checkpoint(
    folder: Path,
    *,
    model: PreTrainedModel,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    projections: nn.Module | None = None,
) -> int:
    """Bring model, projections, optimizer and schedule to where the checkpoint left them.

    Returns:
        Steps that were taken.

    Raises:
        CheckpointError: a file is missing, damaged, or of another version or model.
    """
    try:
        record = json.loads((folder / _STATE).read_text())
        if record["format"] != _FORMAT:
            raise CheckpointError(
                f"checkpoint {folder}: expected format {_FORMAT}, got {record['format']}"
            )
        tensors = load_file(folder / _OPTIMIZER)
        weights = load_file(folder / STUDENT / "model.safetensors")
        missing, unexpected = model.load_state_dict(weights, strict=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        if set(missing) - tied or unexpected:
            raise CheckpointError(
                f"checkpoint {folder}: expected this model's weights, got {unexpected or 'none'} "
                f"besides and {sorted(set(missing) - tied) or 'none'} missing"
            )
        _load_projections(folder, projections)
        optimizer.load_state_dict(_optimizer_state(record["optimizer"], tensors))
        scheduler.load_state_dict(record["scheduler"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder}: can't be read back: {error!r}") from error
    return int(record["step"])


def _load_projections(folder: Path, projections: nn.Module | None) -> None:
    expected = {} if projections is None else projections.state_dict()
    path = folder / _PROJECTIONS
    found = load_file(path) if path.exists() else {}
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != {name: tuple(value.shape) for name, value in found.items()}:
        raise CheckpointError(
            f"checkpoint {folder}: expected the projections of this job's matches "
            f"({', '.join(expected) or 'none'}), got {', '.join(found) or 'none'}; resume with the "
            "matches that the run began with"
        )
    if projections is not None:
        projections.load_state_dict(found)


def _optimizer_state(record: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**record["scalars"], **tensors}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": record["param_groups"]}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    # Schedules of transformers carry their functions as None; tensors would not be plain.
    return {k: v.item() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
