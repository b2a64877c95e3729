"""What answers are worth, by their texts: as SQuAD's script says it, and as that of CMRC 2018.

SQuAD      words between white space, without case, articles and punctuation; F1 of the bags
CMRC 2018  characters of Chinese, words of the rest; F1 of the longest run that both share
"""

import re
from collections.abc import Callable, Mapping, Sequence

__all__ = ["ANSWER_METRICS", "character_metrics", "squad_metrics"]

_PUNCTUATION = "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』"
_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")


def squad_metrics(predicted: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compare texts as SQuAD's script does.

    Args:
        predicted: N texts.
        answers: of each question its true texts; none where it has no answer.

    Returns:
        `exact_match` and `f1` in [0, 1], and `examples`.
    """
    figures = {"examples": float(len(predicted))}
    if not predicted:
        return figures
    from torchmetrics.functional.text import squad

    found = [{"prediction_text": text, "id": str(n)} for n, text in enumerate(predicted)]
    true = [
        {"answers": {"text": list(texts) or [""], "answer_start": [0]}, "id": str(n)}
        for n, texts in enumerate(answers)
    ]
    scores = squad(found, true)  # type: ignore[arg-type]
    return figures | {name: float(scores[name]) / 100 for name in ("exact_match", "f1")}


def character_metrics(
    predicted: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Compare texts as the script of CMRC 2018 does.

    A unit is a Chinese character, or what stands together of anything else; F1 is that of the
    longest run of units that both texts have. Case and punctuation don't count.

    Args:
        predicted: N texts.
        answers: of each question its true texts; none where it has no answer.

    Returns:
        `exact_match` and `f1` in [0, 1], and `examples`.
    """
    figures = {"examples": float(len(predicted))}
    if not predicted:
        return figures
    pairs = [
        (_bare(text), [_bare(true) for true in list(each) or [""]])
        for text, each in zip(predicted, answers, strict=True)
    ]
    exact = sum(text in true for text, true in pairs)
    f1 = sum(max(_run_f1(_units(text), _units(one)) for one in true) for text, true in pairs)
    return figures | {"exact_match": exact / len(pairs), "f1": f1 / len(pairs)}


ANSWER_METRICS: Mapping[
    str, Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]]
] = {"word": squad_metrics, "character": character_metrics}
"""By `Task.answers_by`."""


def _bare(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _PUNCTUATION)


def _units(text: str) -> list[str]:
    return _UNIT.findall(text)


def _run_f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    if not predicted or not true:
        return float(predicted == true)
    shared = _longest_run(predicted, true)
    # 2PR / (P + R) with P = shared / predicted and R = shared / true.
    return 2 * shared / (len(predicted) + len(true))


def _longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest contiguous run that both have."""
    longest = 0
    ending = [0] * (len(right) + 1)
    for unit in left:
        # Runs that end here: one longer than those that end one before, on both sides.
        ending = [0] + [
            before + 1 if unit == other else 0 for before, other in zip(ending, right, strict=False)
        ]
        longest = max(longest, *ending)
    return longest
