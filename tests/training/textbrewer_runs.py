"""Whole runs of the published textbrewer, on the batches of ours and from the same weights."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from raybrew.data.split import STUDENT_VIEW, EncodedSplit, Padding, collate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import textbrewer

Batch = dict[str, Tensor]


def adaptor(batch: Batch, outputs: Any) -> dict[str, Any]:
    found = {"logits": outputs.logits, "inputs_mask": batch["attention_mask"]}
    found["losses"] = nn.functional.cross_entropy(outputs.logits, batch["labels"])
    found["labels"] = batch["labels"]
    if outputs.get("hidden_states") is not None:
        found["hidden"] = outputs.hidden_states
    if outputs.get("attentions") is not None:
        found["attention"] = outputs.attentions
    return found


def adaptor_without_mask(batch: Batch, outputs: Any) -> dict[str, Any]:
    """As those of its published recipes."""
    return {name: each for name, each in adaptor(batch, outputs).items() if name != "inputs_mask"}


def batch_of(split: EncodedSplit, rows: Any) -> Batch:
    batch = collate(split.views[STUDENT_VIEW], rows, Padding(0))
    return {**batch, "labels": torch.from_numpy(split.labels[rows])}


def load_teacher(path: str) -> nn.Module:
    return AutoModelForSequenceClassification.from_pretrained(path, attn_implementation="eager")


def config(**changes: Any) -> Any:
    return textbrewer.DistillationConfig(**changes)


def run(
    kind: str,
    distillation: Mapping[str, Any],
    teachers: Any,
    student: nn.Module,
    batches: Any,
    folder: Path,
    *,
    num_steps: int,
    learning_rate: float,
    adaptors: tuple[Any, Any] = (adaptor, adaptor),
    projections: Sequence[nn.Module | None] = (),
    **arguments: Any,
) -> list[float]:
    """Train a copy of the student, and return the loss of every step."""
    student = copy.deepcopy(student)
    settings = textbrewer.TrainingConfig(
        log_dir=None, output_dir=str(folder), device="cpu", ckpt_steps=num_steps
    )
    distiller_class: Callable[..., Any] = getattr(textbrewer, kind)
    distiller = distiller_class(
        train_config=settings,
        distill_config=textbrewer.DistillationConfig.from_dict(dict(distillation)),
        model_T=teachers,
        model_S=student,
        adaptor_T=adaptors[0],
        adaptor_S=adaptors[1],
    )
    for theirs, ours in zip(getattr(distiller, "projs", ()), projections, strict=True):
        if ours is not None:
            copy_linear(ours, theirs)
    losses: list[float] = []
    distiller.write_loss = lambda total, step, parts: losses.append(float(total.detach()))
    distiller.save_and_callback = lambda *_: None
    optimizer = torch.optim.AdamW(student.parameters(), lr=learning_rate)
    with distiller:
        distiller.train(optimizer, batches, num_steps=num_steps, **arguments)
    return losses


def copy_linear(source: nn.Module, target: nn.Module) -> None:
    (ours,) = [m for m in source.modules() if isinstance(m, nn.Linear)]
    (theirs,) = [m for m in target.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
