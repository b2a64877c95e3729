"""The labels of a run: what the store lacks, who computes it, and how many of each kind there are.

store ──► missing rows of each (teacher, split) ──► pool ──► store
                                                     └ a teacher without missing rows is released
"""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial

import numpy as np

from raybrew.data.encoding import EncodedView, distinct_keys
from raybrew.errors import Event, LabelError, LabelsLost, RaybrewError
from raybrew.labels.contents import write_manifest
from raybrew.labels.location import DAMAGED, label_errors
from raybrew.labels.store import LabelStore, SignalStore
from raybrew.runs.run import Run
from raybrew.teachers.client import PrecomputeRequest
from raybrew.teachers.pool import TeacherPool
from raybrew.teachers.teacher import ResolvedTeacher
from raybrew.training.job import ResolvedJob

logger = logging.getLogger(__name__)

FILL_ROUNDS = 5
"""Times that the store is filled until nothing is missing: a lost replica leaves gaps."""
MAX_RESTARTS = 3
"""Times that training starts again after labels were lost that it had found in the store."""
POLL_S = 2.0
POLL_SHARE = 20
"""Time between two checks whether a teacher can be released: at least `POLL_S` seconds, and
`POLL_SHARE` times as long as the last check took, whose cost grows with the store."""
_POOL_COUNTS = ("forwards", "retried", "losses")
_COUNTS = ("needed", "in_store", *_POOL_COUNTS, "recomputed")


class Precompute:
    """Fills the label store of a job, and counts what that took.

    Args:
        job: whose labels.
        run: that needs them.
        in_workers: whether the student's workers host teachers with `placement: worker`; else the
            pool hosts them too.

    Attributes:
        teachers: by teacher, its counts in (teacher, example) and its metrics: `needed`, `in_store`
            before the run, `forwards`, and how many of those were `recomputed` at least, as labels
            were lost with a replica or on disk; `retried` requests to lost replicas; `losses` of
            replicas.
        dropped: teachers that no replica hosts any more and that the run continues without.
    """

    def __init__(self, job: ResolvedJob, run: Run, *, in_workers: bool = False):
        self._job, self._run = job, run
        self._hosted = [
            teacher
            for teacher in job.teachers
            if teacher.model is not None and not (in_workers and teacher.in_worker)
        ]
        self._labels = LabelStore(job.store)
        self.teachers: dict[str, dict[str, float]] = {}
        self.dropped: set[str] = set()
        self._forwards_in_workers = 0.0
        self._restarts = 0
        self._released: set[str] = set()
        self._damaged = self._damaged_files()
        for teacher in job.teachers:
            counts: dict[str, float] = dict.fromkeys(_COUNTS, 0.0)
            for side in job.task_of(teacher).folders:
                missing, unique = self._missing(teacher, side)
                counts["needed"] += unique
                counts["in_store"] += unique - len(missing)
            self.teachers[teacher.name] = counts
        # Only teachers with missing labels are started.
        self._started = [t for t in self._hosted if self._lacks_labels(t.name)]

    @property
    def counts(self) -> dict[str, float]:
        """The counts of all teachers together."""
        sums = {name: sum(each[name] for each in self.teachers.values()) for name in _COUNTS}
        return sums | {"forwards": sums["forwards"] + self._forwards_in_workers}

    @property
    def job(self) -> ResolvedJob:
        """The job without the teachers that were dropped."""
        if not self.dropped:
            return self._job
        left = [each for each in self._job.teachers if each.name not in self.dropped]
        return self._job.with_teachers(left)

    def _lacks_labels(self, name: str) -> bool:
        return self.teachers[name]["needed"] > self.teachers[name]["in_store"]

    def replicas(self) -> list[tuple[str, Mapping[str, float]]]:
        """Return name and resources of each replica that is about to start."""
        return [
            (teacher.name, teacher.resources)
            for teacher in self._started
            for _ in range(teacher.config.replicas)
        ]

    @contextmanager
    def pool(self) -> Iterator[TeacherPool | None]:
        """Start the teachers with missing labels; None where there is none."""
        self._before = {name: dict(metrics) for name, metrics in self.teachers.items()}
        self._released = set()
        if not self._started:
            self._run.bars.say("every label is in the store: no teacher is started")
            yield None
            return
        for teacher in self._job.teachers:
            if teacher.model is not None:
                write_manifest(
                    self._labels.location,
                    teacher.fingerprint,
                    teacher=teacher.name,
                    model=teacher.config.model_path,
                )
        names = ", ".join(teacher.name for teacher in self._started)
        self._run.bars.say(f"starting {len(self.replicas())} replicas of teachers ({names})")
        with self._run.stage("start_teachers"):
            pool = TeacherPool(self._started, self._job.store)
        try:
            with self._run.stage("start_teachers"):
                pool.wait()
            yield pool
        finally:
            pool.stop()

    def fill(self, pool: TeacherPool | None, sides: Collection[str]) -> None:
        """Compute what is missing of these splits, except for teachers that were released.

        Raises:
            LabelError: labels are missing however often they are computed.
        """
        if pool is None:
            return
        labels = self._job.labels
        go_on = labels.on_full == "go_on"
        with self._run.stage("label"):
            for _ in range(1 if go_on else FILL_ROUNDS):
                requests = self._requests(sides, pool.teachers)
                if not requests:
                    return
                self.dropped |= pool.fill(requests)
                self.record(pool)
        missing = sum(len(request.rows) for request in self._requests(sides, pool.teachers))
        if missing and go_on:
            logger.error(
                "label store %s: no room for %d labels", self._labels.location.root, missing
            )
        elif missing:
            raise LabelError(
                f"label store {labels.store}: {missing} labels are missing after they "
                f"were computed {FILL_ROUNDS} times; is something else deleting files in the store?"
            )

    @contextmanager
    def releasing(self, pool: TeacherPool) -> Iterator[None]:
        """Release each teacher, while the student trains, once none of its labels is missing."""
        stop = threading.Event()
        thread = threading.Thread(target=self._release_all, args=(pool, stop), daemon=True)
        thread.start()
        try:
            yield
            stop.set()
            thread.join()
        finally:
            # Where training failed, nothing waits for labels that are being computed.
            stop.set()

    def _release_all(self, pool: TeacherPool, stop: threading.Event) -> None:
        awaited: dict[str, _AwaitedLabels] = {}
        staying = {teacher.name: teacher for teacher in self._started}
        wait_s = POLL_S
        while staying and not stop.wait(wait_s):
            start = time.monotonic()
            for name, teacher in list(staying.items()):
                try:
                    if name not in awaited:
                        awaited[name] = self._awaited(teacher)
                    if awaited[name].are_stored() and self._release(pool, name):
                        del staying[name]
                except CancelledError:  # the pool was stopped
                    return
                except (RaybrewError, OSError) as error:
                    # The run continues with the teacher as it is; the end of training shows why.
                    logger.warning("teacher %r stays until training ends: %s", name, error)
                    del staying[name]
            wait_s = max(POLL_S, POLL_SHARE * (time.monotonic() - start))

    def _release(self, pool: TeacherPool, name: str) -> bool:
        """Compute the teacher's evaluation labels, which no step requests, and release it."""
        if requests := self._requests(("eval",), {name}):
            self.dropped |= pool.fill(requests)
        if name in self.dropped or not pool.release(name):
            return name in self.dropped
        self.record(pool)
        self._released.add(name)
        what = "every label is in the store; its replicas were ended and their resources are free"
        self._run.record(Event("teacher left", f"teacher {name!r}", what, is_fault=False))
        return True

    def record(self, pool: TeacherPool) -> None:
        """Record the teachers' metrics so far, and the faults since the last call."""
        for event in pool.take_events():
            self._run.record(event)
        for name, metrics in pool.metrics().items():
            if name in self._released:  # a router that was restarted doesn't know of their work
                continue
            # Other replicas may have come before these.
            sums = {count: self._before[name][count] + metrics[count] for count in _POOL_COUNTS}
            missing = self.teachers[name]["needed"] - self.teachers[name]["in_store"]
            metrics["recomputed"] = max(0.0, sums["forwards"] - missing)
            self.teachers[name] |= metrics | sums
            values = {f"teacher/{name}/{key}": value for key, value in metrics.items()}
            self._run.tracker.log(values, step=self._run.step)

    def try_record(self, pool: TeacherPool) -> None:
        """Record the same while the student trains: an error of the pool stops no student."""
        try:
            self.record(pool)
        except RaybrewError as error:
            logger.warning("the teachers' metrics are not available: %s", error)

    def start_again(self, error: LabelsLost) -> None:
        """Prepare for another start of training, as labels that it had found were lost.

        Raises:
            LabelsLost: it happens again and again.
        """
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise error
        self._started = self._hosted
        self._record_damage()
        self._run.record_fault("labels lost", "label store", str(error))

    def restore(self, side: str) -> None:
        """Compute labels of a split that were lost since they were seen in the store."""
        names = {teacher.name for teacher in self._hosted}
        if self._job.labels.on_full == "stop" and self._requests((side,), names):
            self._started = self._hosted
            with self.pool() as pool:
                self.fill(pool, (side,))
                self.close(pool)

    def count_workers(self, metrics: dict[str, float]) -> None:
        """Take what the workers' own teachers computed out of their metrics."""
        self._forwards_in_workers += metrics.pop("labels/forwards_in_workers", 0.0)

    def close(self, pool: TeacherPool | None) -> None:
        """Take the metrics of the teachers and free their resources."""
        if pool is None:
            return
        pool.flush()
        self.record(pool)
        pool.stop()
        self._record_damage()
        for name, metrics in self.teachers.items():
            if unstored := metrics.get("unstored", 0.0):
                what = f"{unstored:.0f} labels were not kept, as labels.on_full says"
                self._run.record(Event("label store full", f"teacher {name!r}", what))

    def _record_damage(self) -> None:
        found = self._damaged_files()
        for path in sorted(found.keys() - self._damaged.keys()):
            what = f"{path} was set aside; its labels are computed again"
            self._run.record(Event("label shard damaged", f"teacher {found[path]!r}", what))
        self._damaged |= found

    def _damaged_files(self) -> dict[str, str]:
        """Return the damaged files in the store, each with the teacher whose labels it holds."""
        location = self._labels.location
        with label_errors(location.root):
            return {
                file.path: teacher.name
                for teacher in self._job.teachers
                for file in location.files(teacher.fingerprint)
                if file.name.endswith(DAMAGED)
            }

    def _requests(
        self, sides: Collection[str], teachers: Collection[str]
    ) -> list[PrecomputeRequest]:
        requests = [
            self._request(teacher, side)
            for teacher in self._hosted
            if teacher.name in teachers and teacher.name not in self.dropped
            for side in sides
            if side in self._job.task_of(teacher).folders
        ]
        return [request for request in requests if len(request.rows)]

    def _request(self, teacher: ResolvedTeacher, side: str) -> PrecomputeRequest:
        rows, _ = self._missing(teacher, side)
        bar = f"labels {teacher.name} {side}"
        if len(rows):
            self._run.bars.start(bar, len(rows), "examples")
        return PrecomputeRequest(
            teacher=teacher.name,
            folder=self._job.task_of(teacher).folders[side],
            view_name=teacher.view,
            view=self._view(teacher, side),
            rows=rows,
            on_done=partial(self._run.bars.advance, bar),
        )

    def _view(self, teacher: ResolvedTeacher, side: str) -> EncodedView:
        return self._job.task_of(teacher).split(side).views[teacher.view]

    def _stores(self, teacher: ResolvedTeacher) -> list[SignalStore]:
        return [self._labels.signal(teacher.fingerprint, signal) for signal in teacher.signals]

    def _missing(self, teacher: ResolvedTeacher, side: str) -> tuple[np.ndarray, int]:
        """Return the first row of each example that lacks labels, and how many examples differ."""
        view = self._view(teacher, side)
        first, _ = distinct_keys(view.keys)
        return first[~_are_stored(self._stores(teacher), view.keys[first])], len(first)

    def _awaited(self, teacher: ResolvedTeacher) -> "_AwaitedLabels":
        rows, _ = self._missing(teacher, "train")
        return _AwaitedLabels(self._view(teacher, "train").keys[rows], self._stores(teacher))


class _AwaitedLabels:
    """Labels that a teacher's replicas are kept for.

    Args:
        keys: examples whose labels were missing, uint64 (n, 2).
        stores: of each signal that is requested.
    """

    def __init__(self, keys: np.ndarray, stores: Sequence[SignalStore]):
        self._keys, self._stores = keys, stores

    def are_stored(self) -> bool:
        """Return whether all of them are in the store, whichever process computed them."""
        for store in self._stores:
            store.refresh()
        self._keys = self._keys[~_are_stored(self._stores, self._keys)]
        return not len(self._keys)


def _are_stored(stores: Sequence[SignalStore], keys: np.ndarray) -> np.ndarray:
    """Return of each key whether every store has a label, bool (n,)."""
    return np.logical_and.reduce([store.contains(keys) for store in stores])
