"""One class for each word: named entities, parts of speech.

    words  Zürich   is nice          labels of the words   B-LOC  O  O
    tokens z ##uric ##h  is nice     labels of the tokens  B-LOC  –  –  O  O

The first token of a word stands for it; the others are no positions of the task. Where a teacher
has a tokenizer of its own, first tokens of the same word are aligned; logits that the data already
has are those of its words.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from raybrew.config import Task
from raybrew.data.classes import LabelReader, item_feature, read_classes
from raybrew.data.columns import Rows, read_lists, read_words
from raybrew.data.encoding import EncodedView, encode_words
from raybrew.data.payload import Payload
from raybrew.data.split import IGNORED, STUDENT_VIEW, UNLABELLED, EncodedSplit
from raybrew.errors import DataError
from raybrew.tasks.sequence_classification import largest_share
from raybrew.tasks.task_type import (
    Breakdown,
    Metrics,
    Prediction,
    TaskType,
    f1_scores,
    scores_of,
)

_CHUNK_PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")


class TokenClassification(TaskType):
    """A class for each word."""

    name = "token-classification"
    model_class = AutoModelForTokenClassification
    layout = "token"
    needs_offsets = True

    def read_splits(
        self, task: Task, splits: Mapping[str, Dataset]
    ) -> tuple[tuple[str, ...], dict[str, Rows]]:
        """Read words and their tags; see `TaskType.read`."""
        classes, rows = None, {}
        for side, split in splits.items():
            what = f"tasks[{task.name}].{side}"
            words = read_words(split, task.text, what)
            tags = read_lists(split, task.label, what, "tags")
            feature = item_feature(split.features[task.label])
            if classes is None:
                classes = read_classes(task, (each or () for each in tags), feature)
            rows[side] = _rows(task.text, words, tags, classes.reader(feature, what))
        assert classes is not None, "there is a training split"
        return classes.names, rows

    def encode(
        self, task: Task, rows: Rows, tokenizers: Mapping[str, PreTrainedTokenizerBase]
    ) -> EncodedSplit:
        """Encode words, one example a row; labels and alignments are by token."""
        views: dict[str, EncodedView] = {}
        firsts: dict[str, list[np.ndarray]] = {}
        for name, tokenizer in tokenizers.items():
            views[name], firsts[name] = encode_words(tokenizer, rows.texts, task.max_length)
        lengths, own = views[STUDENT_VIEW].lengths, firsts.pop(STUDENT_VIEW)
        labels = _by_token(lengths, own, rows.labels, IGNORED)
        for name, logits in rows.supplied.items():
            views[name] = logits.view()
            firsts[name] = [np.arange(len(each)) for each in own]
        alignments = {
            name: _by_token(lengths, own, tokens, -1).astype(np.int32)
            for name, tokens in firsts.items()
        }
        positions = labels != IGNORED
        counts = {
            "words": sum(map(len, rows.texts)),
            "words_unseen": int(sum((first < 0).sum() for first in own)),
        }
        for name, alignment in alignments.items():
            counts[f"words_unaligned_{name}"] = int((positions & (alignment < 0)).sum())
        numbers = _by_token(lengths, own, [np.arange(len(each)) for each in own], -1)
        return EncodedSplit(
            views,
            labels,
            per_token=True,
            alignments=alignments,
            tokens={"word": numbers.astype(np.int32)},
            reference=pa.table({"num_words": [len(words) for words in rows.texts]}),
            counts=counts,
        )

    def num_labelled(self, rows: Rows) -> int:
        """Count rows with a label on any word."""
        return sum(bool((labels >= 0).any()) for labels in rows.labels)

    def counts(self, labels: np.ndarray) -> tuple[int, int]:
        """Count words, and words with a label."""
        return int((labels != IGNORED).sum()), int((labels >= 0).sum())

    def predict(self, logits: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """Return the class of each word."""
        return logits[0].argmax(dim=-1, keepdim=True)

    def metrics(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Metrics:
        """Return accuracy by word; of entities precision, recall and F1, as seqeval has them."""
        labels = split.labels_of(rows)
        labels = labels[labels != IGNORED]
        assert predicted.offsets is not None, "words make ragged rows"
        sentences = list(zip(predicted.offsets[:-1], predicted.offsets[1:], strict=True))
        true = [labels[start:stop] for start, stop in sentences]
        found = [predicted.values[start:stop] for start, stop in sentences]
        return word_metrics(true, found, names)

    def decode(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction]:
        """Return the `tags` of all words, also of those that were cut; see `TaskType.decode`."""
        assert predicted.offsets is not None, "words make ragged rows"
        assert split.reference is not None, "encoding counts the words"
        words = split.reference.column("num_words").to_numpy()
        tags = []
        for place, row in enumerate(rows.tolist()):
            begin, stop = split.student.offsets[row : row + 2]
            of_tokens = split.tokens["word"][begin:stop]
            found: list[str | None] = [None] * int(words[row])
            classes = predicted.values[predicted.offsets[place] : predicted.offsets[place + 1]]
            for word, number in zip(of_tokens[of_tokens >= 0], classes, strict=True):
                found[word] = names[number]
            tags.append({"tags": found})
        return tags

    def truth(
        self, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> list[Prediction | None]:
        """Return the `tags` of all words, None where one isn't known or was cut."""
        assert split.reference is not None, "encoding counts the words"
        words = split.reference.column("num_words").to_numpy()
        found: list[Prediction | None] = []
        for row in rows.tolist():
            begin, stop = split.student.offsets[row : row + 2]
            of_tokens, labels = split.tokens["word"][begin:stop], split.labels[begin:stop]
            tags: list[str | None] = [None] * int(words[row])
            for word, label in zip(of_tokens.tolist(), labels.tolist(), strict=True):
                if word >= 0 and label >= 0:
                    tags[word] = names[label]
            found.append({"tags": tags} if any(tags) else None)
        return found

    def row_scores(
        self, found: Sequence[Prediction], true: Sequence[Prediction | None], split: EncodedSplit
    ) -> np.ndarray:
        """Return the share of words with the right tag; see `TaskType.row_scores`."""
        return scores_of(found, true, _right_tags)

    def breakdown(
        self, predicted: Payload, split: EncodedSplit, rows: np.ndarray, names: Sequence[str]
    ) -> Breakdown | None:
        """Return F1 by kind of entity, or by class where classes are no chunks."""
        true = self.truth(split, rows, names)
        pairs = [
            (_known(label["tags"], label["tags"]), _known(one["tags"], label["tags"]))
            for one, label in zip(self.decode(predicted, split, rows, names), true, strict=True)
            if label is not None
        ]
        if not pairs:
            return None
        find = _chunks if are_entities(names) else _words
        wanted, given, right = Counter(), Counter(), Counter()
        for label, one in pairs:
            expected, got = find(label), find(one)
            wanted.update(kind for kind, *_ in expected)
            given.update(kind for kind, *_ in got)
            right.update(kind for kind, *_ in expected & got)
        groups = (
            sorted({name.split("-", 1)[-1] for name in names} - {"O"})
            if (find is _chunks)
            else list(names)
        )
        counts = [wanted[kind] for kind in groups]
        scores = f1_scores(
            np.array([right[kind] for kind in groups]),
            np.array([given[kind] for kind in groups]),
            np.array(counts),
        )
        return Breakdown("entity" if find is _chunks else "class", "F1", groups, counts, scores)

    def unlabelled_rows(self, task: Task, dataset: Dataset, what: str, num_labels: int) -> Rows:
        """Read words alone; see `TaskType.unlabelled_rows`."""
        words = read_words(dataset, task.text, what)
        return Rows(words, labels=[np.full(len(each), UNLABELLED) for each in words])

    def constant_score(self, split: EncodedSplit, names: Sequence[str]) -> float:
        """Return the share of the largest class; 0 of entities, of which one tag makes none."""
        return 0.0 if are_entities(names) else largest_share(split.labels)

    def main_metric(self, names: Sequence[str]) -> str:
        """Rank by the F1 of entities, where classes are those of entities, else by accuracy."""
        return "f1" if are_entities(names) else "accuracy"


def _known(tags: Sequence[str | None], true: Sequence[str | None]) -> list[str]:
    """Return the tags of the words whose true tag is known; `O` where a word has none."""
    return [tag or "O" for tag, label in zip(tags, true, strict=True) if label is not None]


def _right_tags(one: Prediction, other: Prediction) -> float:
    pairs = [
        (left, right)
        for left, right in zip(one["tags"], other["tags"], strict=True)
        if left is not None and right is not None
    ]
    return sum(left == right for left, right in pairs) / len(pairs) if pairs else math.nan


def _chunks(tags: list[str]) -> set[tuple[Any, ...]]:
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities(tags))


def _words(tags: list[str]) -> set[tuple[Any, ...]]:
    return {(tag, place) for place, tag in enumerate(tags)}


def are_entities(names: Iterable[str]) -> bool:
    """Whether classes say where chunks begin and go on, as B-PER, I-PER, O do."""
    return all(name == "O" or name.startswith(_CHUNK_PREFIXES) for name in names)


def word_metrics(
    true: Sequence[np.ndarray], predicted: Sequence[np.ndarray], names: Sequence[str]
) -> Metrics:
    """Compare the predicted classes of words with the true ones.

    Args:
        true: of each sentence, class numbers; negative ones are left out.
        predicted: the same, of the same lengths.
        names: of the classes.

    Returns:
        `accuracy` and the words it counts, `examples`; for entities `precision`, `recall`, `f1`.
    """
    known = [labels >= 0 for labels in true]
    true = [labels[mask] for labels, mask in zip(true, known, strict=True)]
    predicted = [labels[mask] for labels, mask in zip(predicted, known, strict=True)]
    words = sum(map(len, true))
    if not words:
        return {"examples": 0.0}
    correct = np.concatenate(true) == np.concatenate(predicted)
    metrics = {"examples": float(words), "accuracy": float(correct.mean())}
    if not are_entities(names):
        return metrics
    # Takes over a second to import, which a process that only trains need not spend.
    from seqeval.metrics import f1_score, precision_score, recall_score

    spelled = [[[str(names[c]) for c in labels] for labels in side] for side in (true, predicted)]
    # seqeval's annotations say less than its functions take.
    scores: dict[str, Any] = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return metrics | {
        name: float(score(*spelled, zero_division=0)) for name, score in scores.items()
    }


def _rows(
    column: str, words: list[list[str]], tags: list[list[Any] | None], reader: LabelReader
) -> Rows:
    """Return sentences with the class of each word; `column` is that of the words."""
    labels = []
    for row, (sentence, given) in enumerate(zip(words, tags, strict=True)):
        if given is None:
            labels.append(np.full(len(sentence), -1))
            continue
        if len(given) != len(sentence):
            raise DataError(
                f"{reader.what}: row {row}: expected a tag for each of the {len(sentence)} words "
                f"in {column!r}, got {len(given)} in {reader.label!r}"
            )
        labels.append(reader.numbers(given, row))
    return Rows(words, labels=labels)


def _by_token(
    lengths: np.ndarray,
    first_tokens: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    fill: int,
) -> np.ndarray:
    """Put a value of each word at its first token, int64, flat over all tokens."""
    flat = np.full(int(lengths.sum()), fill, np.int64)
    starts = np.cumsum(lengths) - lengths
    for start, firsts, each in zip(starts, first_tokens, values, strict=True):
        seen = firsts >= 0
        flat[start + firsts[seen]] = each[seen]
    return flat
