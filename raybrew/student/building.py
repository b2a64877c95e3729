"""What a rank is to do, as values, and what it puts together from them. No Ray.

RankPlan ──► encoded splits, student, projections, optimizer, labels ──► StudentTraining
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from raybrew.balancing import TaskGradients, make_balancer
from raybrew.config import (
    DistillationConfig,
    MixingConfig,
    Student,
    Teacher,
    TrackingConfig,
    TrainingConfig,
)
from raybrew.data.mixing import task_draws
from raybrew.data.sampler import BatchSequence, batches_per_epoch, rank_rows
from raybrew.data.split import EncodedSplit
from raybrew.extensions import Extensions, registered
from raybrew.kinds import kind_of
from raybrew.labels.payload import Signal
from raybrew.labels.source import Asker, LabelSource, TeacherLabels
from raybrew.labels.spec import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.matching.plan import TaskMatch
from raybrew.models.adaptors import Adaptor, adaptor_of, first_classes
from raybrew.models.multitask import Head, build_multitask
from raybrew.models.students import build_student
from raybrew.objective import Objective
from raybrew.student.batches import STUDENT_VIEW, StudentTask
from raybrew.student.loop import StudentTraining
from raybrew.student.module import StudentModule
from raybrew.student.optimization import build_optimizer, build_scheduler, optimizer_class
from raybrew.student.recompute import compute_layers_again
from raybrew.student.scaling import loss_scaler
from raybrew.student.world import World
from raybrew.teachers.teacher import TeacherSpec

__all__ = ["RankPlan", "TaskPlan", "TeacherPlan", "build_training", "load_tasks"]


@dataclass(frozen=True)
class TaskPlan:
    """A task, as files.

    Args:
        name: the job's name of it.
        kind: what a prediction is.
        label_names: classes, in the order of the logits.
        train: folder of the encoded training split.
        eval: folder of the encoded evaluation split.
        adaptor: what the student's outputs mean; that of the kind if None.
        rounds: equal parts of the training split, of which an epoch reads one.
        weight: factor on its loss.
        batch_size: examples of its batches; those of the training section if None.
        distillation: its objective; None for the hard loss alone.
        num_classes: how many of the model's logits mean something; all if None.
    """

    name: str
    kind: str
    label_names: tuple[str, ...]
    train: str
    eval: str | None
    adaptor: Adaptor | str | None = None
    rounds: int = 1
    weight: float = 1.0
    batch_size: int | None = None
    distillation: DistillationConfig | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class TeacherPlan:
    """A teacher, as a rank sees it.

    Args:
        name: the job's name of it.
        task: index of its task.
        weight: its share in the mixture.
        fingerprint: where its labels are.
        view: the encoded view that it reads.
        signals: what is asked of it.
        order: its number of each of the task's classes; None if they are the same.
        hosted: what to load, if the rank hosts it itself.
        supplied: whether its labels were the data's, so that nobody computes them.
        unnamed: whether no names say which of its classes is which of the task's.
    """

    name: str
    task: int
    weight: float
    fingerprint: str
    view: str
    signals: tuple[Signal, ...]
    order: tuple[int, ...] | None = None
    hosted: TeacherSpec | None = None
    supplied: bool = False
    unnamed: bool = False


@dataclass(frozen=True)
class RankPlan:
    """All that a rank needs, as values: it is pickled to every worker.

    Args:
        tasks: tasks of the student.
        teachers: none for supervised training.
        student: where the student comes from.
        hosts: the job's teachers, which the student may start from.
        training: steps, optimizer, seed.
        tracking: how often to report.
        store: the label store.
        mixing: which task comes up when.
        matches: of each task.
        extensions: what the user registered in the driver's process.
        window: steps of one request for labels.
        max_windows: requests in flight.
        labels_ahead: whether teachers that ranks host compute all labels before the first step.
    """

    tasks: tuple[TaskPlan, ...]
    teachers: tuple[TeacherPlan, ...]
    student: Student
    hosts: Mapping[str, Teacher]
    training: TrainingConfig
    tracking: TrackingConfig
    store: StoreSpec | str
    mixing: MixingConfig = field(default_factory=MixingConfig)
    matches: tuple[tuple[TaskMatch, ...], ...] = ()
    extensions: Extensions = field(default_factory=registered)
    window: int = 8
    max_windows: int = 2
    labels_ahead: bool = False


def build_training(plan: RankPlan, world: World, asker: Asker | None) -> StudentTraining:
    """Put together what a rank runs."""
    plan.extensions.install()
    tasks = load_tasks(plan)
    model, tokenizer = _build_model(plan)
    if plan.training.gradient_checkpointing:
        compute_layers_again(model)
    matches = plan.matches or ((),) * len(tasks)
    adaptors = [task.reads for task in tasks]
    balancer = make_balancer(plan.mixing, len(tasks))
    kinds = [kind_of(task.kind) for task in tasks]
    objectives = [_objective(plan, n, matches[n], world) for n in range(len(tasks))]
    module = StudentModule(
        model,
        adaptors,
        matches,
        plan.training.seed,
        kinds,
        balancer,
        [objective.terms for objective in objectives],
    )
    module.to(world.device)
    sequence, num_steps = _sequence(plan, tasks)
    groups = module.projection_groups(optimizer_class(plan.training))
    if learnt := list(balancer.parameters()):
        groups.append({"params": learnt, "lr": plan.mixing.uncertainty_learning_rate})
    optimizer = build_optimizer(model, plan.training, groups)
    return StudentTraining(
        module=module,
        wrapped=module,
        tokenizer=tokenizer,
        tasks=tasks,
        objectives=objectives,
        sequence=sequence,
        labels=_label_source(plan, tasks, sequence, num_steps, world, asker),
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, plan.training, num_steps),
        config=plan.training,
        tracking=plan.tracking,
        world=world,
        num_steps=num_steps,
        weights=[task.weight for task in plan.tasks],
        apart=_gradients_apart(plan, module),
        scaler=loss_scaler(plan.training.precision, world.device),
    )


def load_tasks(plan: RankPlan) -> list[StudentTask]:
    """Map the encoded splits of a plan's tasks into memory."""
    return [_load_task(plan, number) for number in range(len(plan.tasks))]


def _build_model(plan: RankPlan) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    what = "student" if plan.teachers else "model"
    own = plan.student.architecture
    heads = [Head.of(task.name, kind_of(task.kind, own), task.label_names) for task in plan.tasks]
    seed = plan.training.seed
    if len(heads) > 1:
        return build_multitask(plan.student, heads, seed=seed, teachers=plan.hosts, what=what)
    return build_student(
        plan.student,
        num_labels=heads[0].num_labels,
        label_names=heads[0].label_names,
        seed=seed,
        teachers=plan.hosts,
        what=what,
        kind=heads[0].kind,
    )


def _gradients_apart(plan: RankPlan, module: nn.Module) -> TaskGradients | None:
    if plan.mixing.balancing != "pcgrad" or len(plan.tasks) == 1:
        return None
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return TaskGradients(learning, plan.training.seed)


def _sequence(plan: RankPlan, tasks: Sequence[StudentTask]) -> tuple[BatchSequence, int]:
    """Return the batches of the run, and how many steps it has."""
    training, mixing = plan.training, plan.mixing
    rounds = [task.rounds for task in plan.tasks]
    sizes = [len(task.train) // each for task, each in zip(tasks, rounds, strict=True)]
    batch_sizes = [task.batch_size or training.batch_size for task in plan.tasks]
    per_epoch = batches_per_epoch(sizes, batch_sizes)
    per_step = len(sizes) if mixing.sampling == "every" else mixing.batches_per_step
    steps_per_epoch = -(-per_epoch // per_step)
    num_steps = training.num_steps or steps_per_epoch * (training.num_epochs or 0)
    draws = task_draws(
        mixing,
        [task.name for task in plan.tasks],
        sizes,
        training.seed,
        batches_per_epoch=steps_per_epoch * per_step,
        num_epochs=num_steps / steps_per_epoch,
    )
    grouped = training.group_by_length
    sequence = BatchSequence(
        sizes,
        batch_sizes,
        training.seed,
        draws,
        per_step,
        rounds=rounds,
        lengths=[task.train.views[STUDENT_VIEW].lengths for task in tasks] if grouped else None,
    )
    return sequence, num_steps


def _load_task(plan: RankPlan, number: int) -> StudentTask:
    task = plan.tasks[number]
    return StudentTask(
        name=task.name,
        kind=task.kind,
        train=EncodedSplit.load(Path(task.train)),
        eval=EncodedSplit.load(Path(task.eval)) if task.eval else None,
        signals={t.name: t.signals for t in plan.teachers if t.task == number},
        adaptor=first_classes(
            adaptor_of(task.kind, plan.student.adaptor, task.adaptor), task.num_classes
        ),
        label_names=task.label_names,
        views={t.name: t.view for t in plan.teachers if t.task == number},
        matches=plan.matches[number] if plan.matches else (),
    )


def _objective(plan: RankPlan, task: int, matches: Sequence[TaskMatch], world: World) -> Objective:
    mine = [teacher for teacher in plan.teachers if teacher.task == task]
    return Objective(
        plan.tasks[task].distillation,
        {teacher.name: teacher.weight for teacher in mine},
        world.total if world.size > 1 else None,
        matches,
        # The first signal of a teacher is its logits.
        mine[0].signals[0] if mine else None,
        kind_of(plan.tasks[task].kind),
        {teacher.name: teacher.order for teacher in mine if teacher.order is not None},
    )


def _label_source(
    plan: RankPlan,
    tasks: Sequence[StudentTask],
    sequence: BatchSequence,
    num_steps: int,
    world: World,
    asker: Asker | None,
) -> LabelSource | None:
    if not plan.teachers:
        return None
    store = LabelStore(plan.store)

    def rows_of(number: int) -> tuple[int, Any]:
        task, rows = sequence.batch(number)
        return task, rank_rows(rows, world.rank, world.size)

    return LabelSource(
        teachers=[
            TeacherLabels(
                name=teacher.name,
                task=teacher.task,
                view=tasks[teacher.task].train.views[teacher.view],
                stores={s: store.signal(teacher.fingerprint, s) for s in teacher.signals},
                supplied=teacher.supplied,
            )
            for teacher in plan.teachers
        ],
        asker=asker,
        # Labels are asked for batch by batch, however many of them a step takes.
        rows_of=rows_of,
        num_steps=num_steps * sequence.batches_per_step,
        window=plan.window,
        max_windows=plan.max_windows,
    )
