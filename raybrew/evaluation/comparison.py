"""Teachers, their mixture and the student on the same evaluation rows, without a teacher's forward.

    stored logits ──► teachers, mixture ─┐
                                         ├──► row scores, breakdowns, agreement, telling rows
    saved student ──► forward ───────────┘

The rows are a sample, bounded in number and in the time that the student takes for it.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch

from raybrew.data.payload import Payload
from raybrew.data.split import EncodedSplit
from raybrew.errors import LabelError
from raybrew.evaluation.predict import predict
from raybrew.evaluation.saved_models import open_model
from raybrew.evaluation.stored_teachers import StoredTeachers
from raybrew.tasks import task_type_of
from raybrew.tasks.task_type import Breakdown, Prediction, TaskType
from raybrew.training.job import ResolvedJob, ResolvedTask

logger = logging.getLogger(__name__)

MOST_ROWS = 2000
MOST_S = 15.0
"""Rows of the data that are compared, and seconds that the student may take for them."""
_BLOCK = 128
MIXED = "teachers, mixed"


@dataclass(frozen=True)
class Comparison:
    """What several models answer to the same rows of a task.

    Args:
        task: its name.
        kind: its type.
        model: name of the model that the run trained; the others are its teachers.
        rows: rows of the data that were compared, int64 (n,).
        total: rows that there are.
        true: labels of the rows, as `TaskType.truth` has them.
        found: by model, teachers first, the answers to the rows, as `TaskType.decode` has them.
        scores: by model, of each row, the greater the better; see `TaskType.row_scores`.
        breakdowns: by model; none where no row is labelled.
        agreement: by teacher, the mean score of the model's answers, were the teacher's the labels.
    """

    task: str
    kind: TaskType
    model: str
    rows: np.ndarray
    total: int
    true: list[Prediction | None]
    found: dict[str, list[Prediction]]
    scores: dict[str, np.ndarray]
    breakdowns: dict[str, Breakdown]
    agreement: dict[str, float]

    @property
    def reference(self) -> str | None:
        """What the model is compared with: the mixture, or the one teacher; None without any.

        A mixture itself is compared with the best of its teachers.
        """
        others = [name for name in self.found if name != self.model]
        if self.model == MIXED:
            return max(others, key=lambda name: float(np.nansum(self.scores[name])))
        return others[-1] if others else None

    def lost(self, at_most: int) -> list[int]:
        """Return places of rows that the model gets worse than its reference, the worst first.

        Of rows that are equally bad those come first of whose answer the model is surest. Without
        teachers: rows that it gets worst.
        """
        return self._ranked(self.regret, at_most)

    def won(self, at_most: int) -> list[int]:
        """Return places of rows that the model gets better than its reference, the best first."""
        return [] if self.reference is None else self._ranked(-self.regret, at_most)

    @property
    def regret(self) -> np.ndarray:
        """Score of the reference less that of the model, by row; NaN where no label is known."""
        own = self.scores[self.model]
        if self.reference is None:
            return np.nanmax(own, initial=0.0) - own if len(own) else own
        return self.scores[self.reference] - own

    def _ranked(self, values: np.ndarray, at_most: int) -> list[int]:
        sure = [each.get("probability", each.get("score", 0.0)) for each in self.found[self.model]]
        order = np.lexsort((-np.array(sure), -np.nan_to_num(values, nan=-np.inf)))
        return [int(place) for place in order[:at_most] if values[place] > 0]


def compare(
    job: ResolvedJob,
    task: ResolvedTask,
    folder: str | None,
    *,
    model: str = "student",
    most_rows: int = MOST_ROWS,
    most_s: float = MOST_S,
) -> Comparison | None:
    """Compare a trained model with the teachers of its task, or the teachers with their mixture.

    Args:
        job: with the store; without teachers the model is looked at alone.
        task: which has evaluation rows.
        folder: the model, of this task; None to compare the last of the teachers, which is their
            mixture where there are several, with the others.
        model: name of the model in the comparison.
        most_rows: rows of the data, drawn at random, the same in every run.
        most_s: seconds after which no further rows are predicted.

    Returns:
        None where there are no rows, or no model to look at.

    Raises:
        ConfigError: the model can't be loaded.
        DataError: the encoded rows can't be read.
    """
    split = task.eval
    drawn = [] if split is None else drawn_rows(split, most_rows)
    if split is None or not drawn:
        return None
    if folder is None:
        rows = np.concatenate(drawn)
        payloads = _teachers(job, task, split, rows)
        model = next(reversed(payloads), "")
    else:
        rows, own = _answers(job, task, folder, drawn, most_s)
        payloads = _teachers(job, task, split, rows) | {model: own}
    if not payloads:
        return None
    kind, names = task.kind, task.label_names
    found = {name: kind.decode(each, split, rows, names) for name, each in payloads.items()}
    true = kind.truth(split, rows, names)
    breakdowns = {n: kind.breakdown(each, split, rows, names) for n, each in payloads.items()}
    agreement = {
        name: float(np.nanmean(kind.row_scores(found[model], each, split)))
        for name, each in found.items()
        if name != model and kind.has_labels
    }
    return Comparison(
        task=task.name,
        kind=kind,
        model=model,
        rows=rows if split.source is None else np.array(list(dict.fromkeys(split.source[rows]))),
        total=len(split) if split.source is None else int(split.source.max()) + 1,
        true=true,
        found=found,
        scores={name: kind.row_scores(each, true, split) for name, each in found.items()},
        breakdowns={name: each for name, each in breakdowns.items() if each is not None},
        agreement=agreement,
    )


def drawn_rows(split: EncodedSplit, most: int) -> list[np.ndarray]:
    """Draw rows of the data, the same at each call.

    Args:
        split: of which.
        most: rows of the data at most.

    Returns:
        Examples, int64, in blocks; all those of a row of the data are neighbours.
    """
    source = np.arange(len(split)) if split.source is None else split.source
    first = np.flatnonzero(np.diff(source, prepend=-1))  # examples of a row come together
    ends = [*first[1:].tolist(), len(source)]
    drawn = np.random.default_rng(0).permutation(len(first))[:most]
    return [
        np.concatenate([np.arange(int(first[row]), ends[row]) for row in drawn[n : n + _BLOCK]])
        for n in range(0, len(drawn), _BLOCK)
    ]


def _answers(
    job: ResolvedJob, task: ResolvedTask, folder: str, blocks: list[np.ndarray], most_s: float
) -> tuple[np.ndarray, Payload]:
    """Return the examples that the model had time for, and its answers to them."""
    kind = task_type_of(task.config.kind, job.student.architecture, "student.architecture")
    # On the CPU: the GPUs of this machine may be at work for others.
    cpu = torch.device("cpu")
    opened = open_model(folder, task.config, kind=kind, adaptor=task.adaptor, device=cpu)
    done: list[np.ndarray] = []
    parts: list[Payload] = []
    until = time.monotonic() + most_s
    for rows in blocks:
        parts.append(predict(opened.hosted, kind, task.split("eval"), rows, batch_size=32))
        done.append(rows)
        if time.monotonic() > until:
            break
    return np.concatenate(done), Payload.concat(parts)


def _teachers(
    job: ResolvedJob, task: ResolvedTask, split: EncodedSplit, rows: np.ndarray
) -> dict[str, Payload]:
    """Return the teachers' answers, and their mixture's where there are several."""
    if not task.teachers:
        return {}
    try:
        *each, mixed = StoredTeachers(job, task, split, rows).predictions()
    except LabelError as error:  # labels.on_full: go_on
        logger.warning("task %r: its teachers are not compared: %s", task.name, error)
        return {}
    found = {teacher.name: one for teacher, one in zip(task.teachers, each, strict=True)}
    return found if len(found) == 1 else found | {MIXED: mixed}
