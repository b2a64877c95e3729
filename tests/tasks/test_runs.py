"""Each task type through the whole engine in this process, against transformers' own models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

import raybrew as rb
from raybrew.data.split import Padding, collate, collate_labels
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import TASK_TYPES
from raybrew.training.build import build_training
from raybrew.training.world import World
from tests.tasks.made_models import (
    MODELS,
    byte_pairs,
    make_rows,
    make_task_model,
    names_of,
    tokenizer_of,
)
from tests.training.in_process import Recorder, build

KIND_NAMES = (
    "multi-label",
    "regression",
    "token-classification",
    "question-answering",
    "causal-lm",
)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T = 2.0


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("teachers")
    return {
        kind: {n: make_task_model(folder / kind / n, kind, seed) for seed, n in enumerate("ab")}
        for kind in KIND_NAMES
    }


def job_of(kind: str, models: dict[str, str], store: Path, **changes: Any) -> rb.DistillJob:
    rows = make_rows(kind, 24)
    task = {"name": "t", "kind": kind, "train": rows, "eval": make_rows(kind, 9, 1)}
    names = names_of(kind)
    if len(names) > 1 and kind != "question-answering":
        task["label_names"] = names
    size = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32}
    sections: dict[str, Any] = {
        "tasks": [rb.Task(**task, max_length=24, stride=4)],
        "teachers": [
            rb.Teacher(name=n, task="t", model=model, batch_tokens=64)
            for n, model in models.items()
        ],
        "student": rb.Student(config=size | ({} if kind == "causal-lm" else NO_DROPOUT)),
        "distillation": rb.DistillationConfig(temperature=T, hard_label_weight=0.5, scale_t2=False),
        "training": rb.TrainingConfig(
            num_steps=3, batch_size=8, learning_rate=1e-3, num_threads=1, warmup_ratio=0
        ),
        "labels": rb.LabelConfig(store=str(store), window=2),
        "tracking": rb.TrackingConfig(log_every=1, progress=False),
    }
    return rb.DistillJob(**{**sections, **changes})


def by_transformers(kind: str, models: list, student, split, rows: np.ndarray) -> dict[str, float]:
    """The losses of one batch with two teachers, straight from transformers' outputs."""
    inputs = collate(split.student, rows, Padding(0))
    labels = collate_labels(split, rows, inputs["input_ids"].shape[1])
    with torch.inference_mode():
        answers = [model(**inputs) for model in models]
        own = student.eval()(**inputs)
    student.train()
    if kind == "question-answering":
        out = inputs["attention_mask"] == 0
        kd = hard = 0.0
        for n, name in enumerate(("start_logits", "end_logits")):
            mean = torch.stack([a[name] for a in answers]).mean(0).masked_fill(out, -1e9)
            mine = own[name].masked_fill(out, -1e9)
            kd += float(cross_entropy(mine / T, (mean / T).softmax(-1)))
            hard += float(cross_entropy(mine, labels[:, n])) / 2
        return {"kd": kd, "hard": hard}
    mean, mine = torch.stack([a.logits for a in answers]).mean(0), own.logits
    if kind in ("token-classification", "causal-lm"):
        known = labels >= 0
        mean, mine, labels = mean[known], mine[known], labels[known]
    return {"kd": float(_kd(kind, mine, mean)), "hard": float(_hard(kind, mine, labels))}


def _kd(kind: str, mine: Tensor, mean: Tensor) -> Tensor:
    if kind == "regression":
        return mse_loss(mine, mean)  # nothing to soften
    if kind == "multi-label":
        return binary_cross_entropy_with_logits(mine / T, (mean / T).sigmoid())
    return cross_entropy(mine / T, (mean / T).softmax(-1))


def _hard(kind: str, mine: Tensor, labels: Tensor) -> Tensor:
    if kind == "regression":
        return mse_loss(mine, labels)
    if kind == "multi-label":
        return binary_cross_entropy_with_logits(mine, labels.float())
    return cross_entropy(mine, labels)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_losses_are_those_of_transformers_outputs(kind, teachers, tmp_path):
    training, pool = build(job_of(kind, teachers[kind], tmp_path / "store"), tmp_path / "data")
    models = [MODELS[kind].from_pretrained(path).eval() for path in teachers[kind].values()]
    split = training.tasks[0].train
    _, rows = training.sequence.batch(0)
    expected = by_transformers(kind, models, training.model, split, rows)
    recorder = Recorder()
    last = training.run(recorder)
    assert recorder.term("t", "kd")[0] == pytest.approx(expected["kd"], rel=1e-5)
    assert recorder.term("t", "hard")[0] == pytest.approx(expected["hard"], rel=1e-5)
    pool.flush()
    main = TASK_TYPES[kind].main_metric(names_of(kind))
    assert last["eval/score"] == pytest.approx(last[f"eval/t/{main}"], nan_ok=True)
    assert last["eval/t/examples"] > 0
    # What is saved is a model that transformers loads by itself.
    (tmp_path / "checkpoint").mkdir()
    training.save(tmp_path / "checkpoint")
    loaded, info = MODELS[kind].from_pretrained(
        tmp_path / "checkpoint" / "student", output_loading_info=True
    )
    assert not info["missing_keys"]
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_teachers_are_evaluated_by_their_stored_answers_as_students_are(kind, teachers, tmp_path):
    # A student that is its teacher, evaluated live, against the teacher's labels in the store.
    job = job_of(
        kind,
        {"a": teachers[kind]["a"]},
        tmp_path / "store",
        student=rb.Student(model=teachers[kind]["a"]),
    )
    training, pool = build(job, tmp_path / "data")
    preparation = resolve_job(job, tmp_path / "again")
    alone = training.evaluate(Recorder())
    evaluation = preparation.tasks[0].eval
    assert evaluation is not None
    teacher = preparation.teachers[0]
    pool.replicas["a"].ask(evaluation.views[teacher.view], teacher.signals)
    pool.flush()
    metrics, ensembles = evaluate_teachers(preparation)
    for name, value in metrics["a"].items():
        assert value == pytest.approx(alone[f"eval/t/{name}"], rel=1e-4, nan_ok=True), name
    assert ensembles["t"] == pytest.approx(metrics["a"], nan_ok=True)


def test_the_largest_logits_of_a_language_model(teachers, tmp_path):
    largest = []
    for k in (46, 3):
        job = job_of(
            "causal-lm",
            teachers["causal-lm"],
            tmp_path / f"k{k}",
            labels=rb.LabelConfig(store=str(tmp_path / f"k{k}"), top_k=k),
            distillation=rb.DistillationConfig(temperature=T, mixture="sum_losses"),
        )
        recorder = Recorder()
        build(job, tmp_path / f"d{k}")[0].run(recorder)
        largest.append(recorder.term("t", "kd")[0])
    dense = job_of(
        "causal-lm",
        teachers["causal-lm"],
        tmp_path / "1",
        distillation=rb.DistillationConfig(temperature=T, mixture="sum_losses"),
    )
    recorder = Recorder()
    build(dense, tmp_path / "d2")[0].run(recorder)
    assert largest[0] == pytest.approx(recorder.term("t", "kd")[0], rel=1e-5)
    assert 0 < largest[1] < largest[0]


@pytest.mark.parametrize("with_shared", [True, False])
def test_a_teacher_with_tokens_of_its_own_teaches_words(tmp_path, with_shared):
    kind = "token-classification"
    paths = {
        "a": make_task_model(tmp_path / "a", kind, 0),
        "b": make_task_model(tmp_path / "b", kind, 1, byte_pairs()),
    }
    job = job_of(kind, paths, tmp_path / "store")
    own = job.teachers[1].model_copy(update={"inputs": "own"})
    teachers = (job.teachers[0], own) if with_shared else (own,)
    changes = {
        "teachers": teachers,
        "student": job.student.model_copy(update={"tokenizer_from": paths["a"]}),
    }
    training, _ = build(job.model_copy(update=changes), tmp_path / "data")
    split = training.tasks[0].train
    words = split.labels >= 0
    # Bytes are many: the last words of long sentences are beyond the teacher's window.
    assert 0 < (words & (split.alignments["b"] >= 0)).sum() < words.sum()
    assert split.counts["words_unaligned_b"] == (words & (split.alignments["b"] < 0)).sum()
    _, rows = training.sequence.batch(0)
    sentences = [make_rows(kind, 24)["words"][int(row)] for row in rows]
    models = {n: MODELS[kind].from_pretrained(path) for n, path in paths.items()}
    tokenizers = {"a": tokenizer_of(kind), "b": byte_pairs()}
    asked = {n: (models[n], tokenizers[n]) for n in (("a", "b") if with_shared else ("b",))}
    expected = word_by_word((training.model, tokenizers["a"]), asked, sentences)
    recorder = Recorder()
    training.run(recorder)
    assert recorder.term("t", "kd")[0] == pytest.approx(expected, rel=1e-5)


def word_by_word(student: Any, teachers: dict[str, Any], sentences: list[list[str]]) -> float:
    """KD over the words that a teacher has an answer for, one sentence at a time."""
    losses = []
    for words in sentences:
        mine, *theirs = [of_words(m, t, words) for m, t in (student, *teachers.values())]
        for word, logits in mine.items():
            known = [each[word] for each in theirs if word in each]
            if known:
                target = (torch.stack(known).mean(0) / T).softmax(-1)
                losses.append(float(cross_entropy(logits / T, target)))
    return float(np.mean(losses))


def of_words(model: Any, tokenizer: Any, words: list[str]) -> dict[int, Tensor]:
    """Logits of each word's first token."""
    options = {"is_split_into_words": True, "truncation": True, "max_length": 24}
    # As in a text, where a space stands before each word but the first.
    spaced = [words[0], *(f" {word}" for word in words[1:])]
    batch = tokenizer(spaced, return_tensors="pt", **options)
    training = model.training
    with torch.inference_mode():
        logits = model.eval()(**batch).logits[0]
    model.train(training)
    ids = batch.word_ids(0)
    return {word: logits[ids.index(word)] for word in ids if word is not None}


@pytest.mark.parametrize("kind", ["multi-label", "regression", "token-classification"])
def test_rows_may_be_read_changed(kind, teachers, tmp_path):
    job = job_of(kind, teachers[kind], tmp_path / "store")
    plain = resolve_job(job, tmp_path / "plain").tasks[0].train
    changes = {"operations": [{"name": "deleting", "p": 0.5}], "copies": 1, "hard_labels": True}
    task = rb.Task(**{**dict(job.tasks[0]), "augmentation": changes})
    split = resolve_job(job.model_copy(update={"tasks": (task,)}), tmp_path / "data").tasks[0].train
    assert len(split) == 2 * len(plain)
    first, second = np.arange(24), np.arange(24, 48)
    np.testing.assert_array_equal(split.labels_of(first), plain.labels)
    assert split.student.lengths[second].sum() < split.student.lengths[first].sum()
    if kind == "token-classification":
        # The tag of a word stays with it: it follows from the word's number.
        ids, labels = split.student.take(second).input_ids, split.labels_of(second)
        words = tokenizer_of(kind).convert_ids_to_tokens(ids[labels >= 0].tolist())
        assert len(words) > 24
        assert [int(word[1:]) % 4 for word in words] == labels[labels >= 0].tolist()
    else:
        np.testing.assert_array_equal(split.labels_of(second), plain.labels)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_teachers_are_made_from_labels_alone(kind, teachers, tmp_path):
    distilled = job_of(kind, teachers[kind], tmp_path)
    job = rb.TrainJob(
        tasks=distilled.tasks,
        model=rb.Student(model=teachers[kind]["a"]),
        training=rb.TrainingConfig(
            num_steps=30, batch_size=8, learning_rate=3e-3, num_threads=1, evaluate_every=30
        ),
        tracking=distilled.tracking,
    )
    plan = resolve_job(job, tmp_path / "data")
    training = build_training(plan, World(), None)
    recorder = Recorder()
    last = training.run(recorder)
    losses = recorder.term("t", "hard")
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert last["eval/t/examples"] > 0
