"""Predictions of a model on the examples of a split, and of teachers from their stored logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.data.payload import Payload, Signal
from raybrew.data.split import EncodedSplit, Padding, collate, collate_labels, collate_tokens
from raybrew.labels.logits import tensors_of
from raybrew.losses.numerics import TopK
from raybrew.objective.rows import RowIndex, TeacherRows
from raybrew.tasks.task_type import Adaptor, TaskType, view_of


@dataclass(frozen=True)
class ModelOnDevice:
    """A model with all that it takes to predict.

    Args:
        model: it is put into evaluation mode, and back into the mode it was in.
        adaptor: reads its outputs.
        padding: of shorter examples of a batch.
        device: where it is.
    """

    model: nn.Module
    adaptor: Adaptor
    padding: Padding
    device: torch.device


@torch.inference_mode()
def predict(
    hosted: ModelOnDevice,
    task_type: TaskType,
    split: EncodedSplit,
    rows: np.ndarray,
    *,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Payload:
    """Return what the metrics need of the model's answers to these rows, in their order.

    Args:
        hosted: the model.
        task_type: of the task.
        split: the examples, as the model reads them in the student's view.
        rows: int64 (n,).
        batch_size: examples of a forward; they are sorted by length first.
        on_progress: called with the number of rows that are done and of all of them.

    Returns:
        n rows of `TaskType.predict`.
    """
    if not len(rows):
        # Models of transformers refuse an empty batch: one example is predicted and dropped.
        one = predict(hosted, task_type, split, np.zeros(1, np.int64), batch_size=1)
        return one.take(np.empty(0, np.int64))
    training = hosted.model.training
    hosted.model.eval()
    lengths = split.student.lengths_of(rows)
    order = np.argsort(lengths, kind="stable")
    # One run of examples, or one for each length where none may be padded.
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1 if hosted.padding.is_read else ()
    parts, done = [], 0
    for run in np.split(order, cuts):
        for start in range(0, len(run), batch_size):
            batch = rows[run[start : start + batch_size]]
            parts.append(_predict_batch(hosted, task_type, split, batch))
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(rows))
    hosted.model.train(training)
    return Payload.concat(parts).take(np.argsort(order))


def _predict_batch(
    hosted: ModelOnDevice, task_type: TaskType, split: EncodedSplit, rows: np.ndarray
) -> Payload:
    batch = collate(split.student, rows, hosted.padding)
    labels = collate_labels(split, rows, batch["input_ids"].shape[1]).to(hosted.device)
    inputs = {name: tensor.to(hosted.device) for name, tensor in batch.items()}
    view = view_of(hosted.adaptor, {**inputs, "labels": labels}, hosted.model(**inputs))
    each = view.labels or task_type.labels_of(labels)
    index = RowIndex.of(task_type.layout, each[0], inputs["attention_mask"])
    logits = [index.of_logits(one).float() for one in view.logits]
    return payload_of_rows(task_type, index, logits, [index.of_labels(one) for one in each])


def payload_of_rows(
    task_type: TaskType, index: RowIndex, logits: Sequence[Tensor], labels: Sequence[Tensor]
) -> Payload:
    """Return predictions from rows of logits, one row an example.

    Args:
        task_type: of the task.
        index: whose rows they are.
        logits: of each output, (R, C).
        labels: of each output, (R, …).
    """
    predicted = task_type.predict(logits, labels)
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
    """A teacher's logits for some examples, as they are stored.

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
        """Return one output's logits, (R, C); classes that top-k logits leave out rank last.

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
        # Classes that aren't stored rank below those that are; only the order counts.
        lowest = found.logits.values.amin(dim=-1, keepdim=True)
        rest = lowest.expand(-1, widths[output]).clone() - 1.0
        filled = rest.scatter(-1, found.logits.indices, found.logits.values)
        return TeacherRows(filled, found.available)
