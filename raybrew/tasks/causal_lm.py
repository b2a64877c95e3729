"""Language models that predict the next token; vocabularies of one family."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from raybrew.config import Task
from raybrew.data.columns import Rows, read_rows
from raybrew.data.encoding import view_from_ids
from raybrew.data.payload import Payload
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.errors import ConfigError
from raybrew.tasks.task_type import TaskType

# Whether a model's embedding has a row for each token of its tokenizer.

RESIZE = (
    "save the tokenizer that the model was trained with, or resize its embedding "
    "(model.resize_token_embeddings(len(tokenizer))) and save it again"
)
"""What to do about a model that is finished."""


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows of an embedding a tokenizer needs; ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, what: str, advice: str
) -> None:
    """Refuse a tokenizer with tokens that the model has no row for.

    Args:
        config: of the model.
        tokenizer: that encodes for it.
        what: the model in the job, for messages.
        advice: what to do.

    Raises:
        ConfigError: there is such a token.
    """
    # Models that read characters have no vocabulary.
    rows: int | None = getattr(config.get_text_config(), "vocab_size", None)
    needed = num_tokens(tokenizer)
    if rows is not None and needed > rows:
        raise ConfigError(
            f"{what}: expected a model that knows all {needed} tokens of its tokenizer, got "
            f"vocab_size {rows}; {advice}"
        )


# Causal language modelling: the next token, at every token of a text.
#
#     tokens  The cat sat .        ids are cut into windows; each token but the first of a text is
#     labels  cat sat .  –         predicted once
#
# With a second text the first is a prompt, which is read and not learnt. Vocabularies are large:
# `labels.top_k` keeps the largest logits of each token with their logsumexp. Logits behind the
# tokenizer's last token belong to no token; they are left out, as models of one family have more or
# fewer of them.


class CausalLM(TaskType):
    """The next token."""

    name = "causal-lm"
    model_class = AutoModelForCausalLM
    layout = "token"
    has_labels = False
    own_inputs = False
    takes_column = False
    dense_metrics = ("loss", "perplexity", "token_probability")

    def read(
        self, task: Task, train: Dataset, evaluation: Dataset | None
    ) -> tuple[tuple[str, ...], Rows, Rows | None]:
        """Read texts, or prompts and what follows them; see `TaskType.read`."""
        rows = read_rows(task, train, f"tasks[{task.name}].train")
        if evaluation is None:
            return (), rows, None
        return (), rows, read_rows(task, evaluation, f"tasks[{task.name}].eval")

    def encode(
        self, task: Task, rows: Rows, tokenizers: Mapping[str, PreTrainedTokenizerBase]
    ) -> EncodedSplit:
        """Encode texts; a long one becomes several examples."""
        tokenizer = tokenizers[STUDENT_VIEW]
        ids: list[list[int]] = []
        labels: list[list[int]] = []
        source: list[int] = []
        truncated = 0
        for row, (text, learnt) in enumerate(_tokens(tokenizer, rows)):
            following = [*text[1:], IGNORED]
            wanted = [
                token if known else IGNORED
                for token, known in zip(following, [*learnt[1:], False], strict=True)
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
        """Every text is its own label."""
        return len(rows)

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count the tokens that are predicted."""
        known = int((labels >= 0).sum())
        return known, known

    def predict(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Keep the negative log-probability of the true token, and whether it ranks first."""
        losses = cross_entropy(logits[0].float(), labels[0], reduction="none")
        right = logits[0].argmax(dim=-1) == labels[0]
        return torch.stack([losses.double(), right.double()], dim=-1)

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> dict[str, float]:
        """Return the loss in nats a token, perplexity, its inverse, and accuracy."""
        values = predicted.values.reshape(-1, 2)
        figures = {"examples": float(len(values))}
        if not len(values):
            return figures
        loss, accuracy = values.mean(axis=0).tolist()
        return figures | {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_probability": math.exp(-loss),
            "accuracy": accuracy,
        }

    def main_metric(self, names: Sequence[str]) -> str:
        """Rank by the inverse of perplexity, the geometric mean of the tokens' probabilities."""
        return "token_probability"


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: Rows) -> list[tuple[list[int], list[bool]]]:
    """Return each row's token ids, and which of them are learnt."""
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
