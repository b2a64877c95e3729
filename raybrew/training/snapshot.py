"""A checkpoint: everything that the rest of a run depends on, in files that hold no code.

    student/               what transformers loads, see models/student_files.py
    adapters.safetensors   adapters and heads, of a student with adapters; student/ has them merged
    projections.safetensors  modules that are trained besides the student: projections of matches,
                           the balancer of tasks
    optimizer.safetensors  the optimizer's tensors
    state.json             step, optimizer settings, schedule, loss scale, metrics, best score

    training ──► Snapshot (copies, in memory) ──► write ──► folder ──► load_checkpoint ──► training

Dropout needs no generator state: each step seeds it with (seed, step, rank).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raybrew.errors import CheckpointError
from raybrew.models.students import load_student, save_student
from raybrew.models.trainable import load_trainable_state, merged_state, trainable_state
from raybrew.training.checkpoints import STATE
from raybrew.training.optimization import Optimization

STUDENT = "student"
_OPTIMIZER = "optimizer.safetensors"
_EXTRA_MODULES = "projections.safetensors"
_ADAPTERS = "adapters.safetensors"
_FORMAT = "raybrew-checkpoint-1"


@dataclass
class TrainerState:
    """How far a run is, besides its tensors.

    Args:
        step: steps that were taken.
        metrics: last losses and evaluation.
        score: of an evaluation at this very step; None if there was none.
        best_score: highest score so far; None before the first evaluation.
        best_step: when it was reached.
        skipped: steps that were skipped, as their gradient was not finite.
        skipped_in_a_row: how many of them came one after another, the last time.
        last_skipped: the last of them.
    """

    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    best_score: float | None = None
    best_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    last_skipped: int = 0

    def record_score(self, score: float | None) -> None:
        """Record the score of an evaluation at this step; None if there was none."""
        self.score = score
        is_best = self.best_score is None or (score is not None and score > self.best_score)
        if score is not None and isfinite(score) and is_best:
            self.best_score, self.best_step = score, self.step
        if self.best_score is not None:
            self.metrics |= {"best/score": self.best_score, "best/step": float(self.best_step)}


class Snapshot:
    """A checkpoint in memory: a copy, which later steps don't change.

    Args:
        model: the bare model, not its DDP wrapper.
        tokenizer: saved with it.
        optimization: optimizer, schedule and loss scale.
        state: how far the run is.
        extra_modules: what is trained besides the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        optimization: Optimization,
        state: TrainerState,
        extra_modules: nn.Module,
    ):
        self._model, self._tokenizer, self.step = model, tokenizer, state.step
        tensors, settings = optimization.state()
        progress = asdict(state)
        # The name in the file is that of the format.
        progress["figures"] = progress.pop("metrics")
        files = {
            _ADAPTERS: trainable_state(model),
            _EXTRA_MODULES: extra_modules.state_dict(),
            _OPTIMIZER: tensors,
        }
        self._weights = _copied(merged_state(model))
        self._files = {name: _copied(each) for name, each in files.items()}
        self._record = {"format": _FORMAT, "progress": progress, **settings}

    def write(self, folder: Path) -> None:
        """Write the checkpoint into an empty folder."""
        save_student(self._model, self._tokenizer, folder / STUDENT, self._weights)
        for name, tensors in self._files.items():
            if tensors or name == _OPTIMIZER:
                save_file(tensors, folder / name)
        (folder / STATE).write_text(json.dumps(self._record, indent=1))


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimization: Optimization,
    extra_modules: nn.Module,
    *,
    own_settings: bool = False,
) -> TrainerState:
    """Restore a checkpoint into the objects that `Snapshot` copied it from.

    Args:
        folder: of the checkpoint.
        model: the bare model.
        optimization: optimizer, schedule and loss scale.
        extra_modules: what is trained besides the model.
        own_settings: keep this optimizer's options and peak learning rates.

    Returns:
        How far the run was.

    Raises:
        CheckpointError: a file is missing, damaged, or of another version or model.
    """
    try:
        record = json.loads((folder / STATE).read_text())
        if record["format"] != _FORMAT:
            raise CheckpointError(
                f"checkpoint {folder}: expected format {_FORMAT}, got {record['format']}"
            )
        tensors = load_file(folder / _OPTIMIZER)
        if trainable_state(model):
            load_trainable_state(model, load_file(folder / _ADAPTERS))
        else:
            load_student(model, folder / STUDENT)
        _load_extra_modules(folder, extra_modules)
        optimization.load_state(tensors, record, own_settings=own_settings)
        progress = dict(record["progress"])
        return TrainerState(metrics=progress.pop("figures"), **progress)
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


def _load_extra_modules(folder: Path, extra_modules: nn.Module) -> None:
    expected = extra_modules.state_dict()
    path = folder / _EXTRA_MODULES
    found = load_file(path) if path.exists() else {}
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    if shapes != {name: tuple(value.shape) for name, value in found.items()}:
        raise CheckpointError(
            f"checkpoint {folder}: expected the projections of this job's matches, and what its "
            f"balancing keeps ({', '.join(expected) or 'none'}), got {', '.join(found) or 'none'}; "
            "resume with the matches and the mixing that the run began with"
        )
    extra_modules.load_state_dict(found)


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
