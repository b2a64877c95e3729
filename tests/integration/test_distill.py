"""Whole runs on a real Ray: what they leave behind, what they count, what doesn't change them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.train import RunConfig, ScalingConfig
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.config.job_file import load_job
from tests.made import CLASSES, make_data, make_job
from tests.training import in_process

pytestmark = [pytest.mark.ray, pytest.mark.beside, pytest.mark.usefixtures("cluster")]

UNIQUE = 84 + 30  # rows of make_job's data that differ


def run(job: rb.DistillJob, folder: Path, workers: int = 1) -> rb.RunResult:
    return rb.distill(
        job,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="run", storage_path=str(folder)),
    )


def losses(result: rb.RunResult) -> list[float]:
    lines = Path(result.folder, "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line).get("train/sum/loss") for line in lines]
    return [loss for loss in found if loss is not None]


def weights(result: rb.RunResult) -> dict[str, torch.Tensor]:
    return load_file(Path(result.student, "model.safetensors"))


@pytest.fixture(scope="module")
def job(models, tmp_path_factory) -> rb.DistillJob:
    training = rb.TrainingConfig(
        num_epochs=2, batch_size=16, learning_rate=1e-3, num_threads=1, keep="best"
    )
    return make_job(models, tmp_path_factory.mktemp("labels"), training=training)


@pytest.fixture(scope="module")
def result(job, tmp_path_factory) -> rb.RunResult:
    return run(job, tmp_path_factory.mktemp("job"))


def test_first_run_labels_once_and_a_second_one_starts_no_teacher(job, result, tmp_path):
    # Two epochs, six rows twice, two teachers: one forward for each (teacher, content).
    assert result.labels["needed"] == result.labels["forwards"] == 2 * UNIQUE
    assert result.labels["in_store"] == 0
    second = run(job, tmp_path / "2")
    assert second.labels["in_store"] == second.labels["needed"] == 2 * UNIQUE
    assert second.labels["forwards"] == second.labels["misses"] == 0
    assert second.labels["hits"] == 2 * 2 * 90
    assert "start_teachers" not in second.times
    # The same seed and the same labels: the same student, bit for bit, and by another way too.
    for name, value in weights(result).items():
        assert torch.equal(value, weights(second)[name]), name
    assert losses(result) == losses(second)
    alone = in_process.run(job, tmp_path / "alone")
    np.testing.assert_allclose(losses(second), alone.term("sum"), rtol=1e-5)


def test_what_a_run_leaves_behind(job, result):
    folder = Path(result.folder)
    model = AutoModelForSequenceClassification.from_pretrained(result.student)
    tokenizer = AutoTokenizer.from_pretrained(result.student)
    assert model.config.id2label == dict(enumerate(CLASSES))
    data = make_data(30, seed=1)
    batch = tokenizer(data["text"][:], padding=True, return_tensors="pt")
    with torch.inference_mode():
        predicted = model.eval()(**batch).logits.argmax(dim=-1)
    accuracy = (predicted == torch.tensor(data["label"])).double().mean().item()
    assert accuracy == pytest.approx(result.metrics["eval/sum/accuracy"])
    assert set(result.teachers) == {"a", "b"}
    assert result.teachers["a"]["examples"] == 30
    assert set(result.ensembles) == {"sum"}
    resolved = load_job(rb.DistillJob, folder / "job.yaml").job
    assert resolved.distillation == job.distillation
    assert resolved.training == job.training
    assert json.loads((folder / "report.json").read_text())["labels"] == result.labels
    assert "student on sum" in (folder / "report.txt").read_text()
    page = (folder / "report.html").read_text()
    assert f"{result.metrics['eval/sum/accuracy']:.4f}" in page
    assert "teachers, mixed" in page
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {1, 12} <= {line.get("step") for line in lines}
    # The teachers' metrics are reported while the student trains, not at the end alone.
    reported = [line["step"] for line in lines if "teacher/a/tokens_per_s" in line]
    assert any(0 < step < 12 for step in reported)
    assert len(losses(result)) == 12


def test_teachers_accuracy_is_that_of_their_models(models, result):
    data = make_data(30, seed=1)
    logits = []
    for path in models.values():
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForSequenceClassification.from_pretrained(path).eval()
        batch = tokenizer(data["text"][:], padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits.append(model(**batch).logits)
    labels = torch.tensor(data["label"])

    def accuracy(scores: torch.Tensor) -> float:
        return (scores.argmax(dim=-1) == labels).double().mean().item()

    assert result.teachers["a"]["accuracy"] == pytest.approx(accuracy(logits[0]))
    assert result.teachers["b"]["accuracy"] == pytest.approx(accuracy(logits[1]))
    assert result.ensembles["sum"]["accuracy"] == pytest.approx(accuracy(logits[0] + logits[1]))


def job_without_dropout(models, store: Path) -> rb.DistillJob:
    return make_job(
        models,
        store,
        teachers=[
            rb.Teacher(
                name=name, task="sum", model=models[name], replicas=count, resources={"CPU": 0.25}
            )
            for name, count in (("a", 2), ("b", 1))
        ],
        # 90 rows in batches of 16: the last batch of an epoch has 10, five a rank.
        training=rb.TrainingConfig(num_steps=20, batch_size=16, learning_rate=1e-3, num_threads=1),
        student=rb.Student(
            config={
                "num_hidden_layers": 1,
                "hidden_size": 16,
                "num_attention_heads": 2,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            }
        ),
    )


def test_two_workers_give_the_losses_of_one_with_twice_the_batch(models, tmp_path):
    # One is this process, with labels that it computes itself.
    one = in_process.run(job_without_dropout(models, tmp_path / "s1"), tmp_path / "1").term("sum")
    result = run(job_without_dropout(models, tmp_path / "s2"), tmp_path / "2", workers=2)
    two = losses(result)
    # Two ranks ask two replicas of a teacher, and the one of another: no work is done twice.
    assert result.labels["forwards"] == result.labels["needed"] == 2 * UNIQUE
    assert len(one) == len(two) == 20
    np.testing.assert_allclose(one, two, atol=1e-5, rtol=0)
    assert one[0] - one[-1] > 1e-3


def test_labels_ahead_are_those_computed_along_the_way(models, result, tmp_path):
    labels = rb.LabelConfig(store=str(tmp_path / "store"), when="ahead")
    ahead = run(make_job(models, tmp_path / "store", labels=labels), tmp_path)
    assert ahead.labels["forwards"] == ahead.labels["needed"] == 2 * UNIQUE
    assert ahead.labels["misses"] == 0
    np.testing.assert_allclose(losses(ahead), losses(result), rtol=1e-5)
    assert ahead.teachers == result.teachers
    assert ahead.ensembles == result.ensembles


def test_a_teacher_in_the_workers_computes_each_label_once(models, tmp_path):
    inside = rb.Teacher(name="a", task="sum", model=models["a"], placement="worker")
    outside = rb.Teacher(name="b", task="sum", model=models["b"], resources={"CPU": 0.25})
    job = make_job(models, tmp_path / "store", teachers=[inside, outside])
    result = run(job, tmp_path, workers=2)
    assert result.labels["forwards"] == result.labels["needed"] == 2 * UNIQUE
    assert set(result.teachers) == {"a", "b"}


def test_labels_that_were_filled_before_need_no_teacher(models, tmp_path):
    job = make_job(models, tmp_path / "store")
    config = RunConfig(name="label", storage_path=str(tmp_path))
    filled = rb.label(job, run_config=config)
    assert filled.labels["forwards"] == filled.labels["needed"] == 2 * UNIQUE
    assert filled.teachers["a"]["tokens_per_s"] > 0
    report = Path(filled.folder, "report.txt").read_text()
    assert "Labels: " in Path(filled.folder, "report.html").read_text()
    assert filled.scores["a"]["examples"] == 30
    assert re.search(rf"a +│ +{UNIQUE} │ +0 │ +{UNIQUE} │", report)
    logged = [json.loads(x) for x in Path(filled.folder, "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("teacher/b/payload_bytes") == UNIQUE * 12 for line in logged)
    again = rb.label(job, run_config=RunConfig(name="again", storage_path=str(tmp_path)))
    assert again.labels["in_store"] == 2 * UNIQUE
    assert again.labels["forwards"] == 0
    assert "start_teachers" not in again.times


def test_supervised_training_learns(tmp_path, models):
    job = rb.TrainJob(
        tasks=[
            rb.Task(name="sum", train=make_data(400), eval=make_data(100, seed=1), max_length=32)
        ],
        model=rb.Student(model=models["a"], freeze=("bert.embeddings.position",)),
        training=rb.TrainingConfig(num_epochs=4, batch_size=16, learning_rate=3e-3, num_threads=1),
        tracking=rb.TrackingConfig(progress=False, tensorboard=True, wandb=True),
    )
    result = rb.train(job, run_config=RunConfig(name="run", storage_path=str(tmp_path)))
    assert result.metrics["eval/sum/accuracy"] > 0.7
    assert list(Path(result.folder).rglob("events.out.tfevents*"))
    assert list(Path(result.folder).rglob("*.wandb"))


def test_more_gpus_than_there_are_is_an_error_before_anything_starts(models, tmp_path, run_config):
    job = make_job(models, tmp_path / "store")
    with pytest.raises(rb.ConfigError, match=r"a student worker needs.*1 GPU.*have.*0 GPU"):
        rb.distill(
            job, scaling_config=ScalingConfig(num_workers=1, use_gpu=True), run_config=run_config
        )


def test_more_cpus_together_than_there_are_is_an_error(models, tmp_path, run_config):
    teachers = [rb.Teacher(name="a", task="sum", model=models["a"], replicas=5)]
    job = make_job(models, tmp_path / "store", teachers=teachers)
    with pytest.raises(rb.ConfigError, match=r"needs 7 CPU.*teachers 5, student workers 2.*has 6"):
        rb.distill(job, scaling_config=ScalingConfig(num_workers=2), run_config=run_config)


def test_a_second_run_of_one_name_is_refused(models, tmp_path, run_config):
    job = make_job(models, tmp_path / "store")
    Path(run_config.storage_path, "run").mkdir(parents=True)
    Path(run_config.storage_path, "run", "job.yaml").write_text("x")
    with pytest.raises(rb.ConfigError, match="holds a run already"):
        rb.distill(job, run_config=run_config)


def test_nan_from_a_teacher_names_teacher_and_example(models, tmp_path, run_config):
    broken = Path(models["a"]).parent / "broken"
    model = AutoModelForSequenceClassification.from_pretrained(models["a"])
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[10] = float("nan")
    model.save_pretrained(broken)
    AutoTokenizer.from_pretrained(models["a"]).save_pretrained(broken)
    job = make_job({"a": models["a"], "broken": str(broken)}, tmp_path / "store")
    with pytest.raises(rb.TeacherError, match=r"'broken'.*NaN.*key [0-9a-f]{32}.*token ids"):
        rb.distill(job, run_config=run_config)
