"""Metrics of saved models by transformers alone: one text at a time, without raybrew."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from tests.tasks.made_models import MODELS, TAGS, TOPICS

Metrics = dict[str, float]


def load_alone(kind: str, folder: Path) -> Any:
    """Load a model that lacks nothing."""
    model, info = MODELS[kind].from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    return model.eval()


@torch.inference_mode()
def metrics_of(kind: str, folder: Path, rows: Dataset, model: Any = None) -> Metrics:
    """Return the metrics of a model on rows that are shorter than it reads at once."""
    model = load_alone(kind, folder) if model is None else model
    return REFERENCES[kind](model, AutoTokenizer.from_pretrained(folder), rows)


def _outputs(model: Any, tokenizer: Any, texts: list[Any], **options: Any) -> Iterator[Tensor]:
    for text in texts:
        yield model(**tokenizer(text, return_tensors="pt", **options))["logits"][0]


def _share(right: list[bool]) -> float:
    assert right
    return float(np.mean(right))


def _classes(model: Any, tokenizer: Any, rows: Dataset) -> Metrics:
    predicted = [int(each.argmax()) for each in _outputs(model, tokenizer, rows["text"][:])]
    return {"accuracy": _share([a == b for a, b in zip(predicted, rows["label"], strict=True)])}


def _sets(model: Any, tokenizer: Any, rows: Dataset) -> Metrics:
    outputs = _outputs(model, tokenizer, rows["text"][:])
    predicted = [{t for t, x in zip(TOPICS, each, strict=True) if x > 0} for each in outputs]
    return {
        "exact_match": _share([a == set(b) for a, b in zip(predicted, rows["label"], strict=True)])
    }


def _numbers(model: Any, tokenizer: Any, rows: Dataset) -> Metrics:
    predicted = [float(each) for each in _outputs(model, tokenizer, rows["text"][:])]
    return {"mse": float(np.mean((np.array(predicted) - np.array(rows["label"])) ** 2))}


def _words(model: Any, tokenizer: Any, rows: Dataset) -> Metrics:
    right = []
    outputs = _outputs(model, tokenizer, rows["words"][:], is_split_into_words=True)
    for each, tags in zip(outputs, rows["tags"], strict=True):
        # Each word is one token, between [CLS] and [SEP].
        predicted = [TAGS[int(logits.argmax())] for logits in each[1:-1]]
        right += [a == b for a, b in zip(predicted, tags, strict=True)]
    return {"accuracy": _share(right)}


def _next_tokens(model: Any, tokenizer: Any, rows: Dataset) -> Metrics:
    losses = []
    for text in rows["text"]:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        logits = model(input_ids=ids).logits
        losses.append(cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    loss = float(torch.cat(losses).mean())
    return {"loss": loss, "perplexity": float(np.exp(loss))}


REFERENCES: dict[str, Callable[[Any, Any, Dataset], Metrics]] = {
    "sequence-classification": _classes,
    "multi-label": _sets,
    "regression": _numbers,
    "token-classification": _words,
    "causal-lm": _next_tokens,
}
