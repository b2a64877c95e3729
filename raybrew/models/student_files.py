"""The student on disk, as transformers loads it.

    one task        student/         the model of the task, with its tokenizer
    several tasks   student/         the trunk alone, with the tokenizer
                    student/<task>/  the whole model of the task, trunk and head, with the tokenizer
                    student/tasks.json  the tasks, in the job's order

Every folder stands by itself: it can be moved, uploaded or loaded without the others, which is
worth the trunk's repeated bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import CheckpointError, ConfigError
from raybrew.models.students import MultiTaskStudent

_TASKS = "tasks.json"


def save_student(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a student into an empty folder.

    Args:
        model: a model of transformers, or a `MultiTaskStudent`.
        tokenizer: saved beside each model.
        folder: where.
        weights: of an earlier moment, by the names of the model's state; the model's own if None.
    """
    state = model.state_dict() if weights is None else weights
    if isinstance(model, MultiTaskStudent):
        _save(model.trunk, tokenizer, folder, _below("trunk.", state))
        for number, name in enumerate(model.names):
            part = _below(f"tasks.{number}.", state)
            _save(model.model_of(number), tokenizer, folder / name, part)
        (folder / _TASKS).write_text(json.dumps({"tasks": list(model.names)}) + "\n")
    else:
        _save(model, tokenizer, folder, dict(state))


def load_student(model: nn.Module, folder: Path) -> None:
    """Read the weights that `save_student` wrote back into the same student.

    Raises:
        CheckpointError: weights of another model.
        OSError: a file is missing.
    """
    if isinstance(model, MultiTaskStudent):
        for number, name in enumerate(model.names):
            _load(model.model_of(number), folder / name)
    else:
        _load(model, folder)


def task_folders(student: Path) -> dict[str, Path]:
    """Return the folder of each task's model; empty where there is one task.

    Raises:
        ConfigError: its list of tasks is none.
    """
    path = student / _TASKS
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected the tasks of a student, got: {error}") from None
    names = said.get("tasks") if isinstance(said, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise ConfigError(f'{path}: expected {{"tasks": [names]}}, got {str(said)[:80]}')
    return {name: student / name for name in names}


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _save(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, state: dict[str, Tensor]
) -> None:
    assert isinstance(model, PreTrainedModel), type(model)
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(str(folder))


def _load(model: nn.Module, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    if set(missing) - tied or unexpected:
        raise CheckpointError(
            f"checkpoint {folder}: expected this model's weights, got {unexpected or 'none'} "
            f"besides and {sorted(set(missing) - tied) or 'none'} missing"
        )
