"""From a checkpoint of TextBrewer's, `gs120.pkl`, to a folder that transformers and jobs load.

    python -m raybrew.textbrewer.convert gs120.pkl --model bert-base-cased --out student/

The folder serves as the `model` of a job's teacher or student. TextBrewer writes the weights alone,
so the config and the tokenizer are those of the model that the script began with.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from raybrew.errors import CheckpointError, RaybrewError
from raybrew.models.students import save_student
from raybrew.tasks import task_type_of

_SHOWN = 8
_BUFFERS = ("position_ids", "token_type_ids")
"""Of older transformers' models; they hold no weights."""


def convert_checkpoint(
    checkpoint: str | Path,
    model: str,
    out: str | Path,
    *,
    task_type: str = "sequence-classification",
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Write the weights of a `gs<step>.pkl` as a model of transformers, with its tokenizer.

    Args:
        checkpoint: the file.
        model: folder or hub id with the config and the tokenizer of the script's model.
        out: a new folder.
        task_type: says which class the model is of.
        changes: entries of the config that differ, such as {"num_hidden_layers": 3}.

    Raises:
        CheckpointError: no dict of tensors, or weights of another model; names them.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the unpickling of such a file meets
        raise CheckpointError(f"{checkpoint}: expected weights by name, got {error!r}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{checkpoint}: expected weights by name, got {type(state).__name__}")
    weights = {name.removeprefix("module."): value for name, value in state.items()}
    head = weights.get("classifier.bias", weights.get("qa_outputs.bias"))
    given = {} if head is None else {"num_labels": len(head)}
    config = AutoConfig.from_pretrained(model, **{**given, **(changes or {})})
    built = task_type_of(task_type).model_class.from_config(config)
    theirs, own = _shapes(weights), _shapes(built.state_dict())
    wrong = [
        f"{name}: {theirs.get(name)} in the file, {own.get(name)} in the model"
        for name in sorted({*theirs, *own})
        if theirs.get(name) != own.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} others" if len(wrong) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint}: expected the weights of {type(built).__name__} of {model}, got others: "
            f"{'; '.join(wrong[:_SHOWN])}{more}; give the task type, and --set what differs"
        )
    built.load_state_dict({name: weights[name] for name in own}, strict=False)
    tokenizer, folder = AutoTokenizer.from_pretrained(model), Path(out)
    folder.mkdir(parents=True)
    save_student(built, tokenizer, folder)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {
        name: list(value.shape)
        for name, value in state.items()
        if name.rpartition(".")[2] not in _BUFFERS
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint from the command line."""
    parser = argparse.ArgumentParser(prog="python -m raybrew.textbrewer.convert")
    parser.add_argument("checkpoint", help="gs<step>.pkl")
    parser.add_argument("--model", required=True, help="folder or hub id of config and tokenizer")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--task-type", default="sequence-classification")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    changes = {}
    for each in given.set:
        key, _, value = each.partition("=")
        try:
            changes[key] = json.loads(value)
        except ValueError:
            changes[key] = value
    try:
        convert_checkpoint(
            given.checkpoint, given.model, given.out, task_type=given.task_type, changes=changes
        )
    except (RaybrewError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{given.out}: written; give it as the model of a teacher or a student")
    return 0


if __name__ == "__main__":
    sys.exit(main())
