"""Language models with one tokenizer whose embeddings are padded to different lengths."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import raybrew as rb
from raybrew.models.pretrained import quiet_transformers
from raybrew.preparation import prepare
from tests.kinds.made_kinds import lm_tokenizer, make_kind_model
from tests.kinds.test_runs import job_of
from tests.student.in_process import Recorder, build, losses_of

TRAINING = rb.TrainingConfig(num_steps=3, batch_size=8, learning_rate=1e-2, num_threads=1)


def padded(model: str, folder: Path, rows: int) -> str:
    """Save a model with more rows, whose logits are the largest of all."""
    with quiet_transformers():
        language_model: Any = AutoModelForCausalLM.from_pretrained(model)
        before = language_model.config.vocab_size
        language_model.resize_token_embeddings(before + rows, mean_resizing=False)
        with torch.no_grad():
            for embedding in (
                language_model.get_input_embeddings(),
                language_model.get_output_embeddings(),
            ):
                embedding.weight[before:] = 5.0
        language_model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    teacher = make_kind_model(folder / "teacher", "causal-lm", 0)
    student = make_kind_model(folder / "student", "causal-lm", 1)
    return {
        "teacher": teacher,
        "student": student,
        "longer teacher": padded(teacher, folder / "longer-teacher", 40),
        "longer student": padded(student, folder / "longer-student", 16),
    }


def job(teacher: str, student: str, folder: Path, top_k: int | None = None) -> rb.DistillJob:
    return job_of(
        "causal-lm",
        {"a": teacher},
        folder / "store",
        student=rb.Student(model=student),
        training=TRAINING,
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5),
        labels=rb.LabelConfig(store=str(folder / "store"), top_k=top_k),
    )


@pytest.mark.parametrize("top_k", [None, 8])
def test_rows_beyond_the_tokenizer_are_in_neither_softmax(models, top_k, tmp_path):
    found = {}
    for name in ("", "longer "):
        folder = tmp_path / (name or "plain").strip()
        made = job(models[f"{name}teacher"], models[f"{name}student"], folder, top_k)
        training, _ = build(made, folder / "data")
        recorder = Recorder()
        last = training.run(recorder)
        found[name] = (losses_of(recorder, "t", ["loss", "kd", "hard"]), last["eval/t/loss"])
        (folder / "saved").mkdir()
        training.save(folder / "saved")
        judged = rb.evaluate(made, folder / "saved" / "student")["t"]["loss"]
        assert judged == pytest.approx(last["eval/t/loss"])
    for term, losses in found[""][0].items():
        np.testing.assert_allclose(found["longer "][0][term], losses, rtol=1e-5, err_msg=term)
    assert found["longer "][1] == pytest.approx(found[""][1], rel=1e-5)


def test_students_of_other_lengths_share_the_labels(models, tmp_path):
    def fingerprint(teacher: str, student: str) -> str:
        made = job(models[teacher], models[student], tmp_path)
        return prepare(made, tmp_path / student).teachers[0].fingerprint

    one = fingerprint("longer teacher", "student")
    assert fingerprint("longer teacher", "longer student") == one
    # Labels of models whose embedding isn't padded stay what they were.
    assert fingerprint("teacher", "longer student") == fingerprint("teacher", "student")


def test_another_tokenizer_is_refused_whatever_the_lengths(models, tmp_path):
    words = lm_tokenizer()
    words.add_tokens(["another"])
    folder = make_kind_model(tmp_path / "other", "causal-lm", 0, words)
    with pytest.raises(rb.ConfigError, match=r"the teacher's vocabulary \(47 entries\) is not"):
        prepare(job(folder, models["longer student"], tmp_path), tmp_path / "data")
