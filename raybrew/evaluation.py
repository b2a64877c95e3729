"""What a model's predictions are worth, by torchmetrics."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.data.collate import collate
from raybrew.data.encoding import EncodedView
from raybrew.models.adaptors import Adaptor, view_of

__all__ = ["MAIN_METRIC", "classification_metrics", "predict_logits"]

MAIN_METRIC: Mapping[str, str] = {"sequence-classification": "accuracy"}
"""The metric of each kind of task by which checkpoints are ranked."""


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy, macro F1 and Matthews' correlation.

    Args:
        logits: (N, C), any scale: only their order counts.
        labels: int64 (N,); rows with a negative label are left out.

    Returns:
        `accuracy`, `f1_macro`, `matthews`, and `examples` that were counted; no metric where
        there is no label.
    """
    # Takes over a second to import, which a process that only trains need not spend.
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_f1_score,
        multiclass_matthews_corrcoef,
    )

    kept = labels >= 0
    logits, labels = logits[kept], labels[kept]
    figures = {"examples": float(len(labels))}
    if not len(labels):
        return figures
    classes = logits.shape[-1]
    predicted = logits.argmax(dim=-1)
    return figures | {
        "accuracy": float(multiclass_accuracy(predicted, labels, classes, average="micro")),
        "f1_macro": float(multiclass_f1_score(predicted, labels, classes, average="macro")),
        "matthews": float(multiclass_matthews_corrcoef(predicted, labels, classes)),
    }


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    adaptor: Adaptor,
    view: EncodedView,
    rows: np.ndarray,
    *,
    batch_size: int,
    pad_token_id: int,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return the model's logits for these rows, in their order.

    Args:
        model: put into evaluation mode, and back into the mode it was in.
        adaptor: reads its outputs.
        view: the examples.
        rows: int64 (n,).
        batch_size: examples of a forward; they are sorted by length first.
        pad_token_id: fills shorter examples up.
        device: where the model is.
        on_progress: called with the rows that are done and all of them.

    Returns:
        float32 (n, C) on the CPU.
    """
    if not len(rows):
        # Models of transformers refuse a batch of none: one example, of which nothing is kept.
        one = {"batch_size": 1, "pad_token_id": pad_token_id, "device": device}
        return predict_logits(model, adaptor, view, np.zeros(1, np.int64), **one)[:0]
    training = model.training
    model.eval()
    order = np.argsort(view.lengths[rows], kind="stable")
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = collate(view, rows[order[start : start + batch_size]], pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        parts.append(view_of(adaptor, batch, model(**batch)).logits[0].float().cpu())
        if on_progress is not None:
            on_progress(min(start + batch_size, len(rows)), len(rows))
    model.train(training)
    return torch.cat(parts)[torch.from_numpy(np.argsort(order))]
