"""Whether two tokenizers make the same of texts, so that both models can read one's token ids.

Equal vocabularies don't say so: tokenizers also differ in segments, upper and lower case, accents,
spaces, special tokens and on which side they cut.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

__all__ = ["encoding_difference"]

_SAMPLE = 256
_SHOWN_CHARACTERS, _SHOWN_TOKENS = 60, 8
_PROBES = (
    "Hello WORLD, it's the naïve café of Zürich (2024): don't…",
    "中国 is 大 🎉 ﬁne Ångström e\u0301 x\u00a0y",
    "  two  spaces, a tab\tand\na line ",
)


def encoding_difference(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    texts: Sequence[Any],
    pairs: Sequence[str] | None,
    max_length: int,
    *,
    segments: bool,
) -> str | None:
    """Compare what two tokenizers of one vocabulary make of texts known to differ, and of a sample.

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
        shown = _shown(texts[row] if pairs is None else (texts[row], pairs[row]))
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
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Any],
    pairs: Sequence[str] | None,
    max_length: int,
) -> tuple[list[str], list[str] | None]:
    """Return examples on which tokenizers differ if they do, and some of the data's."""
    special = " ".join(["a", *tokenizer.all_special_tokens, "b"])
    long = " ".join(f"w{number}" for number in range(max_length))
    probes: list[str] = [*_PROBES, special, long]
    rows = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _SAMPLE)).astype(int))
    examples = [*probes, *(_text_of(texts[row]) for row in rows)]
    if pairs is None:
        return examples, None
    return examples, [*reversed(probes), *(str(pairs[row]) for row in rows)]


def _text_of(example: Any) -> str:
    """Return a text, or the one that words make."""
    return example if isinstance(example, str) else " ".join(example)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return token ids and segments; those that a tokenizer doesn't make are 0."""
    found: Any = tokenizer(texts, pairs, truncation=True, max_length=max_length)
    ids: list[list[int]] = found["input_ids"]
    types = found.get("token_type_ids")
    return ids, types if types is not None else [[0] * len(each) for each in ids]


def _shown(example: Any) -> str:
    text = repr(example)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
