"""Causal language modelling: the next token, at every token of a text.

    tokens  The cat sat .        ids are cut into windows; each token but the first of a text is
    labels  cat sat .  –         predicted once

With a second text the first is a prompt, which is read and not trained on. Vocabularies are large:
`labels.top_k` keeps the largest logits of each token with their logsumexp. Logits behind the
tokenizer's last token belong to no token; they are left out, as models of one family have more or
fewer of them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from raybrew.config import Task
from raybrew.data.columns import Rows, read_rows
from raybrew.data.encoding import view_from_ids
from raybrew.data.payload import Payload
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.tasks.task_type import Breakdown, Metrics, Prediction, TaskType


class CausalLM(TaskType):
    """The next token."""

    name = "causal-lm"
    model_class = AutoModelForCausalLM
    layout = "token"
    has_labels = False
    own_inputs = False
    takes_column = False
    dense_metrics = ("loss", "perplexity", "token_probability")
    # The inverse of perplexity: the geometric mean of the tokens' probabilities.
    ranking_metric = "token_probability"

    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read texts, or prompts and what follows them; see `TaskType.read`."""
        rows = {
            side: read_rows(task, split, f"tasks[{task.name}].{side}")
            for side, split in splits.items()
        }
        return (), rows

    def encode(
        self, task: Task, rows: Rows, tokenizers: Mapping[str, PreTrainedTokenizerBase]
    ) -> EncodedSplit:
        """Encode texts; a long one becomes several examples."""
        tokenizer = tokenizers[STUDENT_VIEW]
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        source: list[int] = []
        truncated = 0
        for row, (text, trained) in enumerate(_tokens(tokenizer, rows)):
            following = [*text[1:], IGNORED]
            wanted = [
                token if known else IGNORED
                for token, known in zip(following, [*trained[1:], False], strict=True)
            ]
            starts = range(0, len(text), task.max_length) if rows.pairs is None else (0,)
            truncated += rows.pairs is not None and len(text) > task.max_length
            for start in starts:
                ids.append(text[start : start + task.max_length])
                labels.append(wanted[start : start + task.max_length])
                source.append(row)
        return EncodedSplit(
            {STUDENT_VIEW: view_from_ids(ids)},
            np.concatenate([np.array(each, np.int64) for each in labels]),
            per_token=True,
            source=np.array(source, np.int64),
            counts={"texts": len(rows), "windows": len(ids), "truncated": int(truncated)},
        )

    def num_labels(
        self, names: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> int:
        """Return the size of the vocabulary, without what pads a model's embedding to a length."""
        return 0 if tokenizer is None else num_tokens(tokenizer)

    def num_labelled(self, rows: Rows) -> int:
        """Count rows: every text is its own label."""
        return len(rows)

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count the tokens that are predicted."""
        known = int((labels >= 0).sum())
        return known, known

    def predict(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Return the negative log-probability of the true token, and whether it ranks first."""
        losses = cross_entropy(logits[0].float(), labels[0], reduction="none")
        right = logits[0].argmax(dim=-1) == labels[0]
        return torch.stack([losses.double(), right.double()], dim=-1)

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Return the loss in nats a token, perplexity, its inverse, and accuracy."""
        values = predicted.values.reshape(-1, 2)
        metrics = {"examples": float(len(values))}
        if not len(values):
            return metrics
        loss, accuracy = values.mean(axis=0).tolist()
        return metrics | {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_probability": math.exp(-loss),
            "accuracy": accuracy,
        }

    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Return `loss`, `perplexity`, `accuracy` and `tokens` of each text."""
        assert predicted.offsets is not None, "tokens make ragged rows"
        assert split.source is not None, "a text may be several examples"
        losses: dict[int, list[np.ndarray]] = {}
        for place, row in enumerate(split.source[rows].tolist()):
            values = predicted.values[predicted.offsets[place] : predicted.offsets[place + 1]]
            losses.setdefault(row, []).append(values.reshape(-1, 2))
        return [_of_text(np.concatenate(each)) for each in losses.values()]

    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return an empty dict a text, which is its own label; see `TaskType.truth`."""
        assert split.source is not None, "a text may be several examples"
        return [{} for _ in dict.fromkeys(split.source[rows].tolist())]

    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Return the share of tokens that rank first; see `TaskType.row_scores`."""
        return np.array([each["accuracy"] for each in found])

    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return how often the true token ranks first, by its place in the window."""
        assert predicted.offsets is not None, "tokens make ragged rows"
        right = predicted.values.reshape(-1, 2)[:, 1]
        lengths = np.diff(predicted.offsets) // 2
        if not len(right):
            return None
        position = np.arange(len(right)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        last = max(int(position.max()), 1)
        edges = [0, *(2**n for n in range(4, last.bit_length()) if 2**n <= last)]
        place = np.searchsorted(edges, position, side="right") - 1
        counts = np.bincount(place, minlength=len(edges))
        sums = np.bincount(place, right, minlength=len(edges))
        groups = [
            f"{low} to {high - 1}" for low, high in zip(edges, [*edges[1:], last + 1], strict=True)
        ]
        return Breakdown("position", "accuracy", groups, counts.tolist(), (sums / counts).tolist())


def _of_text(values: np.ndarray) -> Prediction:
    # A text of one token predicts none.
    loss, accuracy = values.mean(axis=0).tolist() if len(values) else (math.nan, math.nan)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": accuracy,
        "tokens": len(values),
    }


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows of an embedding a tokenizer needs; ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: Rows) -> list[tuple[list[int], list[bool]]]:
    """Return each row's token ids, and which of them are trained on."""
    first = _encoded(tokenizer, rows.texts, special=True)
    if rows.pairs is None:
        return [(ids, [True] * len(ids)) for ids in (_ended(tokenizer, each) for each in first)]
    second = _encoded(tokenizer, rows.pairs, special=False)
    found = []
    for prompt, answer in zip(first, second, strict=True):
        # A prompt goes on: what ends texts is not part of it.
        while prompt and prompt[-1] == tokenizer.eos_token_id:
            prompt = prompt[:-1]
        ended = _ended(tokenizer, answer)
        found.append(([*prompt, *ended], [False] * len(prompt) + [True] * len(ended)))
    return found


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool
) -> list[list[int]]:
    encoded = tokenizer(list(texts), add_special_tokens=special, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _ended(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return a text's ids with what ends a text, where the tokenizer has it."""
    end = tokenizer.eos_token_id
    if end is None or (ids and ids[-1] == end):
        return ids
    return [*ids, int(str(end))]
