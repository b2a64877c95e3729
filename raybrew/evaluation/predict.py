"""A model's predictions on the examples of a split, and what they are worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.data.payload import Payload, Signal
from raybrew.data.split import (
    EncodedSplit,
    Padding,
    batches_by_length,
    collate,
    collate_labels,
    collate_tokens,
)
from raybrew.labels.logits import tensors_of
from raybrew.losses.numerics import TopK
from raybrew.objective.rows import RowIndex, TeacherRows
from raybrew.tasks.adaptors import Adaptor, view_of
from raybrew.tasks.task_type import TaskType


@dataclass(frozen=True)
class ModelOnDevice:
    """A model that can be asked.

    Args:
        model: it is put into evaluation mode, and back into the mode it was in.
        adaptor: reads its outputs.
        padding: fills shorter examples up.
        device: where it is.
    """

    model: nn.Module
    adaptor: Adaptor
    padding: Padding
    device: torch.device


@torch.inference_mode()
def predict(
    asked: ModelOnDevice,
    kind: TaskType,
    split: EncodedSplit,
    rows: np.ndarray,
    *,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Payload:
    """Return what the metrics need of the model's answers to these rows, in their order.

    Args:
        asked: the model.
        kind: of the task.
        split: the examples, as the model reads them in the student's view.
        rows: int64 (n,).
        batch_size: examples of a forward; they are sorted by length first.
        on_progress: called with the rows that are done and all of them.

    Returns:
        n rows of `TaskType.predict`.
    """
    if not len(rows):
        # Models of transformers refuse a batch of none: one example, of which nothing is kept.
        one = predict(asked, kind, split, np.zeros(1, np.int64), batch_size=1)
        return one.take(np.empty(0, np.int64))
    training = asked.model.training
    asked.model.eval()
    lengths = split.student.lengths_of(rows)
    batches = list(
        batches_by_length(lengths, max_examples=batch_size, one_length=asked.padding.is_read)
    )
    parts, done = [], 0
    for batch in batches:
        parts.append(_predict_batch(asked, kind, split, rows[batch]))
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(rows))
    asked.model.train(training)
    return Payload.concat(parts).take(np.argsort(np.concatenate(batches)))


def _predict_batch(
    asked: ModelOnDevice, kind: TaskType, split: EncodedSplit, rows: np.ndarray
) -> Payload:
    inputs = collate(split.student, rows, asked.padding)
    labels = collate_labels(split, rows, inputs["input_ids"].shape[1])
    inputs = {name: tensor.to(asked.device) for name, tensor in inputs.items()}
    labels = labels.to(asked.device)
    view = view_of(asked.adaptor, {**inputs, "labels": labels}, asked.model(**inputs))
    each = view.labels or kind.labels_of(labels)
    index = RowIndex.of(kind.layout, each[0], inputs["attention_mask"])
    logits = [index.of_logits(one).float() for one in view.logits]
    return payload_of_rows(kind, index, logits, [index.of_labels(one) for one in each])


def payload_of_rows(
    kind: TaskType, index: RowIndex, logits: Sequence[Tensor], labels: Sequence[Tensor]
) -> Payload:
    """Return predictions from rows of logits, one row an example.

    Args:
        kind: of the task.
        index: whose rows they are.
        logits: of each output, (R, C).
        labels: of each output, (R, …).
    """
    predicted = kind.predict(logits, labels)
    if index.mask is not None:  # (b, L, outputs)
        lengths = index.mask.sum(dim=1)
        predicted = predicted[index.mask]
    elif index.token is not None:
        lengths = torch.bincount(index.example, minlength=index.num_examples)
    else:
        return Payload(predicted.cpu().numpy())
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths.cpu().numpy() * predicted.shape[-1], out=offsets[1:])
    return Payload(predicted.reshape(-1).cpu().numpy(), offsets)


@dataclass(frozen=True)
class StoredLabels:
    """What the store has of a teacher for some examples.

    Args:
        payload: logits, a row for each example.
        signal: what they are.
        view: that the teacher reads.
        order: the teacher's number of each class; None if it is the task's.
    """

    payload: Payload
    signal: Signal
    view: str
    order: Sequence[int] | None = None

    def rows(
        self,
        index: RowIndex,
        split: EncodedSplit,
        examples: np.ndarray,
        widths: Sequence[int],
        output: int = 0,
    ) -> TeacherRows:
        """Return one output's logits, (R, C); classes that top-k logits leave out come last.

        Args:
            index: rows of logits of the examples.
            split: that they are of.
            examples: which, int64 (b,).
            widths: classes of each output.
            output: which.
        """
        aligned, alignment = split.alignments.get(self.view), None
        if aligned is not None:
            length = int(split.student.lengths_of(examples).max())
            alignment = collate_tokens(split, aligned, examples, length, -1)
        soft = tensors_of(self.payload, self.signal)
        found = index.of_soft(soft, widths, output, alignment, self.order)
        if not isinstance(found.logits, TopK):
            return found
        # Below those that were kept: only the order counts.
        lowest = found.logits.values.amin(dim=-1, keepdim=True)
        rest = lowest.expand(-1, widths[output]).clone() - 1.0
        filled = rest.scatter(-1, found.logits.indices, found.logits.values)
        return TeacherRows(filled, found.available)
