"""Runs of fifty steps follow the published textbrewer's, loss for loss."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertModel

import raybrew as rb
from raybrew.labels.source import LabelSource, TeacherLabels
from raybrew.labels.store import LabelStore
from raybrew.objective import Objective
from raybrew.preparation import Preparation, prepare
from raybrew.student.batches import STUDENT_VIEW, StudentTask
from raybrew.student.loop import StudentTraining
from raybrew.student.module import StudentModule
from raybrew.student.world import World
from tests.made import SPECIAL, STUDENT_CONFIG, WORDS, make_data, make_job, make_model
from tests.student import textbrewer_runs
from tests.student.in_process import LocalPool, Recorder, build

NUM_STEPS, LEARNING_RATE = 50, 1e-3
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TRAINING = rb.TrainingConfig(
    num_steps=NUM_STEPS,
    batch_size=16,
    learning_rate=LEARNING_RATE,
    lr_scheduler="constant",
    warmup_ratio=0,
    max_grad_norm=None,
    num_threads=1,
)
PROJ = ["linear", 16, 32, {"lr": 3e-3}]
MATCHES: list[dict[str, Any]] = [
    {
        "layer_T": 0,
        "layer_S": 0,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 1,
        "proj": PROJ,
    },
    {
        "layer_T": 2,
        "layer_S": 1,
        "feature": "hidden",
        "loss": "hidden_mse",
        "weight": 0.5,
        "proj": ["tanh", 16, 32],
    },
    {"layer_T": [2, 2], "layer_S": [1, 1], "feature": "hidden", "loss": "mmd", "weight": 1},
    {"layer_T": 1, "layer_S": 0, "feature": "attention", "loss": "attention_mse", "weight": 10},
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("teachers")
    return {name: make_model(folder / name, seed) for seed, name in enumerate("ab")}


def job_of(models: dict[str, str], store: Path, distillation: Any, **changes: Any) -> Any:
    return make_job(
        models,
        store,
        distillation=distillation,
        training=TRAINING,
        student=rb.Student(config={**STUDENT_CONFIG, **NO_DROPOUT}),
        **changes,
    )


def batches_of(training: StudentTraining) -> list[textbrewer_runs.Batch]:
    return [
        textbrewer_runs.batch_of(training.tasks[0].train, training.sequence.batch(step)[1])
        for step in range(NUM_STEPS)
    ]


def compare(ours: Sequence[float], theirs: Sequence[float]) -> None:
    assert len(ours) == len(theirs) == NUM_STEPS
    print(
        f"largest difference {np.abs(np.subtract(ours, theirs)).max():.2e}, {ours[0]:.5f} → "
        f"{ours[-1]:.5f}"
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert ours[0] - ours[-1] > 1e-3


@pytest.mark.parametrize(
    "distillation",
    [
        {"temperature": 8, "hard_label_weight": 0.5},
        {"temperature": 2, "kd_loss_type": "mse", "hard_label_weight": 0.5},
        {
            "temperature": 4,
            "temperature_scheduler": ["flsw", 1, 2],
            "probability_shift": True,
            "hard_label_weight": 0.5,
        },
    ],
    ids=["ce", "mse", "flsw and shift"],
)
def test_several_teachers(models, tmp_path, distillation):
    training, _ = build(job_of(models, tmp_path / "store", distillation), tmp_path / "run")
    theirs = textbrewer_runs.run(
        "MultiTeacherDistiller",
        distillation,
        [textbrewer_runs.load_teacher(path) for path in models.values()],
        training.model,
        batches_of(training),
        tmp_path,
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
    )
    recorder = Recorder()
    training.run(recorder)
    compare(recorder.term("sum"), theirs)


def test_one_teacher_with_matches_and_projections(models, tmp_path):
    distillation = {
        "temperature": 8,
        "hard_label_weight": 0.5,
        "intermediate_matches": MATCHES,
    }
    one = {"a": models["a"]}
    training, _ = build(job_of(one, tmp_path / "store", distillation), tmp_path / "run")
    projections = training.module.projections
    theirs = textbrewer_runs.run(
        "GeneralDistiller",
        distillation,
        textbrewer_runs.load_teacher(models["a"]),
        training.model,
        batches_of(training),
        tmp_path,
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        projections=[projections["match_0"], projections["match_1"], None, None],
        output_hidden_states=True,
        output_attentions=True,
    )
    recorder = Recorder()
    training.run(recorder)
    compare(recorder.term("sum"), theirs)


class TwoHeads(nn.Module):
    """A shared trunk with a head for each of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        size: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
        vocabulary = len(SPECIAL) + len(WORDS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.trunk = BertModel(
                BertConfig(vocab_size=vocabulary, intermediate_size=64, **{**size, **NO_DROPOUT})
            )
            self.heads = nn.ModuleList(nn.Linear(16, 3) for _ in range(2))

    def forward(self, labels=None, **inputs):
        pooled = self.trunk(**inputs).pooler_output
        return SimpleNamespace(logits=[head(pooled) for head in self.heads])


def adaptor_of_head(task: int):
    def adaptor(batch, outputs):
        logits = outputs.logits[task]
        found = {"logits": logits, "labels": batch["labels"]}
        return {**found, "losses": nn.functional.cross_entropy(logits, batch["labels"])}

    return adaptor


class DrawnSequence:
    """The tasks in the order that textbrewer draws them, each with its own batches in turn."""

    steps_per_epoch = NUM_STEPS

    def __init__(self, tasks: Sequence[int], rows: Sequence[Sequence[np.ndarray]]):
        seen = [0] * len(rows)
        self._steps = []
        for task in tasks:
            self._steps.append((task, rows[task][seen[task] % len(rows[task])]))
            seen[task] += 1

    def numbers(self, step: int) -> range:
        return range(step, step + 1)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        return self._steps[number]


def two_task_training(
    prepared: Sequence[Preparation], sequence: DrawnSequence, model: TwoHeads, store: Path
) -> StudentTraining:
    teachers = [preparation.teachers[0] for preparation in prepared]
    pools = [LocalPool(preparation, str(store)) for preparation in prepared]
    pools[0].replicas |= pools[1].replicas
    tasks = [
        StudentTask(
            name=f"task{number}",
            kind="sequence-classification",
            train=preparation.tasks[0].train,
            eval=None,
            signals={teachers[number].teacher.name: teachers[number].signals},
            adaptor=adaptor_of_head(number),
        )
        for number, preparation in enumerate(prepared)
    ]
    distillation = rb.DistillationConfig(temperature=4, hard_label_weight=0.5)
    module = StudentModule(model, [task.reads for task in tasks], [(), ()], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    labels = LabelSource(
        teachers=[
            TeacherLabels(
                name=teacher.teacher.name,
                task=number,
                view=tasks[number].train.views[STUDENT_VIEW],
                stores={
                    signal: LabelStore(store).signal(teacher.fingerprint, signal)
                    for signal in teacher.signals
                },
            )
            for number, teacher in enumerate(teachers)
        ],
        asker=pools[0],
        rows_of=sequence.batch,
        num_steps=NUM_STEPS,
    )
    any_sequence: Any = sequence
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    return StudentTraining(
        module=module,
        wrapped=module,
        tokenizer=tokenizer,
        tasks=tasks,
        objectives=[Objective(distillation, {t.teacher.name: 1.0}) for t in teachers],
        sequence=any_sequence,
        labels=labels,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, lambda step: 1.0),
        config=TRAINING,
        tracking=rb.TrackingConfig(log_every=1, progress=False),
        world=World(),
        num_steps=NUM_STEPS,
    )


def test_several_tasks_on_a_shared_trunk(models, tmp_path):
    prepared = []
    for number, name in enumerate("ab"):
        task = rb.Task(name="sum", train=make_data(90 - 26 * number, seed=number), max_length=32)
        job = job_of(
            {name: models[name]}, tmp_path / "store", rb.DistillationConfig(), tasks=[task]
        )
        prepared.append(prepare(job, tmp_path / name))
    splits = [preparation.tasks[0].train for preparation in prepared]
    rows = [
        [np.arange(start, start + 16) for start in range(0, len(split.labels) - 15, 16)]
        for split in splits
    ]
    sizes = np.array([len(each) for each in rows])
    np.random.seed(3)
    drawn = [int(np.random.choice([0, 1], p=sizes / sizes.sum())) for _ in range(NUM_STEPS)]
    assert set(drawn) == {0, 1}
    model = TwoHeads()
    names = ("task0", "task1")
    np.random.seed(3)
    theirs = textbrewer_runs.run(
        "MultiTaskDistiller",
        {"temperature": 4, "hard_label_weight": 0.5},
        {
            name: textbrewer_runs.load_teacher(models[t])
            for name, t in zip(names, "ab", strict=True)
        },
        model,
        {
            name: [textbrewer_runs.batch_of(split, each) for each in own]
            for name, split, own in zip(names, splits, rows, strict=True)
        },
        tmp_path,
        num_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE,
        adaptors=(
            dict.fromkeys(names, textbrewer_runs.adaptor),
            {name: adaptor_of_head(number) for number, name in enumerate(names)},
        ),
    )
    training = two_task_training(prepared, DrawnSequence(drawn, rows), model, tmp_path / "store")
    recorder = Recorder()
    training.run(recorder)
    ours = [next(v for k, v in values.items() if k.endswith("/loss")) for values in recorder.values]
    compare(ours, theirs)
