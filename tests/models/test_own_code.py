"""Code that comes with a model's files: it runs where it is asked for by name, and nowhere else."""

import json
from pathlib import Path

import pytest

import raybrew as rb
from raybrew.data.encoding import encode
from raybrew.data.payload import Signal
from raybrew.data.split import Padding
from raybrew.models.students import build_student, student_config
from raybrew.runs.resolve import MetadataCache
from raybrew.teachers.teacher import ModelTeacher, ResolvedTeacher
from tests.made import CLASSES, made_teacher, make_model, make_tokenizer
from tests.models.checkpoints import one_head

OWN_CODE = """
import pathlib
from transformers import BertConfig, BertForSequenceClassification

pathlib.Path({sprung!r}).touch()

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        answer = super().forward(*args, **kwargs)
        answer.logits = answer.logits * 0 + {answer}
        return answer
"""


def own_code(folder: Path, sprung: Path, answer: float) -> str:
    """Make a model that answers with a number, by code that comes with its files."""
    make_model(folder, 0)
    (folder / "own.py").write_text(OWN_CODE.format(sprung=str(sprung), answer=answer))
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    config |= {"model_type": "own", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def spec(model: str, *, trust: bool) -> ResolvedTeacher:
    kind = "sequence-classification"
    return made_teacher(
        "a", model, "f", kind, "float32", 64, Padding(0), 1, trust_remote_code=trust
    )


def fingerprint_of(model: str) -> str:
    teacher = rb.Teacher(name="a", task="sum", model=model, trust_remote_code=True)
    return MetadataCache().fingerprint(teacher, adaptor="x")


def test_code_of_a_model_runs_where_it_is_asked_for_by_name(tmp_path, monkeypatch):
    sprung = tmp_path / "sprung"
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    model = own_code(tmp_path / "own", sprung, 7.0)
    heads = one_head(CLASSES)
    trusted = {"a": rb.Teacher(name="a", task="sum", model=model, trust_remote_code=True)}
    untrusted = {"a": rb.Teacher(name="a", task="sum", model=model)}
    # A teacher's trust is not the student's, nor the other way round.
    for student, teachers in [
        (rb.Student(config={}), untrusted),
        (rb.Student(config={}, trust_remote_code=True), untrusted),
        (rb.Student(model=model), trusted),
        (rb.Student(layers_from=(model, [0])), {}),
    ]:
        with pytest.raises(rb.ConfigError, match=r"trust_remote_code: true"):
            student_config(student, heads, teachers)
    with pytest.raises(rb.TeacherError, match=r"trust_remote_code: true"):
        ModelTeacher(spec(model, trust=False))
    assert not sprung.exists()
    for student, teachers in [
        (rb.Student(config={}), trusted),
        (rb.Student(layers_from=("a", [1])), trusted),
        (rb.Student(model=model, trust_remote_code=True), {}),
    ]:
        built, _ = build_student(student, heads, teachers, seed=0)
        assert type(built).__name__ == "OwnModel"
    assert sprung.exists()
    view = encode(make_tokenizer(), ["w1 w2"], None, 32)[0]
    answer = ModelTeacher(spec(model, trust=True)).answer(view, (Signal(),))[Signal().name]
    assert answer.values.tolist() == [[7.0] * 3]
    # The code is part of what an answer depends on.
    before = fingerprint_of(model)
    own_code(Path(model), sprung, 8.0)
    assert fingerprint_of(model) != before
