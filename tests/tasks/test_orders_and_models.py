"""Teachers unlike the student: classes in another order, language models, other tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig

import raybrew as rb
from raybrew.data.split import Padding, collate
from raybrew.evaluation.stored_teachers import evaluate_teachers
from raybrew.models.students import save_student
from raybrew.runs.resolve import resolve_job
from raybrew.tasks import TASK_TYPES
from tests.made import CLASSES, STUDENT_CONFIG, make_job, make_model, make_tokenizer
from tests.tasks import user_adaptors
from tests.tasks.made_models import make_task_model, wordpiece
from tests.tasks.test_runs import job_of
from tests.training.in_process import Recorder, build

NO_DROPOUT = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def permuted(path: str, order: tuple[int, ...], folder: Path) -> str:
    """Save the same classifier with its classes in another order."""
    model = AutoModelForSequenceClassification.from_pretrained(path)
    model.config.id2label = {place: CLASSES[n] for place, n in enumerate(order)}
    model.config.label2id = {CLASSES[n]: place for place, n in enumerate(order)}
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][list(order)].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def ran(models: dict[str, str], folder: Path, **changes: Any):
    job = make_job(models, folder / "store", student=rb.Student(config=NO_DROPOUT), **changes)
    training, pool = build(job, folder / "data")
    recorder = Recorder()
    training.run(recorder)
    preparation = resolve_job(job, folder / "again")
    split = preparation.tasks[0].eval
    assert split is not None
    for teacher in preparation.teachers:
        name = teacher.name
        pool.replicas[name].ask(split.views[teacher.view], teacher.signals)
    pool.flush()
    return recorder.term("sum", "kd"), evaluate_teachers(preparation)


@pytest.mark.parametrize("top_k", [None, 2])
def test_classes_in_another_order_are_mapped_by_their_names(tmp_path, top_k):
    labels = {"labels": rb.LabelConfig(store=str(tmp_path / f"s{top_k}"), top_k=top_k)}
    distillation = {
        "distillation": rb.DistillationConfig(temperature=2, mixture="sum_losses", scale_t2=False)
    }
    plain = {name: make_model(tmp_path / name, seed) for seed, name in enumerate("ab")}
    other = {"a": plain["a"], "b": permuted(plain["b"], (2, 0, 1), tmp_path / "p")}
    expected, metrics = ran(plain, tmp_path / "1", **labels, **distillation)
    got, metrics_too = ran(other, tmp_path / "2", **labels, **distillation)
    assert got == pytest.approx(expected, rel=1e-5)
    assert metrics_too == metrics


def with_classes_turned(path: str, kind: str, folder: Path) -> str:
    """Save a model with its classes, and its head, the other way round."""
    model = TASK_TYPES[kind].model_class.from_pretrained(path)
    names = [model.config.id2label[n] for n in reversed(range(model.config.num_labels))]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: place for place, name in enumerate(names)}
    with torch.no_grad():
        torch.nn.init.normal_(model.classifier.bias)
        for weight in (model.classifier.weight, model.classifier.bias):
            weight.copy_(weight.flip(0))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(str(folder))
    return str(folder)


@pytest.mark.parametrize("kind", ["sequence-classification", "token-classification", "multi-label"])
def test_a_student_that_takes_all_of_its_teacher_scores_as_the_teacher(kind, tmp_path):
    if kind == "sequence-classification":
        made = make_model(tmp_path / "made", 0)
        job = make_job({"a": with_classes_turned(made, kind, tmp_path / "a")}, tmp_path / "store")
    else:
        made = make_task_model(tmp_path / "made", kind, 0)
        turned = with_classes_turned(made, kind, tmp_path / "a")
        job = job_of(kind, {"a": turned}, tmp_path / "store")
    training = rb.TrainingConfig(num_steps=1, batch_size=16, learning_rate=1e-30, num_threads=1)
    student = rb.Student(layers_from=("a", (0, 1)))
    job = job.model_copy(update={"student": student, "training": training})
    trained, _ = build(job, tmp_path / "data")
    trained.run(Recorder())
    save_student(trained.model, trained.tokenizer, tmp_path / "student")
    expected = rb.evaluate(job, job.teachers[0].model_path)
    assert rb.evaluate(job, tmp_path / "student") == expected
    again = job.model_copy(update={"student": rb.Student(model=str(tmp_path / "student"))})
    resumed, _ = build(again, tmp_path / "again")
    assert all(
        torch.equal(tensor, resumed.model.state_dict()[name])
        for name, tensor in trained.model.state_dict().items()
    )


def test_a_language_model_teaches_classes(tmp_path):
    tokenizer = make_tokenizer()
    names = {
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {c: n for n, c in enumerate(CLASSES)},
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        **names,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(str(tmp_path / "lm"))
    encoder = make_model(tmp_path / "encoder", 1)
    job = make_job(
        {"lm": str(tmp_path / "lm")},
        tmp_path / "store",
        student=rb.Student(config=NO_DROPOUT, tokenizer_from=encoder),
        distillation=rb.DistillationConfig(temperature=2, scale_t2=False),
    )
    training, _ = build(job, tmp_path / "data")
    _, rows = training.sequence.batch(0)
    batch = collate(training.tasks[0].train.student, rows, Padding(0))
    with torch.inference_mode():
        target = (model.eval()(**batch).logits / 2).softmax(-1)
        expected = float(cross_entropy(training.model(**batch).logits / 2, target))
    recorder = Recorder()
    training.run(recorder)
    assert recorder.term("sum", "kd")[0] == pytest.approx(expected, rel=1e-5)
    trained: Any = training.model
    assert AutoConfig.from_pretrained(encoder).model_type == trained.config.model_type


def test_a_task_of_ones_own_has_outputs_of_ones_own(tmp_path):
    # The model's logits as two outputs, the second one backwards: each loss comes twice.
    models = {"a": make_model(tmp_path / "a", 0)}
    expected, _ = ran(models, tmp_path / "1")
    job = make_job(
        models,
        tmp_path / "2",
        student=rb.Student(config=NO_DROPOUT),
        tasks=[
            make_job(models, tmp_path)
            .tasks[0]
            .model_copy(update={"adaptor": user_adaptors.there_and_back, "eval": None})
        ],
    )
    recorder = Recorder()
    build(job, tmp_path / "data")[0].run(recorder)
    assert recorder.term("sum", "kd")[0] == pytest.approx(2 * expected[0], rel=1e-5)


def test_a_teacher_with_tokens_of_its_own_answers_questions(tmp_path):
    kind = "question-answering"
    whole = ("the", "in", "at", "and", "where", "when", "who")
    paths = {
        "a": make_task_model(tmp_path / "a", kind, 0),
        "b": make_task_model(
            tmp_path / "b", kind, 1, wordpiece(*whole, "rhine", "sea", "nobel", "water")
        ),
    }
    job = job_of(kind, paths, tmp_path / "store")
    own = job.teachers[1].model_copy(update={"inputs": "own"})
    task = job.tasks[0].model_copy(update={"max_length": 48})
    student = job.student.model_copy(update={"tokenizer_from": paths["a"]})
    changes = {"teachers": (job.teachers[0], own), "student": student, "tasks": (task,)}
    training, _ = build(job.model_copy(update=changes), tmp_path / "data")
    split = training.tasks[0].train
    _, rows = training.sequence.batch(0)
    losses = []
    models = {n: _loaded(path) for n, path in paths.items()}
    for row in rows:
        mine = _logits(training.model, split.student, row)
        first = _logits(models["a"], split.student, row)
        second = _logits(models["b"], split.views["b"], row)
        begin, stop = split.student.offsets[row : row + 2]
        aligned = torch.from_numpy(split.alignments["b"][begin:stop].copy()).long()
        for side in (0, 1):
            known = aligned[:, side] >= 0
            assert 0 < known.sum() < len(known)
            target = (first[known, side] + second[aligned[known, side], side]) / 2
            losses.append(cross_entropy(mine[known, side] / 2, (target / 2).softmax(-1)))
    recorder = Recorder()
    training.run(recorder)
    expected = float(torch.stack(losses).sum()) / len(rows)
    assert recorder.term("t", "kd")[0] == pytest.approx(expected, rel=1e-5)


def _loaded(path: str) -> Any:
    from transformers import AutoModelForQuestionAnswering

    return AutoModelForQuestionAnswering.from_pretrained(path)


def _logits(model: Any, view: Any, row: int) -> torch.Tensor:
    """Start and end logits of one example, (L, 2)."""
    training = model.training
    with torch.inference_mode():
        outputs = model.eval()(**collate(view, torch.tensor([row]).numpy(), Padding(0)))
    model.train(training)
    return torch.stack([outputs.start_logits[0], outputs.end_logits[0]], -1)
