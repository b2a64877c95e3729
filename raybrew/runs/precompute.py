"""The labels of a run.

What the store lacks, who computes it, and how many labels of each kind there are.
"""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from raybrew.config import DistillJob
from raybrew.data.encoding import distinct_keys
from raybrew.errors import LabelError, LabelsLost, RaybrewError
from raybrew.labels.contents import write_manifest
from raybrew.labels.location import DAMAGED, label_errors
from raybrew.labels.remote import StoreSpec
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.runs.events import Event
from raybrew.runs.run import Run
from raybrew.teachers.failure import FailurePolicy
from raybrew.teachers.pool import Deployment, PrecomputeRequest, TeacherPool
from raybrew.training.job import ResolvedJob, ResolvedTeacher

logger = logging.getLogger(__name__)

_ROUNDS = 5
"""Times that the store is filled until nothing is missing: a lost replica leaves gaps."""
_LOSSES = 3
"""So often training goes on after labels were lost that it had found in the store."""
LOOK_S = 2.0
LOOK_SHARE = 20
"""How often is looked whether a teacher may leave while the student trains: so many seconds later,
and so many times as long later as a look took, whose cost grows with the store."""
_COUNTS = ("forwards", "retried", "recomputed", "losses")


@dataclass(frozen=True)
class LabelResult:
    """What filling the store leaves behind.

    Args:
        folder: the run's folder.
        store: where the labels are.
        labels: counts in (teacher, example), see `Labelling.counts`.
        teachers: by teacher, its counts and figures.
        times: seconds of each stage.
    """

    folder: str
    store: str
    labels: dict[str, float]
    teachers: dict[str, dict[str, float]]
    times: dict[str, float]


@dataclass
class _Need:
    """Labels that a teacher's replicas are up for.

    Args:
        keys: that were missing, uint64 (n, 2).
        stores: of each signal that is asked for.
    """

    keys: np.ndarray
    stores: Sequence[SignalStore]

    def is_met(self) -> bool:
        """Return whether all of them are in the store, whoever computed them."""
        for store in self.stores:
            store.refresh()
        known = np.logical_and.reduce([store.contains(self.keys) for store in self.stores])
        self.keys = self.keys[~known]
        return not len(self.keys)


class Precompute:
    """A run's labels.

    Args:
        job: whose labels.
        preparation: its data and teachers.
        run: that needs them.
        in_workers: whether teachers with `placement: worker` are the student's workers' business;
            else the pool hosts them too.

    Attributes:
        store: where they are kept.
        counts: in (teacher, example): `needed`, `in_store` before the run, `forwards`, and of
            those `recomputed` since they were lost, with a replica or on disk; `retried` requests
            to lost replicas; `losses` of replicas.
        teachers: by teacher, the same, and its figures (see `Desk.figures`).
        dropped: teachers that nobody hosts any longer and that the run goes on without.
    """

    def __init__(
        self, job: DistillJob, preparation: ResolvedJob, run: Run, *, in_workers: bool = False
    ):
        self._hosted = [
            teacher
            for teacher in preparation.teachers
            if teacher.spec is not None
            if not in_workers or teacher.teacher.placement == "pool"
        ]
        self._job, self._preparation, self._run = job, preparation, run
        self.store = StoreSpec.of(job.labels)
        self._labels = LabelStore(self.store)
        self.counts: dict[str, float] = dict.fromkeys(("needed", "in_store", *_COUNTS), 0.0)
        self.teachers: dict[str, dict[str, float]] = {}
        self.dropped: set[str] = set()
        self._losses = 0
        self._left: set[str] = set()
        self._damaged = self._set_aside()
        for teacher in preparation.teachers:
            mine = self.teachers[teacher.teacher.name] = dict.fromkeys(self.counts, 0.0)
            for side in preparation.tasks[teacher.task].folders:
                missing, unique = self._missing(teacher, side)
                mine["needed"] += unique
                mine["in_store"] += unique - len(missing)
            for name in ("needed", "in_store"):
                self.counts[name] += mine[name]
        # Whose replicas are started: those of whom labels are missing.
        self._wanted = [
            teacher
            for teacher in self._hosted
            if self.teachers[teacher.teacher.name]["needed"]
            > self.teachers[teacher.teacher.name]["in_store"]
        ]

    def replicas(self) -> list[tuple[str, Mapping[str, float]]]:
        """Return name and resources of each replica that is about to start."""
        return [
            (each.teacher.name, each.resources)
            for each in self._wanted
            for _ in range(each.teacher.replicas)
        ]

    @contextmanager
    def pool(self) -> Iterator[TeacherPool | None]:
        """Start the teachers of whom labels are missing."""
        self._before = {name: dict(figures) for name, figures in self.teachers.items()}
        self._left = set()
        if not self._wanted:
            logger.info("no label of the pool's teachers is missing: none is started")
            yield None
            return
        for each in self._preparation.teachers:
            if each.spec is not None:
                write_manifest(
                    self._labels.location,
                    each.fingerprint,
                    teacher=each.teacher.name,
                    model=each.teacher.model_path,
                )
        with self._run.stage("start_teachers"):
            pool = TeacherPool(
                [
                    Deployment(
                        t.spec,
                        t.signals,
                        t.teacher.replicas,
                        dict(t.resources),
                        FailurePolicy(
                            t.teacher.on_loss, t.teacher.deadline_s, t.teacher.lost_after_s
                        ),
                    )
                    for t in self._wanted
                    if t.spec is not None
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
        """Compute what is missing of these splits, but for teachers that have left.

        Raises:
            LabelError: labels are missing however often they are computed.
        """
        if pool is None:
            return
        go_on = self._job.labels.on_full == "go_on"
        with self._run.stage("label"):
            for _ in range(1 if go_on else _ROUNDS):
                fillings = self._fillings(sides, pool.teachers)
                if not fillings:
                    return
                self.dropped |= pool.fill(fillings)
                self.note(pool)
        missing = sum(len(filling.rows) for filling in self._fillings(sides, pool.teachers))
        if missing and go_on:
            logger.error(
                "label store %s: no room for %d labels", self._labels.location.root, missing
            )
        elif missing:
            raise LabelError(
                f"label store {self._job.labels.store}: {missing} labels are missing after they "
                f"were computed {_ROUNDS} times; is something else deleting files in the store?"
            )

    @contextmanager
    def releasing(self, pool: TeacherPool) -> Iterator[None]:
        """Let each teacher go, while the student trains, once none of its labels is missing."""
        over = threading.Event()
        thread = threading.Thread(target=self._release, args=(pool, over), daemon=True)
        thread.start()
        try:
            yield
            over.set()
            thread.join()
        finally:
            # Where training ended otherwise, nobody waits for labels that are under way.
            over.set()

    def _release(self, pool: TeacherPool, over: threading.Event) -> None:
        needs: dict[str, _Need] = {}
        staying = {teacher.teacher.name: teacher for teacher in self._wanted}
        wait_s = LOOK_S
        while staying and not over.wait(wait_s):
            start = time.monotonic()
            for name, teacher in list(staying.items()):
                try:
                    needs[name] = needs.get(name) or self._need(teacher)
                    if needs[name].is_met() and self._released(pool, name):
                        del staying[name]
                except CancelledError:  # the pool was stopped
                    return
                except (RaybrewError, OSError) as error:
                    # The run goes on with the teacher as it is; what is wrong shows at its end.
                    logger.warning("teacher %r stays until training ends: %s", name, error)
                    del staying[name]
            wait_s = max(LOOK_S, LOOK_SHARE * (time.monotonic() - start))

    def _need(self, teacher: ResolvedTeacher) -> _Need:
        stores = [self._labels.signal(teacher.fingerprint, signal) for signal in teacher.signals]
        return _Need(self._missing_keys(teacher, "train"), stores)

    def _released(self, pool: TeacherPool, name: str) -> bool:
        """Compute the teacher's evaluation labels, which no step asks for, and let it go."""
        evaluation = self._fillings(("eval",), {name})
        if evaluation:
            self.dropped |= pool.fill(evaluation)
        if name in self.dropped or not pool.release(name):
            return name in self.dropped
        self.note(pool)
        self._left.add(name)
        what = "every label is in the store; its replicas were ended and their resources are free"
        self._run.survived(Event("teacher left", f"teacher {name!r}", what, is_fault=False))
        return True

    def note(self, pool: TeacherPool) -> None:
        """Record the teachers' figures so far, and what was survived since the last call."""
        for event in pool.take_events():
            self._run.survived(Event(**event))
        for name, figures in pool.figures().items():
            if name in self._left:  # a desk that lives again doesn't know of them
                continue
            # Other replicas may have come before these.
            sums = {count: self._before[name][count] + figures[count] for count in _COUNTS}
            self.teachers[name] |= figures | sums
            values = {f"teacher/{name}/{key}": value for key, value in figures.items()}
            self._run.tracker.log(values, step=self._run.step)
        hosted = [self.teachers[teacher.teacher.name] for teacher in self._hosted]
        for name in _COUNTS:
            self.counts[name] = sum(each[name] for each in hosted)

    def watch(self, pool: TeacherPool) -> None:
        """Record the same while the student trains: a pool that can't tell stops no student."""
        try:
            self.note(pool)
        except RaybrewError as error:
            logger.warning("the teachers' figures were not to be had: %s", error)

    def lost(self, error: LabelsLost) -> None:
        """Take note that labels are gone that training had found: teachers are needed again.

        Raises:
            LabelsLost: it happens again and again.
        """
        self._losses += 1
        if self._losses > _LOSSES:
            raise error
        self._wanted = self._hosted
        self._note_damage()
        self._run.went_wrong("labels lost", "label store", str(error))

    def restore(self, side: str) -> None:
        """Compute what is gone of a split since it was seen in the store."""
        everyone = {teacher.teacher.name for teacher in self._hosted}
        if self._job.labels.on_full == "stop" and self._fillings((side,), everyone):
            self._wanted = self._hosted
            with self.pool() as pool:
                self.fill(pool, (side,))
                self.close(pool)

    def kept(self) -> ResolvedJob:
        """Return the preparation without the teachers that were dropped."""
        teachers = [t for t in self._preparation.teachers if t.teacher.name not in self.dropped]
        return replace(self._preparation, teachers=tuple(teachers))

    def note_workers(self, metrics: dict[str, float]) -> None:
        """Take what the workers' own teachers did out of their metrics."""
        self.counts["forwards"] += metrics.pop("labels/forwards_in_workers", 0.0)

    def close(self, pool: TeacherPool | None) -> None:
        """Take the figures of the teachers and give their resources back."""
        if pool is not None:
            pool.flush()
            self.note(pool)
            pool.stop()
            self._note_damage()
            self._note_unstored()

    def _note_damage(self) -> None:
        found = self._set_aside()
        for path in sorted(found.keys() - self._damaged.keys()):
            what = f"{path} was set aside; its labels are computed again"
            self._run.survived(Event("label shard damaged", f"teacher {found[path]!r}", what))
        self._damaged |= found

    def _note_unstored(self) -> None:
        for name, figures in self.teachers.items():
            if unstored := figures.get("unstored", 0.0):
                what = f"{unstored:.0f} labels were not kept, as labels.on_full says"
                self._run.survived(Event("label store full", f"teacher {name!r}", what))

    def _set_aside(self) -> dict[str, str]:
        # By file, whose labels it holds.
        location = self._labels.location
        with label_errors(location.root):
            return {
                file.path: teacher.teacher.name
                for teacher in self._preparation.teachers
                for file in location.files(teacher.fingerprint)
                if file.name.endswith(DAMAGED)
            }

    def _fillings(
        self, sides: tuple[str, ...], teachers: Collection[str]
    ) -> list[PrecomputeRequest]:
        fillings = [
            self._filling(teacher, side)
            for teacher in self._hosted
            if teacher.teacher.name in teachers and teacher.teacher.name not in self.dropped
            for side in sides
            if side in self._preparation.tasks[teacher.task].folders
        ]
        return [filling for filling in fillings if len(filling.rows)]

    def _filling(self, teacher: ResolvedTeacher, side: str) -> PrecomputeRequest:
        rows, _ = self._missing(teacher, side)
        task = self._preparation.tasks[teacher.task]
        view = task.split(side).views[teacher.view]
        bar = f"labels {teacher.teacher.name} {side}"
        if len(rows):
            self._run.bars.start(bar, len(rows), "examples")
        return PrecomputeRequest(
            teacher=teacher.teacher.name,
            folder=task.folders[side],
            view_name=teacher.view,
            view=view,
            rows=rows,
            on_done=lambda count: self._run.bars.advance(bar, count),
        )

    def _missing_keys(self, teacher: ResolvedTeacher, side: str) -> np.ndarray:
        rows, _ = self._missing(teacher, side)
        view = self._preparation.tasks[teacher.task].split(side).views[teacher.view]
        return view.keys[rows]

    def _missing(self, teacher: ResolvedTeacher, side: str) -> tuple[np.ndarray, int]:
        # The first row of each content whose labels are not all there, and how many contents.
        view = self._preparation.tasks[teacher.task].split(side).views[teacher.view]
        first, _ = distinct_keys(view.keys)
        keys = view.keys[first]
        stores = [self._labels.signal(teacher.fingerprint, s) for s in teacher.signals]
        known = np.logical_and.reduce([store.contains(keys) for store in stores])
        return first[~known], len(first)
