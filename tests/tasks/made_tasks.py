"""Tasks of five kinds that one trunk can have, of one vocabulary, and one of a language model."""

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from tests.made import CLASSES, WORDS, make_data
from tests.tasks.made_models import TAGS, TOPICS, make_rows, wordpiece

TRAIN, EVAL = 24, 9
LENGTH = 24
WINDOW, STRIDE = 40, 4
TASKS: dict[str, dict[str, Any]] = {
    "sum": {"kind": "sequence-classification", "label_names": list(CLASSES)},
    "topics": {"kind": "multi-label", "label_names": list(TOPICS)},
    "tone": {"kind": "regression"},
    "tags": {"kind": "token-classification", "label_names": list(TAGS)},
    "where": {"kind": "question-answering", "max_length": WINDOW, "stride": STRIDE},
}
LM: dict[str, dict[str, Any]] = {"text": {"kind": "causal-lm"}}
TOKENIZER = wordpiece(*WORDS, "the", "in", "at", "and", "where")


def make_topics(rows: int, seed: int) -> Dataset:
    """Texts of one topic or several, each of which has words of its own."""
    generator = np.random.default_rng(seed)
    topics = [generator.permutation(3)[: generator.integers(1, 4)] for _ in range(rows)]
    words = [[generator.integers(13 * t, 13 * t + 13, 3) for t in each] for each in topics]
    texts = [" ".join(WORDS[word] for word in np.concatenate(each)) for each in words]
    labels = [[TOPICS[t] for t in sorted(each)] for each in topics]
    return Dataset.from_dict({"text": texts, "label": labels})


def rows_of(task: str, side: str) -> Dataset:
    rows, seed = (TRAIN, 0) if side == "train" else (EVAL, 1)
    if task == "sum":
        return make_data(rows, seed)
    if task == "topics":
        return make_topics(rows, seed)
    return make_rows((TASKS | LM)[task]["kind"], rows, seed)


def write_tasks(folder: Path, tasks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the tasks' rows, and return the tasks as a job's file has them."""
    found = []
    for name, task in tasks.items():
        files = {side: str(folder / f"{name}-{side}.parquet") for side in ("train", "eval")}
        for side, file in files.items():
            rows_of(name, side).to_parquet(file)
        found.append({"name": name, "max_length": LENGTH, **task, **files})
    return found


def windows() -> list[tuple[int, ...]]:
    """Return the tokens of the questions' windows, of which both sides have some in common."""
    found: list[tuple[int, ...]] = []
    for side in ("train", "eval"):
        rows = rows_of("where", side)
        encoded = TOKENIZER(
            rows["question"][:],
            rows["context"][:],
            truncation="only_second",
            max_length=WINDOW,
            stride=STRIDE,
            return_overflowing_tokens=True,
        )
        found += map(tuple, encoded["input_ids"])
    return found
