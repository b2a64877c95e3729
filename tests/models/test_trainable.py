from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from raybrew.config import Student, Teacher
from raybrew.errors import ConfigError
from raybrew.models.pretrained import meta_model
from raybrew.models.trainable import freeze
from tests.models.checkpoints import bert, build, one_teacher


@pytest.fixture
def teachers(tmp_path: Path) -> dict[str, Teacher]:
    return one_teacher(tmp_path / "a", bert(), name="a")


def test_freeze_stops_at_whole_numbers():
    model = meta_model(AutoModelForSequenceClassification, bert(num_hidden_layers=11), "x")
    freeze(model, ["layer.1"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(".layer.1." in name for name in frozen)


def test_build_freezes_and_counts(teachers):
    model, _ = build(Student(model=teachers["a"].model, freeze=("embeddings",)), {})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if "embeddings" not in n}
    assert freeze(model, ["word_embeddings", "LayerNorm"]) == 1 + 2 * (1 + 2 * 4)


def test_freeze_of_nothing_names_the_nearest_and_changes_nothing():
    model = meta_model(AutoModelForSequenceClassification, bert(), "x")
    with pytest.raises(ConfigError, match=r"student\.freeze.*'embedings'.*'embeddings'"):
        freeze(model, ["classifier", "embedings"], "student.freeze")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("patterns", [["bert", "classifier"], [""]])
def test_freeze_of_everything_is_refused(patterns):
    model = meta_model(AutoModelForSequenceClassification, bert(), "x")
    with pytest.raises(ConfigError):
        freeze(model, patterns)
    assert all(p.requires_grad for p in model.parameters())
