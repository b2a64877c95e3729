"""Every field that a job may have says what it is, and names no other field that isn't there."""

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from raybrew.config import DistillJob, MatchPreset, TrainJob
from raybrew.config.mistakes import section_of
from raybrew.matches.spec import CustomMatch, MatchSpec


def sections(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield kind
    for field in kind.model_fields.values():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from sections(inner)


SECTIONS = {
    each.__name__: each
    for kind in (DistillJob, TrainJob, MatchPreset, MatchSpec, CustomMatch)
    for each in sections(kind)
}


def test_all_sections_are_looked_at():
    assert SECTIONS.keys() >= {
        *("Task", "Teacher", "Student", "DistillationConfig", "TrainingConfig", "LabelConfig"),
        *("TrackingConfig", "MixingConfig", "Augmentation", "Operation"),
    }


@pytest.mark.parametrize("name", SECTIONS)
def test_each_field_is_described(name):
    assert SECTIONS[name].__doc__
    for field, info in SECTIONS[name].model_fields.items():
        text = info.description or ""
        assert len(text.split()) >= 2, f"{name}.{field} is not described"
        assert text.endswith("."), f"{name}.{field}: {text!r}"
