import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torchmetrics.functional.text import perplexity
from transformers import AutoModelForCausalLM, AutoTokenizer

import raybrew as rb
from raybrew.data.payload import Payload
from raybrew.data.split import IGNORED, STUDENT_VIEW, EncodedSplit
from raybrew.models.pretrained import quiet_transformers
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import TASK_TYPES
from tests.tasks.made_models import lm_tokenizer, make_task_model
from tests.tasks.test_runs import job_of
from tests.training.in_process import Recorder, build, losses_of

# Texts as windows of tokens that are each predicted once; perplexity as torchmetrics has it.

KIND = TASK_TYPES["causal-lm"]
TOKENIZER = lm_tokenizer()
END = TOKENIZER.convert_tokens_to_ids("</s>")


def encoded(texts: list[str], follow: list[str] | None = None, max_length: int = 8) -> EncodedSplit:
    columns = {"text": texts} | ({"then": follow} if follow else {})
    task = rb.Task(
        name="t",
        kind="causal-lm",
        train="x.csv",
        text_pair="then" if follow else None,
        max_length=max_length,
    )
    _, rows, _ = KIND.read(task, Dataset.from_dict(columns), None)
    return KIND.encode(task, rows, {STUDENT_VIEW: TOKENIZER})


def windows(split: EncodedSplit) -> list[tuple[list[int], list[int]]]:
    bounds = zip(split.student.offsets[:-1], split.student.offsets[1:], strict=True)
    return [(split.student.input_ids[a:b].tolist(), split.labels[a:b].tolist()) for a, b in bounds]


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_each_token_but_the_first_is_predicted_once():
    text = " ".join(f"w{n}" for n in range(10))
    split = encoded([text, "w1 w2"])
    whole = [*ids(text), END]
    assert windows(split) == [
        (whole[:8], whole[1:9]),
        (whole[8:], [*whole[9:], IGNORED]),
        ([*ids("w1 w2"), END], [*ids("w2"), END, IGNORED]),
    ]
    assert split.source is not None
    assert split.source.tolist() == [0, 0, 1]
    assert KIND.counts(split.labels) == (12, 12)


def test_prompts_are_read_and_not_learnt():
    split = encoded(["w1 w2", "w3 w4 w5"], ["w6", "w7 w8 w9"], max_length=6)
    assert windows(split) == [
        ([*ids("w1 w2 w6"), END], [IGNORED, *ids("w6"), END, IGNORED]),
        (ids("w3 w4 w5 w7 w8 w9"), [IGNORED, IGNORED, *ids("w7 w8 w9"), END]),
    ]
    assert split.counts["truncated"] == 1


def test_perplexity_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    labels[1, 4:] = IGNORED
    known = labels != IGNORED
    predicted = KIND.predict([logits[known]], [labels[known]])
    offsets = np.array([0, 7, 11, 18]) * 2
    got = KIND.metrics(
        Payload(predicted.reshape(-1).numpy(), offsets), encoded(["w1"]), np.arange(3), ()
    )
    expected = float(perplexity(logits, labels, ignore_index=IGNORED))
    assert got["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert got["loss"] == pytest.approx(math.log(expected), rel=1e-5)
    assert got["token_probability"] == pytest.approx(1 / expected, rel=1e-5)
    assert got["accuracy"] == pytest.approx(
        float((logits.argmax(-1) == labels)[known].double().mean())
    )
    assert got["examples"] == 18


# Language models with one tokenizer whose embeddings are padded to different lengths.

TRAINING = rb.TrainingConfig(num_steps=3, batch_size=8, learning_rate=1e-2, num_threads=1)


def padded(model: str, folder: Path, rows: int) -> str:
    """Save a model with more rows, whose logits are the largest of all."""
    with quiet_transformers():
        language_model = AutoModelForCausalLM.from_pretrained(model)
        before = language_model.config.vocab_size
        language_model.resize_token_embeddings(before + rows, mean_resizing=False)
        with torch.no_grad():
            ends: list[Any] = [
                language_model.get_input_embeddings(),
                language_model.get_output_embeddings(),
            ]
            for embedding in ends:
                embedding.weight[before:] = 5.0
        language_model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    teacher = make_task_model(folder / "teacher", "causal-lm", 0)
    student = make_task_model(folder / "student", "causal-lm", 1)
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
        loss = rb.evaluate(made, folder / "saved" / "student")["t"]["loss"]
        assert loss == pytest.approx(last["eval/t/loss"])
    for term, losses in found[""][0].items():
        np.testing.assert_allclose(found["longer "][0][term], losses, rtol=1e-5, err_msg=term)
    assert found["longer "][1] == pytest.approx(found[""][1], rel=1e-5)


def test_students_of_other_lengths_share_the_labels(models, tmp_path):
    def fingerprint(teacher: str, student: str) -> str:
        made = job(models[teacher], models[student], tmp_path)
        return resolve_job(made, tmp_path / student).teachers[0].fingerprint

    one = fingerprint("longer teacher", "student")
    assert fingerprint("longer teacher", "longer student") == one
    # Labels of models whose embedding isn't padded stay what they were.
    assert fingerprint("teacher", "longer student") == fingerprint("teacher", "student")


def test_another_tokenizer_is_refused_whatever_the_lengths(models, tmp_path):
    words = lm_tokenizer()
    words.add_tokens(["another"])
    folder = make_task_model(tmp_path / "other", "causal-lm", 0, words)
    with pytest.raises(rb.ConfigError, match=r"the teacher's vocabulary \(47 entries\) is not"):
        resolve_job(job(folder, models["longer student"], tmp_path), tmp_path / "data")
