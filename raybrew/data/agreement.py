"""Whether a model and the data agree: on the order of the classes, and on the tokens of a text.

Predictions may fit the true classes far better in another order of the classes. Agreement is
Cohen's kappa, (observed - by chance) / (1 - by chance), which is 0 for a model that always predicts
the same class and for one that guesses. The order is chosen on half of the rows and tried on the
other half, so that the best of many orders isn't better by luck.

    choose   argmax over orders p of  sum_i cov(true_i, predicted_p(i))
    try      kappa(p) against kappa(identity), and the mean gain of a row against its error

Two models can read the same token ids if their tokenizers encode texts alike. Equal vocabularies
don't imply it: tokenizers also differ in segments, upper and lower case, accents, spaces, special
tokens and on which side they cut.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from raybrew.data.files import to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_ROWS = 50
"""Fewer labelled rows are too few to compare orders of classes."""
_MIN_GAIN = 0.2
"""Least gain in kappa: from near chance to a useful model."""
_MIN_DEVIATIONS = 4.0
"""Least gain in its standard errors: by chance in one of 30,000 models."""
_SAMPLE = 256
_SHOWN_CHARACTERS, _SHOWN_TOKENS = 60, 8
_PROBES = (
    "Hello WORLD, it's the naïve café of Zürich (2024): don't…",
    "中国 is 大 🎉 ﬁne Ångström e\u0301 x\u00a0y",
    "  two  spaces, a tab\tand\na line ",
)


class BetterOrder(NamedTuple):
    """An order of the classes that fits far better.

    Args:
        order: the model's number of each of the task's classes.
        accuracy: share of the true classes that are predicted in the present order.
        accuracy_in_order: the same in this order.
        num_rows: rows that were compared.
    """

    order: tuple[int, ...]
    accuracy: float
    accuracy_in_order: float
    num_rows: int


def better_order(true: np.ndarray, predicted: np.ndarray) -> BetterOrder | None:
    """Look for an order of the classes in which predictions fit far better.

    Args:
        true: bool (N, C), whether a row has a class.
        predicted: bool (N, C), the same of the model's answers, in the model's order.

    Returns:
        None where there is none, or fewer than `MIN_ROWS` rows.
    """
    if len(true) < MIN_ROWS:
        return None
    # Rows may be sorted, by class or by source: every half has some of each.
    halves = np.random.default_rng(0).permutation(len(true)) % 2 == 0
    for chosen_on in (halves, ~halves):
        order = _best_order(true[chosen_on], predicted[chosen_on])
        if not _is_far_better(true[~chosen_on], predicted[~chosen_on], order):
            return None
    order = _best_order(true, predicted)
    accuracy, in_order = (
        float((true & each).sum() / max(1, true.sum())) for each in (predicted, predicted[:, order])
    )
    return BetterOrder(tuple(map(int, order)), accuracy, in_order, len(true))


def order_problem(
    flags: tuple[np.ndarray, np.ndarray],
    what: str,
    classes: Sequence[str],
    *,
    task: str,
    side: str,
) -> str | None:
    """Return the message about a model whose classes are in another order than the task's.

    Args:
        flags: true and predicted classes of labelled rows; see `better_order`.
        what: the job's field of the model.
        classes: of the task.
        task: the job's name of it.
        side: the split that was compared.

    Returns:
        None where no order fits far better.
    """
    found = better_order(*flags)
    if found is None:
        return None
    names = [""] * len(classes)
    for name, number in zip(classes, found.order, strict=True):
        names[number] = name
    return (
        f"{what}: no names say which of its classes is which; expected them in the task's order "
        f"({', '.join(classes)}), got answers of which {found.accuracy:.1%} are right for "
        f"{found.num_rows} labels of tasks[{task}].{side}, and {found.accuracy_in_order:.1%} in "
        f"another order; set tasks[{task}].label_names: {to_json(names)}, or name its classes "
        "(id2label of a model's configuration)"
    )


def _best_order(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    t, p = true.astype(np.float64), predicted.astype(np.float64)
    covariance = (t - t.mean(0)).T @ (p - p.mean(0)) / len(t)
    # Of equally good orders, the one that moves the fewest classes.
    return linear_sum_assignment(covariance + 1e-9 * np.eye(len(covariance)), maximize=True)[1]


def _is_far_better(true: np.ndarray, predicted: np.ndarray, order: np.ndarray) -> bool:
    if _kappa(true, predicted[:, order]) - _kappa(true, predicted) < _MIN_GAIN:
        return False
    centred = true - true.mean(0)
    gains = (centred * (predicted[:, order].astype(np.float64) - predicted)).sum(1)
    return bool(gains.mean() * np.sqrt(len(gains)) >= _MIN_DEVIATIONS * gains.std())


def _kappa(true: np.ndarray, predicted: np.ndarray) -> float:
    t, p = true.mean(0), predicted.mean(0)
    beyond_chance = (true & predicted).mean(0).sum() - (t * p).sum()
    most = ((t + p) / 2).sum() - (t * p).sum()
    return float(beyond_chance / most) if most > 0 else 0.0


def encoding_difference(
    teacher: "PreTrainedTokenizerBase",
    student: "PreTrainedTokenizerBase",
    texts: Sequence[Any],
    pairs: Sequence[str] | None,
    max_length: int,
    *,
    segments: bool,
) -> str | None:
    """Compare how two tokenizers of one vocabulary encode difficult texts, and a sample.

    Args:
        teacher: one tokenizer.
        student: the other.
        texts: of the data, each a text or a list of words.
        pairs: second texts, or None.
        max_length: longer examples are cut.
        segments: whether the teacher's model may read them.

    Returns:
        The first difference, as a message has it; None where there is none.
    """
    texts, pairs = _examples(student, texts, pairs, max_length)
    both = [_encoded(tokenizer, texts, pairs, max_length) for tokenizer in (teacher, student)]
    (teacher_ids, teacher_types), (student_ids, student_types) = both
    for row, (theirs, ours) in enumerate(zip(teacher_ids, student_ids, strict=True)):
        shown = repr(texts[row] if pairs is None else (texts[row], pairs[row]))
        if len(shown) > _SHOWN_CHARACTERS:
            shown = shown[: _SHOWN_CHARACTERS - 1] + "…"
        if theirs != ours:
            start = next(n for n in range(len(theirs) + 1) if theirs[: n + 1] != ours[: n + 1])
            found = [
                " ".join(tokenizer.convert_ids_to_tokens(ids[start : start + _SHOWN_TOKENS]))
                for tokenizer, ids in ((teacher, theirs), (student, ours))
            ]
            return (
                f"{found[0]!r} at the teacher and {found[1]!r} at the student from token {start} "
                f"of {shown} on"
            )
        if segments and teacher_types[row] != student_types[row]:
            return (
                f"segments (token_type_ids) {sorted(set(teacher_types[row]))} at the teacher and "
                f"{sorted(set(student_types[row]))} at the student in {shown}"
            )
    return None


def _examples(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[Any],
    pairs: Sequence[str] | None,
    max_length: int,
) -> tuple[list[str], list[str] | None]:
    """Return texts that reveal how tokenizers differ, and some of the data's."""
    special = " ".join(["a", *tokenizer.all_special_tokens, "b"])
    long = " ".join(f"w{number}" for number in range(max_length))
    probes: list[str] = [*_PROBES, special, long]
    rows = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _SAMPLE)).astype(int))
    sample = (texts[row] for row in rows)
    examples = [*probes, *(one if isinstance(one, str) else " ".join(one) for one in sample)]
    if pairs is None:
        return examples, None
    return examples, [*reversed(probes), *(str(pairs[row]) for row in rows)]


def _encoded(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return token ids and segments; the latter are 0 where the tokenizer makes none."""
    found: Any = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    ids: list[list[int]] = found["input_ids"]
    types = found.get("token_type_ids")
    return ids, types if types is not None else [[0] * len(each) for each in ids]
