"""From a resolved job to the student's training on one rank, and what is checked before. No Ray.

ResolvedJob ──► student, projections, optimizer, labels ──► StudentTraining
"""

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import TrainJob
from raybrew.data.agreement import MIN_ROWS, order_problem
from raybrew.data.batch_sequence import BatchSequence, TaskExamples, rank_rows, task_schedule
from raybrew.data.split import EncodedSplit, collate_labels
from raybrew.errors import ConfigError
from raybrew.evaluation.predict import StoredLabels
from raybrew.labels.source import LabelSource, TeacherClient, TeacherLabels
from raybrew.labels.store import LabelStore
from raybrew.models.students import Head, MultiTaskStudent, build_student
from raybrew.objective import Objective
from raybrew.objective.balancing import TaskGradients, make_balancer
from raybrew.objective.extensions import install
from raybrew.objective.rows import RowIndex
from raybrew.tasks import task_type_of
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.job import ResolvedJob, ResolvedTask
from raybrew.training.loop import StudentTraining
from raybrew.training.module import StudentModule, TaskReader
from raybrew.training.optimization import build_optimization, optimizer_class
from raybrew.training.world import World


def build_training(job: ResolvedJob, world: World, client: TeacherClient | None) -> StudentTraining:
    """Build what a rank runs."""
    install(job.extensions)
    config, tasks = job.config.training, job.tasks
    model, tokenizer = _build_model(job)
    if config.gradient_checkpointing:
        enable_activation_checkpointing(model)
    balancer = make_balancer(job.config.mixing, len(tasks))
    objectives = [_objective(task, world) for task in tasks]
    all_terms = [objective.terms for objective in objectives]
    module = StudentModule(
        model,
        [
            TaskReader(_model_of(model, number), task.reads, task.matches, task.kind, terms)
            for number, (task, terms) in enumerate(zip(tasks, all_terms, strict=True))
        ],
        config.seed,
        balancer,
    )
    module.to(world.device)
    sequence, num_steps = _sequence(job)
    groups = module.projections.groups(optimizer_class(config))
    if learned := list(balancer.parameters()):
        groups.append({"params": learned, "lr": job.config.mixing.uncertainty_learning_rate})
    return StudentTraining(
        module=module,
        wrapped=module,
        tokenizer=tokenizer,
        tasks=tasks,
        objectives=objectives,
        weights=[task.config.weight for task in tasks],
        sequence=sequence,
        labels=_label_source(job, sequence, num_steps, world, client),
        optimization=build_optimization(model, config, num_steps, world.device, groups),
        config=config,
        tracking=job.config.tracking,
        world=world,
        num_steps=num_steps,
        per_task_gradients=_per_task_gradients(job, module),
    )


def _build_model(job: ResolvedJob) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    what = "model" if isinstance(job.config, TrainJob) else "student"
    own = job.student.architecture
    heads = [
        Head(task.name, task_type_of(task.config.kind, own), task.label_names) for task in job.tasks
    ]
    return build_student(job.student, heads, job.hosts, seed=job.config.training.seed, what=what)


def _model_of(model: nn.Module, task: int) -> nn.Module:
    return model.model_of(task) if isinstance(model, MultiTaskStudent) else model


def _per_task_gradients(job: ResolvedJob, module: nn.Module) -> TaskGradients | None:
    if job.config.mixing.balancing != "pcgrad" or len(job.tasks) == 1:
        return None
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return TaskGradients(trained, job.config.training.seed)


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
        task.objective,
        {teacher.name: teacher.config.weight for teacher in task.teachers},
        world.all_reduce if world.size > 1 else None,
        task.matches,
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
    client: TeacherClient | None,
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
        client=client,
        # Labels are asked for batch by batch, however many of them a step takes.
        rows_of=rows_of,
        num_steps=num_steps * sequence.batches_per_step,
        window=job.labels.window,
        max_windows=job.labels.max_windows,
    )


def enable_activation_checkpointing(student: nn.Module) -> None:
    """Have activations computed again in the backward pass, instead of being kept.

    Args:
        student: a model of transformers, or one of several tasks with a model for each.

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


MAX_COMPARED = 512
"""Examples that are compared with a teacher at most."""
_MAX_DRAWN = 8 * MAX_COMPARED
"""Examples among which those with labels are looked for."""


def check_class_orders(job: ResolvedJob, world: World, client: TeacherClient | None) -> None:
    """Compare the teachers whose classes have no names with labelled rows, before training.

    Every rank calls it; rank 0 compares.

    Args:
        job: what the rank trains.
        world: the rank.
        client: computes what the store lacks; None if it has everything.

    Raises:
        ConfigError: a teacher's logits fit the labels far better in another order of the classes;
            shows the order that fits.
        LabelError: labels can't be had.
    """
    unnamed = [(task, t) for task in job.tasks for t in task.teachers if t.unnamed]
    if not unnamed:
        return
    problem = None
    if world.rank == 0:
        problems = (_order_problem(job, task, teacher, client) for task, teacher in unnamed)
        problem = next((each for each in problems if each is not None), None)
    if problem := world.all_gather(problem)[0]:
        raise ConfigError(problem)


def _order_problem(
    job: ResolvedJob, task: ResolvedTask, teacher: ResolvedTeacher, client: TeacherClient | None
) -> str | None:
    """Return the message about a teacher whose order of classes is wrong."""
    route = [each.name for each in task.teachers].index(teacher.name)
    # Labels of evaluation rows are needed anyway; where they are few, those of training rows are.
    rows = {side: _labelled_rows(task, side, route) for side in ("eval", "train")}
    side = "eval" if len(rows["eval"]) >= MIN_ROWS else "train"
    if not len(rows[side]):
        return None
    flags = _class_flags(job, task, task.split(side), teacher, client, rows[side])
    what = f"teachers[{teacher.name}].model"
    return order_problem(flags, what, task.label_names, task=task.name, side=side)


def _labelled_rows(task: ResolvedTask, side: str, route: int) -> np.ndarray:
    """Return rows with labels that the teacher answers, drawn at random."""
    split = task.train if side == "train" else task.eval
    if split is None:
        return np.empty(0, np.int64)
    drawn = np.random.default_rng(0).permutation(len(split))[:_MAX_DRAWN]
    if split.routes is not None:
        drawn = drawn[split.routes[drawn] == route]
    known = [bool((split.labels_of(row) >= 0).any()) for row in drawn[:, None]]
    return drawn[np.array(known, bool)][:MAX_COMPARED]


def _class_flags(
    job: ResolvedJob,
    task: ResolvedTask,
    split: EncodedSplit,
    teacher: ResolvedTeacher,
    client: TeacherClient | None,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which classes the logits of these rows have, by label and by teacher, bool (R, C)."""
    kind, size, signal = task.kind, len(task.label_names), teacher.signals[0]
    view, store = split.views[teacher.view], LabelStore(job.store)
    labels = TeacherLabels(
        teacher.name, 0, view, {signal: store.signal(teacher.fingerprint, signal)}
    )
    if client is None:  # labels that the store had no space for can't be had
        rows = rows[labels.stores[signal].contains(view.keys[rows])]
    source = LabelSource([labels], client, lambda step: (0, rows), 1)
    found = source.get(0) if len(rows) else {}
    if teacher.name not in found:  # dropped since
        return np.empty((0, size), bool), np.empty((0, size), bool)
    batch = collate_labels(split, rows, int(split.student.lengths_of(rows).max()))
    index = RowIndex.of(kind.layout, batch, None)
    stored = StoredLabels(found[teacher.name][signal.name], signal, teacher.view)
    true, soft = index.of_labels(batch), stored.rows(index, split, rows, (size,))
    logits = soft.logits
    assert isinstance(logits, Tensor), "StoredLabels fills up classes that were left out"
    if soft.available is not None:
        true, logits = true[soft.available], logits[soft.available]
    return kind.class_flags(true.numpy(), logits.numpy(), size)
