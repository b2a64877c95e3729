"""The labels of a job: what is missing, who computes it, and how many of each there were.

store ──► missing rows of each (teacher, split) ──► pool ──► store
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from raybrew.config import DistillJob
from raybrew.labels.spec import StoreSpec
from raybrew.labels.store import LabelStore
from raybrew.preparation import Preparation, PreparedTeacher
from raybrew.run import Run
from raybrew.teachers.policy import LossPolicy
from raybrew.teachers.pool import Filling, Hosting, TeacherPool

__all__ = ["Labelling"]

logger = logging.getLogger(__name__)


class Labelling:
    """A run's labels.

    Attributes:
        store: where they are kept.
        counts: in (teacher, example): `needed`, `in_store` before the run, `forwards`.
    """

    def __init__(self, job: DistillJob, preparation: Preparation, run: Run):
        self._job, self._preparation, self._run = job, preparation, run
        self.store = StoreSpec.of(job.labels)
        self._labels = LabelStore(self.store)
        self.counts = {"needed": 0.0, "in_store": 0.0, "forwards": 0.0}
        for teacher in preparation.teachers:
            for side in preparation.tasks[teacher.task].folders:
                missing, unique = self._missing(teacher, side)
                self.counts["needed"] += unique
                self.counts["in_store"] += unique - len(missing)

    @contextmanager
    def pool(self) -> Iterator[TeacherPool | None]:
        """Start the teachers, if any label is missing at all."""
        if self.counts["needed"] == self.counts["in_store"]:
            logger.info("every label is in the store: no teacher is started")
            yield None
            return
        with self._run.stage("start_teachers"):
            pool = TeacherPool(
                [
                    Hosting(
                        t.spec,
                        t.signals,
                        t.teacher.replicas,
                        dict(t.teacher.resources),
                        LossPolicy(t.teacher.on_loss, t.teacher.deadline_s, t.teacher.lost_after_s),
                    )
                    for t in self._preparation.teachers
                ],
                self.store,
            )
        try:
            with self._run.stage("start_teachers"):
                pool.wait()
            yield pool
        finally:
            pool.stop()

    def fill(self, pool: TeacherPool | None, sides: tuple[str, ...]) -> None:
        """Compute what is missing of these splits."""
        if pool is None:
            return
        with self._run.stage("label"):
            fillings = [
                self._filling(teacher, side)
                for teacher in self._preparation.teachers
                for side in sides
                if side in self._preparation.tasks[teacher.task].folders
            ]
            pool.fill([filling for filling in fillings if len(filling.rows)])

    def close(self, pool: TeacherPool | None) -> None:
        """Take the figures of the teachers and give their resources back."""
        if pool is None:
            return
        pool.flush()
        for name, figures in pool.figures().items():
            self.counts["forwards"] += figures["forwards"]
            self._run.tracker.log({f"teacher/{name}/{k}": v for k, v in figures.items()}, step=0)
        pool.stop()

    def _filling(self, teacher: PreparedTeacher, side: str) -> Filling:
        rows, _ = self._missing(teacher, side)
        task = self._preparation.tasks[teacher.task]
        view = task.split(side).views[teacher.view]
        bar = f"labels {teacher.teacher.name} {side}"
        if len(rows):
            self._run.bars.start(bar, len(rows), "examples")
        return Filling(
            teacher=teacher.teacher.name,
            folder=task.folders[side],
            view_name=teacher.view,
            view=view,
            rows=rows,
            on_done=lambda count: self._run.bars.advance(bar, count),
        )

    def _missing(self, teacher: PreparedTeacher, side: str) -> tuple[np.ndarray, int]:
        # The first row of each content whose labels are not all there, and how many contents.
        view = self._preparation.tasks[teacher.task].split(side).views[teacher.view]
        _, first = np.unique(view.keys, axis=0, return_index=True)
        keys = view.keys[np.sort(first)]
        stores = [self._labels.signal(teacher.spec.fingerprint, s) for s in teacher.signals]
        known = np.logical_and.reduce([store.contains(keys) for store in stores])
        return np.sort(first)[~known], len(first)
