"""From a plan, as values, to the student's training on one rank.

And what is checked before it. No Ray.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.config import (
    DistillationConfig,
    MixingConfig,
    Student,
    Teacher,
    TrackingConfig,
    TrainingConfig,
)
from raybrew.data.agreement import MIN_ROWS, order_problem
from raybrew.data.batch_sequence import BatchSequence, batches_per_epoch, rank_rows, task_schedule
from raybrew.data.payload import Signal
from raybrew.data.split import STUDENT_VIEW, EncodedSplit, collate, collate_labels
from raybrew.errors import ConfigError
from raybrew.evaluation.predict import StoredLabels
from raybrew.labels.remote import StoreSpec
from raybrew.labels.source import LabelSource, TeacherClient, TeacherLabels
from raybrew.labels.store import LabelStore
from raybrew.matches.plan import TaskMatch
from raybrew.models.pretrained import describe_names, own_generator
from raybrew.models.students import Head, build_multitask, build_student
from raybrew.objective import Objective
from raybrew.objective.balancing import TaskGradients, make_balancer
from raybrew.objective.extensions import Extensions, registered
from raybrew.objective.rows import RowIndex
from raybrew.tasks import kind_of
from raybrew.tasks.adaptors import Adaptor, adaptor_of, first_classes
from raybrew.tasks.task_type import Kind
from raybrew.teachers.teacher import TeacherSpec
from raybrew.training.batches import StudentTask
from raybrew.training.loop import StudentTraining
from raybrew.training.module import StudentModule, StudentModuleOutput
from raybrew.training.optimization import (
    build_optimizer,
    build_scheduler,
    loss_scaler,
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


# What a rank is to do, as values, and what it puts together from them. No Ray.
#
# RankPlan ──► encoded splits, student, projections, optimizer, labels ──► StudentTraining


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


def build_training(plan: RankPlan, world: World, asker: TeacherClient | None) -> StudentTraining:
    """Put together what a rank runs."""
    plan.extensions.install()
    tasks = load_tasks(plan)
    model, tokenizer = _build_model(plan)
    if plan.training.gradient_checkpointing:
        enable_activation_checkpointing(model)
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
    draws = task_schedule(
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
    asker: TeacherClient | None,
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


# Weights that a student's forward pass never reads, and what DDP has to know of them.
#
# BigBird's pooler, XLNet's mask embedding, an unused module of a user's class: no gradient ever
# reaches them. DDP, which waits for one of each weight, has to look for such weights in every step.

_EXAMPLES = 2

_log = logging.getLogger(__name__)


def ddp_options(training: StudentTraining) -> dict[str, bool]:
    """Return DDP's arguments for a student; looking for unread weights takes it time each step."""
    if training.module.may_skip_parameters or _drops_layers(training.module):
        return {"find_unused_parameters": True}
    unread = unread_weights(training)
    if not unread:
        return {}
    _log.info("weights that the student never reads stay as they are: %s", describe_names(unread))
    return {"find_unused_parameters": True}


def unread_weights(training: StudentTraining) -> list[str]:
    """Return the weights that learn in name only: no output for any task depends on them.

    The first rows of each task are read without dropout; the module is left in training mode and
    the global generator as it is.
    """
    module = training.module
    read: set[Tensor] = set()
    device = next(module.parameters()).device
    module.eval()
    with own_generator(0):
        for number, task in enumerate(training.tasks):
            rows = np.arange(min(_EXAMPLES, len(task.train)))
            padding = training.padding(number)
            inputs = collate(task.train.student, rows, padding)
            labels = collate_labels(task.train, rows, inputs["input_ids"].shape[1])
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            read |= _leaves(list(_outputs(module(inputs, labels.to(device), number))))
    module.train()
    return [n for n, p in module.named_parameters() if p.requires_grad and p not in read]


def _outputs(answer: StudentModuleOutput) -> Iterator[Tensor]:
    view = answer.view
    for tensors in (view.logits, view.losses, view.hidden, view.attention):
        yield from tensors
    for features in answer.features.values():
        yield from features
    if answer.balance is not None:
        yield answer.balance


def _leaves(outputs: Sequence[Tensor]) -> set[Tensor]:
    """Return the tensors that a backward pass from these would give gradients."""
    found = {each for each in outputs if each.is_leaf}
    nodes = [each.grad_fn for each in outputs if each.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


def _drops_layers(module: nn.Module) -> bool:
    """Whether whole layers are left out at random (LayerDrop), other ones in each step."""
    configs = [getattr(each, "config", None) for each in module.modules()]
    return any(
        value
        for config in configs
        if config is not None
        for name, value in vars(config).items()
        if name.endswith("layerdrop")
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


def check_class_orders(
    plan: RankPlan, tasks: Sequence[StudentTask], world: World, asker: TeacherClient | None
) -> None:
    """Refuse a teacher whose answers fit the labels far better in another order of the classes.

    Every rank calls it; rank 0 looks.

    Args:
        plan: of the rank.
        tasks: as it has loaded them.
        world: the rank.
        asker: who computes what the store lacks; None if it has everything.

    Raises:
        ConfigError: shows the order that fits.
        LabelError: labels can't be had.
    """
    unnamed = [teacher for teacher in plan.teachers if teacher.unnamed]
    if not unnamed:
        return
    message = None
    if world.rank == 0:
        messages = (_problem(plan, tasks[teacher.task], teacher, asker) for teacher in unnamed)
        message = next((each for each in messages if each is not None), None)
    if message := world.gather(message)[0]:
        raise ConfigError(message)


def _problem(
    plan: RankPlan, task: StudentTask, teacher: TeacherPlan, asker: TeacherClient | None
) -> str | None:
    """Return the message about a teacher whose order is wrong."""
    route = [each.name for each in plan.teachers if each.task == teacher.task].index(teacher.name)
    # Evaluation rows are asked for in any case; where they are few, training rows are, too.
    rows = {side: _labelled(task, side, route) for side in ("eval", "train")}
    side = "eval" if len(rows["eval"]) >= MIN_ROWS else "train"
    if not len(rows[side]):
        return None
    flags = _compared(plan, task, side, teacher, asker, rows[side])
    what = f"teachers[{teacher.name}].model"
    return order_problem(flags, what, task.label_names, task=task.name, side=side)


def _labelled(task: StudentTask, side: str, route: int) -> np.ndarray:
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
    plan: RankPlan,
    task: StudentTask,
    side: str,
    teacher: TeacherPlan,
    asker: TeacherClient | None,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each labelled row of logits which classes it has, and which the teacher says."""
    split = task.train if side == "train" else task.eval
    assert split is not None, side
    kind, size, signal = kind_of(task.kind), len(task.label_names), teacher.signals[0]
    store = LabelStore(plan.store).signal(teacher.fingerprint, signal)
    view = split.views[teacher.view]
    if asker is None:  # labels that found no room in the store are nowhere
        rows = rows[store.contains(view.keys[rows])]
    batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
    labels = LabelSource(
        [TeacherLabels(teacher.name, teacher.task, view, {signal: store})],
        asker,
        lambda number: (teacher.task, batches[number]),
        len(batches),
    )
    true, predicted = [], []
    for number, taken in enumerate(batches):
        # Nothing comes of a teacher that was dropped since.
        for answer in labels.get(number).values():
            stored = StoredLabels(answer[signal.name], signal, teacher.view)
            flags = _flags(kind, split, taken, stored, size)
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
