"""One student, two tasks with teachers of their own, in whole steps: heads, mixing, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import raybrew as rb
from raybrew.models.students import MultiTaskStudent, task_folders
from raybrew.runs.resolve import resolve_job
from tests.made import STUDENT_CONFIG, make_data, make_job, make_model, make_yes_no_data
from tests.training.in_process import Recorder, build

NO_DROPOUT = {**STUDENT_CONFIG, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EVERY = {"sampling": "every"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    found = {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}
    return found | {"c": make_model(folder / "c", 2, labels=("no", "yes"))}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def tasks(**changes: dict[str, Any]) -> list[rb.Task]:
    sum_task = {
        "name": "sum",
        "train": make_data(60),
        "eval": make_data(20, seed=1),
        "max_length": 32,
    }
    pair_task = {
        "name": "among",
        "train": make_yes_no_data(30),
        "eval": make_yes_no_data(20, seed=1),
        "text": "word",
        "text_pair": "sentence",
        "max_length": 24,
        "batch_size": 6,
    }
    return [
        rb.Task(**{**sum_task, **changes.get("sum", {})}),
        rb.Task(**{**pair_task, **changes.get("among", {})}),
    ]


def job(models, store, *, config=None, mixing=None, training=None, **changes) -> rb.DistillJob:
    settings = {"num_steps": 10, "batch_size": 12, "learning_rate": 1e-3}
    sections: dict[str, Any] = {
        "tasks": tasks(),
        "teachers": [
            rb.Teacher(name=name, task=task, model=models[name])
            for name, task in (("a", "sum"), ("b", "sum"), ("c", "among"))
        ],
        "student": rb.Student(config=config or STUDENT_CONFIG),
        "training": rb.TrainingConfig(**{**settings, **(training or {})}),
        "mixing": rb.MixingConfig(**(mixing or {})),
    }
    return make_job({}, store, **{**sections, **changes})


def state(training) -> dict[str, torch.Tensor]:
    return dict(training.module.named_parameters())


def trained(job, folder) -> tuple[dict[str, torch.Tensor], Recorder]:
    training, pool = build(job, folder)
    recorder = Recorder()
    training.run(recorder)
    pool.flush()
    return state(training), recorder


def test_heads_share_one_trunk_and_each_learns_its_task(models, store, tmp_path):
    training, _ = build(job(models, store, training={"num_steps": 40}), tmp_path)
    model = training.model
    assert isinstance(model, MultiTaskStudent)
    first, second = model.model_of(0), model.model_of(1)
    assert first.base_model is second.base_model is model.trunk
    assert [m.config.num_labels for m in (first, second)] == [3, 2]
    before = {name: value.detach().clone() for name, value in state(training).items()}
    recorder = Recorder()
    training.run(recorder)
    moved = [
        name for name, value in state(training).items() if not torch.equal(before[name], value)
    ]
    for part in ("model.trunk.", "model.tasks.0.classifier", "model.tasks.1.classifier"):
        assert any(name.startswith(part) for name in moved), part
    assert training.evaluate(recorder).keys() >= {"eval/sum/accuracy", "eval/among/accuracy"}
    # One task a step, every step, and each with its own terms.
    sums, amongs = recorder.term("sum"), recorder.term("among")
    assert len(sums) + len(amongs) == 40
    assert len(sums) > len(amongs) > 0


def test_saved_folders_are_models_of_transformers_with_the_students_answers(
    models, store, tmp_path
):
    training, _ = build(job(models, store, config=NO_DROPOUT), tmp_path / "run")
    training.run(Recorder())
    (tmp_path / "checkpoint").mkdir()
    training.save(tmp_path / "checkpoint")
    folder = tmp_path / "checkpoint" / "student"
    assert list(task_folders(folder)) == ["sum", "among"]
    texts = make_data(8, seed=5)["text"][:]
    assert isinstance(training.model, MultiTaskStudent)
    trunk = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    training.module.eval()
    with torch.inference_mode():
        expected = training.model.trunk(**batch).last_hidden_state
        torch.testing.assert_close(trunk(**batch).last_hidden_state, expected)
        for number, path in enumerate(task_folders(folder).values()):
            head = AutoModelForSequenceClassification.from_pretrained(path).eval()
            ours = training.module.model_of(number)(**batch).logits
            torch.testing.assert_close(head(**batch).logits, ours)
            assert AutoTokenizer.from_pretrained(path).get_vocab() == tokenizer.get_vocab()
    assert AutoModelForSequenceClassification.from_pretrained(
        task_folders(folder)["among"]
    ).config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize(
    "mixing",
    [
        {},
        {"batches_per_step": 3, "tau": 0.5},
        {**EVERY, "balancing": "pcgrad"},
        # Three steps an epoch: the run is stopped after four steps, in the second epoch.
        {**EVERY, "balancing": "dwa"},
        {"balancing": "uncertainty"},
    ],
)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(models, store, tmp_path, mixing):
    trained(job(models, store, mixing=mixing), tmp_path / "warm")
    whole, losses = trained(job(models, store, mixing=mixing), tmp_path / "1")
    first, _ = build(job(models, store, mixing=mixing), tmp_path / "2")
    first.num_steps = 4
    first.run(Recorder())
    (tmp_path / "checkpoint").mkdir()
    first.save(tmp_path / "checkpoint")
    second, _ = build(job(models, store, mixing=mixing), tmp_path / "3")
    second.resume(tmp_path / "checkpoint")
    recorder = Recorder()
    second.run(recorder)
    assert all(torch.equal(value, whole[name]) for name, value in state(second).items())
    assert recorder.values[-1].items() >= {
        (k, v) for k, v in losses.values[-1].items() if "/loss" in k
    }


def test_one_step_takes_the_mean_of_its_tasks_losses(models, store, tmp_path):
    # SGD without momentum, one step: the gradient of the mean is the mean of the gradients.
    training = {
        "num_steps": 1,
        "optimizer": "SGD",
        "optimizer_options": {},
        "learning_rate": 0.5,
        "max_grad_norm": None,
        "lr_scheduler": "constant",
    }
    weights = {"sum": {"weight": 3.0}, "among": {"weight": 1.0}}

    def step(mixing: dict[str, Any], changes: dict[str, Any]) -> dict[str, torch.Tensor]:
        made = job(
            models,
            store,
            config=NO_DROPOUT,
            mixing=mixing,
            training=training,
            tasks=tasks(**changes),
        )
        built, _ = build(made, tmp_path / str(len(list(tmp_path.iterdir()))))
        before = {name: value.detach().clone() for name, value in state(built).items()}
        built.run(Recorder())
        return {name: value.detach() - before[name] for name, value in state(built).items()}

    def only(task: str) -> dict[str, torch.Tensor]:
        shares = {name: float(name == task) for name in ("sum", "among")}
        return step({"sampling": "fixed", "probabilities": shares}, {})

    together = step(EVERY, weights)
    sums, amongs = only("sum"), only("among")
    for name, change in together.items():
        torch.testing.assert_close(
            change, (3.0 * sums[name] + amongs[name]) / 2, atol=1e-6, rtol=1e-4
        )
    assert together["model.trunk.embeddings.word_embeddings.weight"].abs().max() > 1e-4


def test_balancing_weighs_the_tasks_in_whole_runs(models, store, tmp_path):
    # Large and small losses: uncertainty's variances part, and the run ends with other weights.
    settings = {"num_steps": 16, "batch_size": 12}
    ends = {}
    for name in ("none", "uncertainty", "dwa", "pcgrad"):
        mixing = {**EVERY, "balancing": name}
        weights = {"sum": {"weight": 1.0}, "among": {"weight": 1.0}}
        made = job(
            models,
            store,
            config=NO_DROPOUT,
            mixing=mixing,
            training=settings,
            tasks=tasks(**weights),
        )
        training, _ = build(made, tmp_path / name)
        training.run(Recorder())
        ends[name] = training
    plain = dict(ends["none"].model.named_parameters())
    for name in ("uncertainty", "dwa", "pcgrad"):
        other = dict(ends[name].model.named_parameters())
        assert any(not torch.equal(plain[n], other[n]) for n in plain), name
    variances = ends["uncertainty"].module.balancer.log_variances
    assert variances.abs().min() > 0.01
    # Five steps an epoch, sixteen steps: three whole epochs lie behind.
    assert ends["dwa"].module.balancer.earlier.isfinite().all()
    assert not torch.equal(ends["dwa"].module.balancer.weights(), torch.ones(2).double())


def test_micro_batches_change_nothing_but_rounding(models, store, tmp_path):
    mixing = {**EVERY, "balancing": "uncertainty"}
    whole, losses = trained(job(models, store, config=NO_DROPOUT, mixing=mixing), tmp_path / "1")
    split = {"gradient_accumulation_steps": 4}
    parts, split_losses = trained(
        job(models, store, config=NO_DROPOUT, mixing=mixing, training=split), tmp_path / "2"
    )
    torch.testing.assert_close(split_losses.term("among"), losses.term("among"), atol=1e-5, rtol=0)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)


def test_a_task_changes_the_objective_for_itself_alone(models, store, tmp_path):
    changes = {"among": {"distillation": {"kd_loss": "mse", "hard_label_weight": 0.0}}}
    made = job(models, store, mixing=EVERY, tasks=tasks(**changes))
    assert made.objective_of("sum") == made.distillation
    own = made.objective_of("among")
    assert (own.kd_loss, own.hard_label_weight, own.temperature) == ("mse", 0.0, 2.0)
    again = rb.DistillJob.model_validate(
        {**made.to_plain(), "tasks": [t.model_copy() for t in made.tasks]}
    )
    assert again.objective_of("among") == own
    plain = made.to_plain()["tasks"][1]["distillation"]
    assert plain == {"kd_loss": "mse", "hard_label_weight": 0.0}
    _, recorder = trained(made, tmp_path)
    assert recorder.term("sum", "hard")
    assert not recorder.term("among", "hard")
    assert recorder.term("among", "kd")


def test_a_head_starts_from_a_teacher_of_its_own_task_only(models, store, tmp_path):
    second = tasks()[0].model_copy(update={"name": "other"})
    teachers = [
        rb.Teacher(name="a", task="sum", model=models["a"]),
        rb.Teacher(name="b", task="other", model=models["b"]),
    ]
    made = job(
        models,
        store,
        tasks=[tasks()[0], second],
        teachers=teachers,
        student=rb.Student(layers_from=("a", [0]), freeze=("bert.embeddings",)),
    )
    training, _ = build(made, tmp_path)
    teacher = AutoModelForSequenceClassification.from_pretrained(models["a"])
    weights = [dict(training.module.model_of(task).named_parameters()) for task in (0, 1)]
    head = "classifier.weight"
    assert torch.equal(weights[0][head], teacher.classifier.weight)
    assert not torch.equal(weights[1][head], teacher.classifier.weight)
    assert weights[1][head].std() < 0.1
    frozen = [name for name, p in training.module.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(name.startswith("model.trunk.embeddings.") for name in frozen)


def test_mistakes_name_their_field(models, store, tmp_path):
    with pytest.raises(rb.ConfigError, match=r"student\.freeze: expected a part.*got 'nowhere'"):
        resolve_job(
            job(models, store, student=rb.Student(config=STUDENT_CONFIG, freeze=("nowhere",))),
            tmp_path,
        )
    with pytest.raises(rb.ConfigError, match=r"mixing\.probabilities: expected one for each task"):
        resolve_job(
            job(models, store, mixing={"sampling": "fixed", "probabilities": {"sum": 1}}), tmp_path
        )
    with pytest.raises(rb.ConfigError, match="Unknown KD loss"):
        resolve_job(
            job(models, store, tasks=tasks(among={"distillation": {"kd_loss": "nothing"}})),
            tmp_path,
        )
