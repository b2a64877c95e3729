"""Teachers whose classes have no names are tried on labelled rows before the student learns.

rows with labels ──► what the teachers say of them (store, else asked) ──► agreement
                                                                              └──► or an error
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from raybrew.data.class_agreement import MIN_ROWS, order_problem
from raybrew.data.collate import collate_labels
from raybrew.data.split import EncodedSplit
from raybrew.errors import ConfigError
from raybrew.evaluation import StoredLabels
from raybrew.kinds import Kind, kind_of
from raybrew.labels.source import Asker, LabelSource, TeacherLabels
from raybrew.labels.store import LabelStore
from raybrew.objective.rows import RowIndex
from raybrew.student.batches import StudentTask
from raybrew.student.building import RankPlan, TeacherPlan
from raybrew.student.world import World

__all__ = ["check_class_orders"]

_SAMPLE = 512
"""Examples that are compared at most."""
_DRAWN = 8 * _SAMPLE
"""Examples among which those with labels are looked for."""
_BATCH = 64


def check_class_orders(
    plan: RankPlan, tasks: Sequence[StudentTask], world: World, asker: Asker | None
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
    plan: RankPlan, task: StudentTask, teacher: TeacherPlan, asker: Asker | None
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
    asker: Asker | None,
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
