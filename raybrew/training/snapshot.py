"""A checkpoint: everything that the rest of a run depends on, in files that hold no code.

    student/               what transformers loads, see models/student_files.py
    adapters.safetensors   adapters and heads, of a student with adapters; student/ has them merged
    projections.safetensors  what brings its features to the teachers' sizes, where matches do
    optimizer.safetensors  the optimizer's tensors
    state.json             step, optimizer settings, schedule, loss scale, figures, best score

    training ──► Snapshot (copies, in memory) ──► write ──► folder ──► load_checkpoint ──► training

Dropout needs no generator state: each step seeds it with (seed, step, rank).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase

from raybrew.errors import CheckpointError
from raybrew.models.student_files import load_student, save_student
from raybrew.models.trainable import load_trainable_state, merged_state, trainable_state
from raybrew.training.optimization import joined_state, plain, split_state

STUDENT = "student"
_OPTIMIZER, _STATE = "optimizer.safetensors", "state.json"
_PROJECTIONS = "projections.safetensors"
_ADAPTERS = "adapters.safetensors"
_FORMAT = "raybrew-checkpoint-1"


@dataclass(frozen=True)
class TrainerState:
    """How far a run is, besides its tensors.

    Args:
        step: steps that were taken.
        figures: last losses and evaluation.
        score: of an evaluation at this very step; None if there was none.
        best_score: highest score so far; None before the first evaluation.
        best_step: when it was reached.
        skipped: steps that were left out, as their gradient was not finite.
        skipped_in_a_row: how many of them came one after another, the last time.
        last_skipped: the last of them.
    """

    step: int
    figures: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    best_score: float | None = None
    best_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    last_skipped: int = 0

    @property
    def best(self) -> dict[str, float]:
        """The best evaluation so far, as figures; none before the first."""
        if self.best_score is None:
            return {}
        return {"best/score": self.best_score, "best/step": float(self.best_step)}

    def scored(self, step: int, score: float | None) -> "TrainerState":
        """Return the progress after a step whose evaluation, if any, had this score."""
        now = replace(self, score=score)
        if score is None or not isfinite(score):
            return now
        if self.best_score is not None and score <= self.best_score:
            return now
        return replace(now, best_score=score, best_step=step)


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory: later steps don't change it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    weights: dict[str, Tensor]
    adapters: dict[str, Tensor]
    projections: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that were taken."""
        return int(self.record["progress"]["step"])

    def write(self, folder: Path) -> None:
        """Write the checkpoint into an empty folder."""
        save_student(self.model, self.tokenizer, folder / STUDENT, self.weights)
        if self.adapters:
            save_file(self.adapters, folder / _ADAPTERS)
        if self.projections:
            save_file(self.projections, folder / _PROJECTIONS)
        save_file(self.optimizer, folder / _OPTIMIZER)
        (folder / _STATE).write_text(json.dumps(self.record, indent=1))


def snapshot(
    *,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    progress: TrainerState,
    projections: nn.Module | None = None,
    scaler: GradScaler | None = None,
) -> Snapshot:
    """Copy what a checkpoint holds.

    Args:
        model: the bare model, not its DDP wrapper.
        tokenizer: saved beside it.
        optimizer: its tensors and settings.
        scheduler: its position.
        progress: how far the run is.
        projections: of the student's matches.
        scaler: of fp16's losses; its state is empty with other precisions.
    """
    tensors, settings = split_state(optimizer)
    return Snapshot(
        model=model,
        tokenizer=tokenizer,
        weights=_copied(merged_state(model)),
        adapters=_copied(trainable_state(model)),
        projections={} if projections is None else _copied(projections.state_dict()),
        optimizer=_copied(tensors),
        record={
            "format": _FORMAT,
            "progress": asdict(progress),
            "optimizer": settings,
            "scheduler": plain(scheduler.state_dict()),
            "scaler": {} if scaler is None else scaler.state_dict(),
        },
    )


def load_checkpoint(
    folder: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    projections: nn.Module | None = None,
    scaler: GradScaler | None = None,
) -> TrainerState:
    """Bring model, projections, optimizer, schedule and scaler to where the checkpoint left them.

    Returns:
        How far the run was.

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
        if trainable_state(model):
            load_trainable_state(model, load_file(folder / _ADAPTERS))
        else:
            load_student(model, folder / STUDENT)
        _load_projections(folder, projections)
        optimizer.load_state_dict(joined_state(record["optimizer"], tensors))
        scheduler.load_state_dict(record["scheduler"])
        if scaler is not None:
            scaler.load_state_dict(record["scaler"])
        return TrainerState(**record["progress"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        # What torch and transformers raise at tensors of another shape, or state of another form.
        raise CheckpointError(f"checkpoint {folder}: can't be read back: {error!r}") from error


def read_score(folder: Path) -> float | None:
    """Return the score of the evaluation at a checkpoint's step, if it had one."""
    return json.loads((folder / _STATE).read_text())["progress"]["score"]


def _load_projections(folder: Path, projections: nn.Module | None) -> None:
    expected = {} if projections is None else projections.state_dict()
    path = folder / _PROJECTIONS
    found = load_file(path) if path.exists() else {}
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != {name: tuple(value.shape) for name, value in found.items()}:
        raise CheckpointError(
            f"checkpoint {folder}: expected the projections of this job's matches, and what its "
            f"balancing keeps ({', '.join(expected) or 'none'}), got {', '.join(found) or 'none'}; "
            "resume with the matches and the mixing that the run began with"
        )
    if projections is not None:
        projections.load_state_dict(found)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Tied tensors are one copy, as transformers looks for them by where they are in memory.
    copies: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    result = {}
    for name, value in state.items():
        place = (value.data_ptr(), tuple(value.shape))
        if not value.numel() or place not in copies:
            copies[place] = value.detach().to("cpu", copy=True).contiguous()
        result[name] = copies[place]
    return result
