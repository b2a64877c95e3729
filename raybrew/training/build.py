"""From a resolved job to the student's training on one rank.

And what is checked before it. No Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import TrainJob
from raybrew.data.agreement import MIN_ROWS, order_problem
from raybrew.data.batch_sequence import BatchSequence, batches_per_epoch, rank_rows, task_schedule
from raybrew.data.payload import Signal
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, collate_labels
from raybrew.errors import ConfigError
from raybrew.evaluation.predict import StoredLabels
from raybrew.labels.source import LabelSource, TeacherClient, TeacherLabels
from raybrew.labels.store import LabelStore
from raybrew.matches.plan import TaskMatch
from raybrew.models.students import Head, build_multitask, build_student
from raybrew.objective import Objective
from raybrew.objective.balancing import TaskGradients, make_balancer
from raybrew.objective.rows import RowIndex
from raybrew.tasks import kind_of
from raybrew.tasks.task_type import Kind
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.job import ResolvedJob, ResolvedTask
from raybrew.training.loop import StudentTraining
from raybrew.training.module import StudentModule
from raybrew.training.optimization import (
    build_optimization,
    optimizer_class,
)
from raybrew.training.world import World

# Activations that are computed again in the backward pass, instead of being kept.


def enable_activation_checkpointing(student: nn.Module) -> None:
    """Turn gradient checkpointing on.

    Args:
        student: a model of transformers, or one of several tasks, each of whose models is meant.

    Raises:
        ConfigError: the model can't.
    """
    for model in student.modules():
        if not isinstance(model, PreTrainedModel) or model is model.base_model:
            continue
        if not model.supports_gradient_checkpointing:
            raise ConfigError(
                f"training.gradient_checkpointing: expected a student that can compute its layers "
                f"again, got {type(model).__name__}, which can't; leave it out"
            )
        # Earlier releases of transformers 5 know it by another name.
        name = "activation_checkpointing_enable"
        enable = getattr(model, name, model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


# What a rank puts together from a resolved job. No Ray.
#
# ResolvedJob ──► student, projections, optimizer, labels ──► StudentTraining


def build_training(job: ResolvedJob, world: World, asker: TeacherClient | None) -> StudentTraining:
    """Put together what a rank runs."""
    job.extensions.install()
    config, tasks = job.config.training, job.tasks
    model, tokenizer = _build_model(job)
    if config.gradient_checkpointing:
        enable_activation_checkpointing(model)
    balancer = make_balancer(job.config.mixing, len(tasks))
    objectives = [_objective(task, world) for task in tasks]
    module = StudentModule(
        model,
        [task.reads for task in tasks],
        [task.matches for task in tasks],
        config.seed,
        [task.kind for task in tasks],
        balancer,
        [objective.terms for objective in objectives],
    )
    module.to(world.device)
    sequence, num_steps = _sequence(plan, tasks)
    groups = module.projection_groups(optimizer_class(plan.training))
    if learned := list(balancer.parameters()):
        groups.append({"params": learned, "lr": plan.mixing.uncertainty_learning_rate})
    return StudentTraining(
        module=module,
        wrapped=module,
        tokenizer=tokenizer,
        tasks=tasks,
        objectives=objectives,
        weights=[task.weight for task in plan.tasks],
        sequence=sequence,
        labels=_label_source(plan, tasks, sequence, num_steps, world, asker),
        optimization=build_optimization(model, plan.training, num_steps, world.device, groups),
        config=plan.training,
        tracking=plan.tracking,
        world=world,
        num_steps=num_steps,
        per_task_gradients=_per_task_gradients(plan, module),
    )


def _build_model(job: ResolvedJob) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    what = "model" if isinstance(job.config, TrainJob) else "student"
    own = job.student.architecture
    heads = [
        Head.of(task.name, kind_of(task.config.kind, own), task.label_names) for task in job.tasks
    ]
    seed = job.config.training.seed
    if len(heads) > 1:
        return build_multitask(job.student, heads, seed=seed, teachers=job.hosts, what=what)
    return build_student(
        job.student,
        num_labels=heads[0].num_labels,
        label_names=heads[0].label_names,
        seed=seed,
        teachers=job.hosts,
        what=what,
        kind=heads[0].kind,
    )


def _per_task_gradients(plan: RankPlan, module: nn.Module) -> TaskGradients | None:
    if plan.mixing.balancing != "pcgrad" or len(plan.tasks) == 1:
        return None
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return TaskGradients(trained, plan.training.seed)


def _sequence(job: ResolvedJob) -> tuple[BatchSequence, int]:
    """Return the batches of the run, and how many steps it has."""
    training, mixing = job.config.training, job.config.mixing
    examples = [
        TaskExamples(
            size=len(task.train) // task.config.rounds,
            batch_size=task.config.batch_size or training.batch_size,
            rounds=task.config.rounds,
            lengths=task.train.student.lengths if training.group_by_length else None,
        )
        for task in job.tasks
    ]
    per_epoch = sum(task.num_batches for task in examples)
    per_step = len(examples) if mixing.sampling == "every" else mixing.batches_per_step
    steps_per_epoch = -(-per_epoch // per_step)
    num_steps = training.num_steps or steps_per_epoch * (training.num_epochs or 0)
    schedule = task_schedule(
        mixing,
        [task.name for task in job.tasks],
        [task.size for task in examples],
        training.seed,
        batches_per_epoch=steps_per_epoch * per_step,
        num_epochs=num_steps / steps_per_epoch,
    )
    return BatchSequence(examples, training.seed, schedule, per_step), num_steps


def _objective(task: ResolvedTask, world: World) -> Objective:
    return Objective(
        plan.tasks[task].distillation,
        {teacher.name: teacher.weight for teacher in mine},
        world.all_reduce if world.size > 1 else None,
        matches,
        # The first signal of a teacher is its logits.
        task.teachers[0].signals[0] if task.teachers else None,
        task.kind,
        {teacher.name: teacher.order for teacher in task.teachers if teacher.order is not None},
    )


def _label_source(
    job: ResolvedJob,
    sequence: BatchSequence,
    num_steps: int,
    world: World,
    asker: TeacherClient | None,
) -> LabelSource | None:
    if not job.teachers:
        return None
    store = LabelStore(job.store)

    def rows_of(number: int) -> tuple[int, Any]:
        task, rows = sequence.batch(number)
        return task, rank_rows(rows, world.rank, world.size)

    return LabelSource(
        teachers=[
            TeacherLabels(
                name=teacher.name,
                task=number,
                view=task.train.views[teacher.view],
                stores={s: store.signal(teacher.fingerprint, s) for s in teacher.signals},
                supplied=teacher.is_column,
            )
            for number, task in enumerate(job.tasks)
            for teacher in task.teachers
        ],
        client=asker,
        # Labels are asked for batch by batch, however many of them a step takes.
        rows_of=rows_of,
        num_steps=num_steps * sequence.batches_per_step,
        window=job.labels.window,
        max_windows=job.labels.max_windows,
    )


# Teachers whose classes have no names are tried on labelled rows before the student learns.
#
# rows with labels ──► what the teachers say of them (store, else asked) ──► agreement
#                                                                               └──► or an error

_SAMPLE = 512
"""Examples that are compared at most."""
_DRAWN = 8 * _SAMPLE
"""Examples among which those with labels are looked for."""
_BATCH = 64


def check_class_orders(job: ResolvedJob, world: World, asker: TeacherClient | None) -> None:
    """Refuse a teacher whose answers fit the labels far better in another order of the classes.

    Every rank calls it; rank 0 looks.

    Args:
        job: what the rank trains.
        world: the rank.
        asker: who computes what the store lacks; None if it has everything.

    Raises:
        ConfigError: shows the order that fits.
        LabelError: labels can't be had.
    """
    unnamed = [(task, t) for task in job.tasks for t in task.teachers if t.unnamed]
    if not unnamed:
        return
    message = None
    if world.rank == 0:
        messages = (_problem(job, task, teacher, asker) for task, teacher in unnamed)
        message = next((each for each in messages if each is not None), None)
    if message := world.all_gather(message)[0]:
        raise ConfigError(message)


def _problem(
    job: ResolvedJob, task: ResolvedTask, teacher: ResolvedTeacher, asker: TeacherClient | None
) -> str | None:
    """Return the message about a teacher whose order is wrong."""
    route = [each.name for each in task.teachers].index(teacher.name)
    # Evaluation rows are asked for in any case; where they are few, training rows are, too.
    rows = {side: _labelled(task, side, route) for side in ("eval", "train")}
    side = "eval" if len(rows["eval"]) >= MIN_ROWS else "train"
    if not len(rows[side]):
        return None
    store = LabelStore(job.store).signal(teacher.fingerprint, teacher.signals[0])
    flags = _compared(task, task.split(side), teacher, store, asker, rows[side])
    what = f"teachers[{teacher.name}].model"
    return order_problem(flags, what, task.label_names, task=task.name, side=side)


def _labelled(task: ResolvedTask, side: str, route: int) -> np.ndarray:
    """Return examples with labels that the teacher is to answer, drawn at random."""
    split = task.train if side == "train" else task.eval
    if split is None:
        return np.empty(0, np.int64)
    drawn = np.random.default_rng(0).permutation(len(split))[:_DRAWN]
    if split.routes is not None:
        drawn = drawn[split.routes[drawn] == route]
    known = [bool((split.labels_of(row) >= 0).any()) for row in drawn[:, None]]
    return drawn[np.array(known, bool)][:_SAMPLE]


def _compared(
    task: ResolvedTask,
    split: EncodedSplit,
    teacher: ResolvedTeacher,
    store: SignalStore,
    asker: TeacherClient | None,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each labelled row of logits which classes it has, and which the teacher says."""
    size, signal = len(task.label_names), teacher.signals[0]
    view = split.views[teacher.view]
    if asker is None:  # labels that found no room in the store are nowhere
        rows = rows[store.contains(view.keys[rows])]
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    labels = LabelSource(
        [TeacherLabels(teacher.name, 0, view, {signal: store})],
        asker,
        lambda number: (0, batches[number]),
        len(batches),
    )
    true, predicted = [], []
    for number, taken in enumerate(batches):
        # Nothing comes of a teacher that was dropped since.
        for answer in labels.get(number).values():
            stored = StoredLabels(answer[signal.name], signal, teacher.view)
            flags = _flags(task.kind, split, taken, stored, size)
            true.append(flags[0])
            predicted.append(flags[1])
    none = np.empty((0, size), bool)
    return np.concatenate([none, *true]), np.concatenate([none, *predicted])


def _flags(
    kind: Kind, split: EncodedSplit, examples: np.ndarray, stored: StoredLabels, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of rows that have a label and an answer, bool (R, C) each."""
    batch = collate_labels(split, examples, int(split.student.lengths_of(examples).max()))
    index = RowIndex.of(kind.layout, batch, None)
    labels, soft = index.of_labels(batch), stored.rows(index, split, examples, (size,))
    logits = soft.logits
    assert isinstance(logits, Tensor), "classes that were left out are filled up"
    if soft.available is not None:
        labels, logits = labels[soft.available], logits[soft.available]
    return kind.class_flags(labels.numpy(), logits.numpy(), size)
