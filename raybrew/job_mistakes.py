"""Every mistake of a job in words: one line each, with path, expected, got, and nearest names."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from raybrew.job_paths import section_of

__all__ = ["explain"]

# What pydantic calls things, in the words of a YAML file.
_WORDS = (
    (r"^Input should be (?=greater|less|a multiple)", "expected a number "),
    (r"^Input should be ", "expected "),
    (r"^(Tuple|List) should have (.*) item(s?) after validation.*", r"expected \2 element\3"),
    (r"^(String|Dictionary) should have ", r"expected a \1 with "),
    (r"^String should match pattern ", "expected a name that matches "),
    (r"a valid dictionary or instance of \w+", "a mapping"),
    (r"a valid (dictionary|mapping)", "a mapping"),
    (r"a valid (tuple|list|array)", "a list"),
    (r"a valid string", "a text"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid (integer|number), .*", r"a valid \1"),
)
_FORMS = ("float", "bool")
"""Of a value of `Options`."""


def explain(error: ValidationError, root_model: type[BaseModel], extra: Iterable[str] = ()) -> str:
    """Return one line for each mistake: `tasks[0].txt: unknown key …, did you mean 'text'?`.

    Args:
        error: What pydantic found.
        root_model: The model that refused the values.
        extra: Keys of the top level that are known besides the model's.
    """
    mistakes = error.errors(include_url=False)
    places = [tuple(mistake["loc"]) for mistake in mistakes]
    # A list whose elements were refused counts as too short to pydantic; the elements say it.
    mistakes = [
        mistake
        for mistake, place in zip(mistakes, places, strict=True)
        if mistake["type"] != "too_short"
        or not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]
    lines = [_line(mistake, root_model, tuple(extra)) for mistake in _of_values(mistakes)]
    return "\n".join(dict.fromkeys(lines))


def _of_values(mistakes: Iterable[Any]) -> list[dict[str, Any]]:
    """Take out of the places what only pydantic knows of: a key, the forms of a value."""
    found = [dict(mistake) for mistake in mistakes]
    places = {tuple(mistake["loc"]) for mistake in found}
    for mistake in found:
        *above, last = mistake["loc"] or ("",)
        if last == "[key]":
            mistake |= {"loc": above[:-1], "type": "form", "msg": "expected texts as keys"}
        elif last in _FORMS and {(*above, form) for form in _FORMS} <= places:
            said = "expected a number, or true or false"
            mistake |= {"loc": above, "type": "form", "msg": said}
    return found


def _line(mistake: dict[str, Any], root: type[BaseModel], extra: Sequence[str]) -> str:
    place = tuple(mistake["loc"])
    path = _path(place)
    prefix = f"{path}: " if path else ""
    kind, got = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        parent = _section(root, place[:-1])
        known = sorted(parent.model_fields) if parent else []
        known += extra if len(place) == 1 else ()
        return f"{prefix}unknown key, expected {_one_of(str(place[-1]), known)}"
    if kind == "missing":
        return f"{prefix}expected a value{_meaning(root, place)}, got none"
    if kind == "value_error":  # our own, which says what was expected and got
        return prefix + mistake["msg"].removeprefix("Value error, ")
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", mistake["ctx"]["expected"])
        return f"{prefix}expected {_one_of(got, options)}, got {_shown(got)}"
    text = mistake["msg"]
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    text = text if text.startswith("expected ") else f"expected otherwise: {text}"
    return f"{prefix}{text}, got {_shown(got)}"


def _path(place: Sequence[int | str]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in place]
    return "".join(parts).removeprefix(".")


def _section(root: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that holds the values at a place."""
    model: type[BaseModel] | None = root
    for key in place:
        if isinstance(key, str):
            known = model.model_fields.get(key) if model else None
            model = section_of(known.annotation) if known else None
    return model


def _meaning(root: type[BaseModel], place: Sequence[int | str]) -> str:
    parent = _section(root, place[:-1])
    known = parent.model_fields.get(str(place[-1])) if parent else None
    return f" ({known.description.rstrip('.')})" if known and known.description else ""


def _one_of(got: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(got, known, n=1) if isinstance(got, str) else []
    listed = f"one of {', '.join(known)}" if len(known) != 1 else repr(known[0])
    return listed + (f"; did you mean {near[0]!r}?" if near else "")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
