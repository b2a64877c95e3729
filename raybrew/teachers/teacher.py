"""A teacher: a frozen model that answers ragged batches of examples with payloads.

    examples ──► sorted by length ──► chunks of at most `batch_tokens` ──► forward ──► reduce ──►
    back into the order of the question, as NumPy

A plain class: no Ray, no store. The answer to an example doesn't depend on who asks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from raybrew.data.collate import collate
from raybrew.data.encoding import EncodedView
from raybrew.errors import ConfigError, TeacherError
from raybrew.labels.payload import DTYPES, Payload, Signal, to_storage
from raybrew.models.adaptors import ADAPTORS, view_of
from raybrew.models.pretrained import load_classifier, read_config

__all__ = ["ModelTeacher", "TeacherSpec", "chunks_by_tokens"]


@dataclass(frozen=True)
class TeacherSpec:
    """What a process needs to know to host a teacher.

    Args:
        name: the job's name of it, for messages and metrics.
        model: folder that transformers loads.
        fingerprint: what its labels are filed under.
        kind: kind of its task.
        dtype: precision that it computes in.
        batch_tokens: most tokens of one forward, padding included.
        pad_token_id: what shorter examples are filled up with.
        num_threads: PyTorch threads.
    """

    name: str
    model: str
    fingerprint: str
    kind: str
    dtype: str
    batch_tokens: int
    pad_token_id: int
    num_threads: int


def chunks_by_tokens(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Split examples into batches of similar length.

    Args:
        lengths: tokens of each example, (n,).
        batch_tokens: most tokens of a batch, padding included; an example that is longer than
            that alone makes a batch of its own.

    Yields:
        Positions of each batch's examples, shortest first. The same lengths give the same
        batches.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or (end + 1 - start) * lengths[order[end]] > batch_tokens
        if full:
            yield order[start:end]
            start = end


class ModelTeacher:
    """A transformers model as a teacher."""

    def __init__(self, spec: TeacherSpec):
        self.spec = spec
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._adaptor = ADAPTORS[spec.kind]
        self._model = _load(spec).to(self._device)

    def answer(self, view: EncodedView, signals: tuple[Signal, ...]) -> dict[str, Payload]:
        """Run the teacher.

        Args:
            view: n examples.
            signals: what is asked for.

        Returns:
            By signal name, n rows in the order of `view`.

        Raises:
            TeacherError: an answer is NaN or infinite; names teacher and example.
        """
        chunks = list(chunks_by_tokens(view.lengths, self.spec.batch_tokens))
        answers = [self._forward(view, rows, signals) for rows in chunks]
        back = np.argsort(np.concatenate(chunks)) if chunks else np.empty(0, np.int64)
        return {
            signal.name: Payload.concat([answer[i] for answer in answers]).take(back)
            for i, signal in enumerate(signals)
        }

    @torch.inference_mode()
    def _forward(
        self, view: EncodedView, rows: np.ndarray, signals: tuple[Signal, ...]
    ) -> list[Payload]:
        batch = collate(view, rows, self.spec.pad_token_id)
        batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        answer = view_of(self._adaptor, batch, self._model(**batch))
        payloads = []
        for signal in signals:
            if signal.statistic != "logits":
                raise TeacherError(
                    f"teacher {self.spec.name!r}: expected a signal it can give (logits), "
                    f"got {signal.statistic!r}"
                )
            logits = answer.logits[0].float()
            finite = torch.isfinite(logits).all(dim=-1)
            if not finite.all():
                self._refuse(view, rows[int((~finite).nonzero()[0])])
            payloads.append(Payload(to_storage(logits, signal.dtype)))
        return payloads

    def _refuse(self, view: EncodedView, row: int) -> None:
        ids = view.take(np.array([row])).input_ids
        raise TeacherError(
            f"teacher {self.spec.name!r} ({self.spec.model}): expected finite logits, got NaN or "
            f"infinity for the example with key {view.keys[row, 0]:016x}{view.keys[row, 1]:016x} "
            f"(token ids {ids[:16].tolist()}{'…' if len(ids) > 16 else ''}); computed in "
            f"{self.spec.dtype}: check its weights, or choose another dtype"
        )


def _load(spec: TeacherSpec) -> PreTrainedModel:
    torch.set_num_threads(spec.num_threads)
    what = f"teachers[{spec.name}].model"
    try:
        # A copy in memory: the weights of a teacher at work don't change with its files.
        model, info = load_classifier(spec.model, what, read_config(spec.model, what))
    except ConfigError as error:
        raise TeacherError(f"teacher {spec.name!r} can't be loaded: {error}") from error
    lacking = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
    if lacking:
        raise TeacherError(
            f"teacher {spec.name!r}: expected a fine-tuned classifier at {spec.model}, got weights "
            f"without {', '.join(lacking)}"
        )
    return model.to(DTYPES[spec.dtype][0]).eval().requires_grad_(False)
