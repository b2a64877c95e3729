"""The student on disk, as transformers loads it.

    one task        student/         the model of the task, with its tokenizer
    several tasks   student/         the trunk alone, with the tokenizer
                    student/<task>/  the whole model of the task, trunk and head, with the tokenizer
                    student/tasks.json  the tasks, in the job's order

Every folder stands by itself: it can be moved, uploaded or loaded without the others, which is
worth the trunk's repeated bytes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import CheckpointError, ConfigError
from raybrew.models.students import MultiTaskStudent

_TASKS = "tasks.json"
_TRUNK = "trunk."


def save_student(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a student into an empty folder.

    Args:
        model: a model of transformers, or a `MultiTaskStudent`.
        tokenizer: saved with each model.
        folder: where.
        weights: of an earlier moment, by the names of the model's state; the model's own if None.
    """
    state = model.state_dict() if weights is None else weights
    for part, place, prefix in _parts(model, folder):
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        part.save_pretrained(place, state_dict=own)
        tokenizer.save_pretrained(str(place))
    if isinstance(model, MultiTaskStudent):
        (folder / _TASKS).write_text(json.dumps({"tasks": list(model.names)}) + "\n")


def load_student(model: nn.Module, folder: Path) -> None:
    """Read the weights that `save_student` wrote back into the same student.

    Raises:
        CheckpointError: weights of another model.
        OSError: a file is missing.
    """
    for part, place, prefix in _parts(model, folder):
        if prefix == _TRUNK:  # also in the models of the tasks
            continue
        missing, unexpected = part.load_state_dict(
            load_file(place / "model.safetensors"), strict=False
        )
        lacking = sorted(set(missing) - set(part.all_tied_weights_keys or {}))
        if lacking or unexpected:
            raise CheckpointError(
                f"checkpoint {place}: expected this model's weights, got {unexpected or 'none'} "
                f"besides and {lacking or 'none'} missing"
            )


def _parts(model: nn.Module, folder: Path) -> Iterator[tuple[PreTrainedModel, Path, str]]:
    """Yield each model that is saved, its folder, and how the names of its weights begin."""
    if isinstance(model, MultiTaskStudent):
        assert isinstance(model.trunk, PreTrainedModel), type(model.trunk)
        yield model.trunk, folder, _TRUNK
        for number, name in enumerate(model.names):
            yield model.model_of(number), folder / name, f"tasks.{number}."
    else:
        assert isinstance(model, PreTrainedModel), type(model)
        yield model, folder, ""


def task_folders(student: Path) -> dict[str, Path]:
    """Return the folder of each task's model; empty where there is one task.

    Raises:
        ConfigError: tasks.json is no list of tasks.
    """
    path = student / _TASKS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected the tasks of a student, got: {error}") from None
    names = found.get("tasks") if isinstance(found, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise ConfigError(f'{path}: expected {{"tasks": [names]}}, got {str(found)[:80]}')
    return {name: student / name for name in names}
