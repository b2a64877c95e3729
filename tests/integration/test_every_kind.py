"""Every kind of task on a real Ray, from `raybrew train-teacher` to a student that was taught.

train-teacher ──► a model of five heads ──► teachers ──► a student of five heads, with matches
train-teacher ──► a language model ──► its largest logits ──► a student with adapters
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ray.train import RunConfig, ScalingConfig

import raybrew as rb
from tests import own_models
from tests.commands import raybrew
from tests.tasks.made_models import make_task_model
from tests.tasks.made_tasks import EVAL, LM, TASKS, TOKENIZER, TRAIN, rows_of, windows, write_tasks
from tests.tasks.reference_metrics import REFERENCES, load_alone, metrics_of

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.usefixtures("cluster")]

ADAPTED = ("self_attn.q_proj", "mlp.up_proj")
STEPS = 50
TRAINING: dict[str, Any] = {
    "num_steps": STEPS,
    "evaluate_every": STEPS,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "num_threads": 1,
}
OPINIONS = {"initializer_range": 0.2}
"""Random weights so large that a few steps move what comes out."""
SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32, **OPINIONS}
POOL: dict[str, Any] = {"resources": {"CPU": 0.25}}
KL = rb.DistillationConfig(kd_loss="kl")
OBJECTIVES = {
    "sum": KL,
    "tags": KL,
    "where": KL,
    "topics": rb.DistillationConfig(temperature=1),
}
"""What the tasks' objectives change of the job's; `kl` falls to zero, whatever teachers say."""
HIDDEN: dict[str, Any] = {
    "layer_T": 2,
    "layer_S": 1,
    "feature": "hidden",
    "proj": ["linear", 16, 32],
}
MATCHES = [
    {**HIDDEN, "loss": "hidden_mse", "teacher": "sum"},
    {**HIDDEN, "loss": "cos", "teacher": "tags"},
]


@dataclass(frozen=True)
class Trained:
    """What `raybrew train-teacher` made."""

    tasks: list[dict[str, Any]]
    folder: Path

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def metrics(self) -> dict[str, float]:
        return json.loads((self.folder / "report.json").read_text())["metrics"]


def train_teacher(folder: Path, tasks: dict[str, dict[str, Any]], model: dict[str, Any]) -> Trained:
    written = write_tasks(folder, tasks)
    job = {
        "tasks": written,
        "model": model,
        "mixing": {"sampling": "every"},
        "training": TRAINING,
        "tracking": {"log_every": 1, "progress": False},
        "run": {"name": "run", "storage_path": str(folder)},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    assert raybrew("train-teacher", str(folder / "job.yaml")) == 0
    return Trained(written, folder / "run")


@pytest.fixture(scope="module")
def heads(cluster, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("heads")
    base = make_task_model(folder / "base", "question-answering", 0, TOKENIZER)
    return train_teacher(folder, TASKS, {"config": OPINIONS, "tokenizer_from": base})


@pytest.fixture(scope="module")
def language_model(cluster, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("lm")
    return train_teacher(folder, LM, {"model": make_task_model(folder / "base", "causal-lm", 0)})


def job_of(tasks: list[dict[str, Any]], folder: Path, **sections: Any) -> rb.DistillJob:
    common: dict[str, Any] = {
        "tasks": [rb.Task(**task) for task in tasks],
        "training": rb.TrainingConfig(**TRAINING),
        "labels": rb.LabelConfig(store=str(folder / "store")),
        "tracking": rb.TrackingConfig(log_every=1, progress=False),
    }
    return rb.DistillJob(**{**common, **sections})


def distill(job: rb.DistillJob, folder: Path) -> rb.RunResult:
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def assert_labelled(result: rb.RunResult, needed: int, same: int = 0) -> None:
    """Assert that each label was computed, in one forward; `same` are needed of both sides."""
    assert result.labels["needed"] == needed
    assert result.labels["forwards"] == needed - same
    assert result.labels["in_store"] == result.labels["losses"] == 0


def assert_falls(run: str | Path, term: str) -> None:
    """Assert that a term was taken in every step, finite, and fell."""
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line).get(f"train/{term}") for line in lines]
    losses = [value for value in values if value is not None]
    assert len(losses) == STEPS, term
    assert np.isfinite(losses).all(), term
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5]), term


def assert_told(metrics: dict[str, float], task: str, found: dict[str, float]) -> None:
    for name, value in found.items():
        reported = metrics[f"eval/{task}/{name}"]
        assert reported == pytest.approx(value, rel=1e-4, nan_ok=True), (task, name)


def assert_heads(student: Path, metrics: dict[str, float]) -> None:
    """Assert that each head is a model of its kind, and worth what the run reported."""
    for name, task in TASKS.items():
        load_alone(task["kind"], student / name)
        if task["kind"] in REFERENCES:
            rows = rows_of(name, "eval")
            assert_told(metrics, name, metrics_of(task["kind"], student / name, rows))


def test_teachers_of_five_kinds_are_made_in_one_run(heads, capfd):
    for name in TASKS:
        assert_falls(heads.folder, f"{name}/hard")
    assert_heads(heads.student, heads.metrics)
    assert raybrew("evaluate", str(heads.folder)) == 0
    shown = capfd.readouterr().out
    for name in TASKS:
        reported = {k: v for k, v in heads.metrics.items() if k.startswith(f"eval/{name}/")}
        assert len(reported) >= 3
        for key, value in reported.items():
            figure = f"{value:.0f}" if key.endswith("/examples") else f"{value:.4f}"
            assert figure in shown.split(), key


def test_one_student_learns_five_kinds_of_task_with_matches(heads, tmp_path):
    places: dict[str, dict[str, Any]] = {"sum": POOL, "where": POOL}
    teachers = [
        rb.Teacher(
            name=name,
            task=name,
            model=str(heads.student / name),
            **places.get(name, {"placement": "worker"}),
        )
        for name in TASKS
    ]
    for task in ("tone", "tags"):
        model = make_task_model(tmp_path / task, TASKS[task]["kind"], 1, TOKENIZER)
        place: dict[str, Any] = {"placement": "worker", "weight": 0.25}
        teachers.append(rb.Teacher(name=f"{task}_b", task=task, model=model, **place))
    job = job_of(
        [{**task, "distillation": OBJECTIVES.get(task["name"])} for task in heads.tasks],
        tmp_path,
        teachers=teachers,
        student=rb.Student(config=SMALL),
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5, matches=MATCHES),
        mixing=rb.MixingConfig(sampling="every"),
    )
    result = distill(job, tmp_path)
    # Six teachers read texts or words, one reads windows; each of them once.
    read = windows()
    assert len(read) > len(set(read)) > TRAIN + EVAL
    assert_labelled(result, 6 * (TRAIN + EVAL) + len(read), same=len(read) - len(set(read)))
    for name in TASKS:
        for term in ("kd", "hard", "loss"):
            assert_falls(result.folder, f"{name}/{term}")
    assert_falls(result.folder, "sum/match/hidden_hidden_mse_1_2_sum")
    assert_falls(result.folder, "tags/match/hidden_cos_1_2_tags")
    assert_heads(Path(result.student), result.metrics)
    for name, found in rb.evaluate(job, result.student).items():
        assert_told(result.metrics, name, found)
    # Teachers are judged by their answers, as they were when they were made.
    assert set(result.ensembles) == set(TASKS)
    for name in TASKS:
        assert_told(heads.metrics, name, result.teachers[name])


def test_a_language_model_is_made(language_model, capfd):
    assert_falls(language_model.folder, "text/hard")
    found = metrics_of("causal-lm", language_model.student, rows_of("text", "eval"))
    assert_told(language_model.metrics, "text", found)
    assert raybrew("evaluate", str(language_model.folder)) == 0
    assert f"{found['loss']:.4f}" in capfd.readouterr().out.split()


def test_a_language_model_with_adapters_learns_from_the_largest_logits(language_model, tmp_path):
    base = make_task_model(tmp_path / "base", "causal-lm", 3)
    job = job_of(
        language_model.tasks,
        tmp_path,
        teachers=[rb.Teacher(name="a", task="text", model=str(language_model.student), **POOL)],
        student=rb.Student(model=base, lora=rb.Lora(rank=4, target_modules=["q_proj", "up_proj"])),
        distillation=rb.DistillationConfig(hard_label_weight=0.5, kd_loss="kl"),
        labels=rb.LabelConfig(store=str(tmp_path / "store"), top_k=6),
    )
    result = distill(job, tmp_path)
    assert_labelled(result, TRAIN + EVAL)
    for term in ("kd", "hard"):
        assert_falls(result.folder, f"text/{term}")
    found = metrics_of("causal-lm", Path(result.student), rows_of("text", "eval"))
    assert_told(result.metrics, "text", found)
    # Merged: nothing of peft is left, and only what had an adapter, and the head, has changed.
    before = load_alone("causal-lm", Path(base)).state_dict()
    after = load_alone("causal-lm", Path(result.student)).state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    layers = [f"model.layers.{n}" for n in range(2)]
    adapted = {f"{layer}.{part}.weight" for layer in layers for part in ADAPTED}
    assert changed == {*adapted, "lm_head.weight"}


def test_a_student_of_ones_own_class_learns(heads, tmp_path):
    teacher = str(heads.student / "sum")
    (task,) = [task for task in heads.tasks if task["name"] == "sum"]
    job = job_of(
        [task],
        tmp_path,
        teachers=[rb.Teacher(name="a", task="sum", model=teacher, **POOL)],
        student=rb.Student(
            config={"width": 16},
            architecture="tests.own_models:Bag",
            adaptor="tests.own_models:read_bag",
        ),
        distillation=rb.DistillationConfig(temperature=2, hard_label_weight=0.5, kd_loss="kl"),
    )
    result = distill(job, tmp_path)
    assert_labelled(result, TRAIN + EVAL)
    for term in ("kd", "hard"):
        assert_falls(result.folder, f"sum/{term}")
    # The class itself loads what was saved.
    student = own_models.Bag.from_pretrained(result.student).eval()
    assert student.config.width == 16

    def model(**batch: Any) -> dict[str, torch.Tensor]:
        return {"logits": student(**batch)["scores"]}

    found = metrics_of(
        "sequence-classification", Path(result.student), rows_of("sum", "eval"), model
    )
    assert_told(result.metrics, "sum", found)
