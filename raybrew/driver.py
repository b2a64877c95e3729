"""What the driver does: `distill` and `train`, from a job to a student's folder.

prepare ──► Ray, resources checked ──► teachers ──► [labels ahead] ──► Ray Train ──► student
   │                                                                       │
   └─ errors before any model is loaded                   teachers judged ─┴─► report
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
from ray.train import RunConfig, ScalingConfig

from raybrew.cluster import check_resources, ray_session
from raybrew.config import DistillJob, TrackingConfig, TrainJob
from raybrew.jobfile import dump_yaml
from raybrew.judging import judge_teachers
from raybrew.labels.store import LabelStore
from raybrew.mailbox import Follower, Message, start_mailbox
from raybrew.preparation import Preparation, PreparedTeacher, prepare, prepare_supervised
from raybrew.progress import Bars
from raybrew.report import render_report
from raybrew.run_folder import RunFolder
from raybrew.student.building import RankPlan, TaskPlan, TeacherPlan
from raybrew.student.checkpoint import STUDENT
from raybrew.student.trainer import fit
from raybrew.teachers.pool import Hosting, TeacherPool
from raybrew.tracking import Tracker

__all__ = ["RunResult", "distill", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind.

    Args:
        folder: the run's folder.
        student: folder of the student, as transformers loads it.
        metrics: last losses and evaluation of the student.
        teachers: metrics of each teacher on its task's evaluation rows.
        ensembles: metrics of each task's mixture of teachers.
        labels: label counts, in (teacher, example): `needed`, `in_store` before the run,
            `forwards` of the teachers, `hits` and `misses` of the student's workers.
        times: seconds of each stage.
    """

    folder: str
    student: str
    metrics: dict[str, float]
    teachers: dict[str, dict[str, float]]
    ensembles: dict[str, dict[str, float]]
    labels: dict[str, float]
    times: dict[str, float]


def distill(
    job: DistillJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
) -> RunResult:
    """Distil the job's teachers into its student.

    Args:
        job: what to do.
        scaling_config: the student's workers, Ray Train's own; one worker if left out.
        run_config: name and folder of the run, Ray Train's own; `runs/<job>-<time>` if left out.

    Returns:
        Where the student is, and what it is worth.

    Raises:
        ConfigError: the job can't be; nothing was loaded yet.
        DataError: the data isn't what the job says.
        TeacherError: a teacher can't be loaded, is gone, or answers NaN.
    """
    with _Run(job, "distill", scaling_config, run_config) as run:
        with run.stage("prepare"):
            preparation = prepare(job, run.folder.data)
        run.start(
            [
                (teacher.teacher.name, teacher.teacher.resources)
                for teacher in preparation.teachers
                for _ in range(teacher.teacher.replicas)
            ],
            together=job.labels.when == "along",
        )
        labelling = _Labelling(job, preparation, run)
        with labelling.pool() as pool:
            ahead = job.labels.when == "ahead"
            if ahead:
                labelling.fill(pool, ("train", "eval"))
                labelling.close(pool)
            plan = _distill_plan(job, preparation)
            fitted = run.fit(plan, {} if pool is None or ahead else pool.replicas)
            if not ahead:
                labelling.fill(pool, ("eval",))
                labelling.close(pool)
        teachers, ensembles = judge_teachers(job, preparation)
        return run.finish(fitted, teachers, ensembles, labelling.counts)


def train(
    job: TrainJob,
    *,
    scaling_config: ScalingConfig | None = None,
    run_config: RunConfig | None = None,
) -> RunResult:
    """Train one model on labels alone: how teachers are made. See `distill`."""
    with _Run(job, "train", scaling_config, run_config) as run:
        with run.stage("prepare"):
            preparation = prepare_supervised(job, run.folder.data)
        run.start([], together=True)
        plan = RankPlan(
            tasks=_task_plans(preparation),
            teachers=(),
            student=job.model,
            hosts={},
            distillation=None,
            training=job.training,
            tracking=job.tracking,
            store="",
        )
        return run.finish(run.fit(plan, {}), {}, {}, {})


class _Run:
    """What distilling and training have in common: folder, Ray, bars, tracker, times."""

    def __init__(
        self,
        job: DistillJob | TrainJob,
        what: str,
        scaling_config: ScalingConfig | None,
        run_config: RunConfig | None,
    ):
        self._job = job
        self._scaling = scaling_config or ScalingConfig()
        name = f"{what}-{datetime.now():%Y%m%d-%H%M%S}"
        self._config = run_config or RunConfig(name=name, storage_path=str(Path("runs").absolute()))
        self.folder = RunFolder(str(self._config.storage_path), str(self._config.name))
        self._stack = ExitStack()
        self._tracking: TrackingConfig = job.tracking
        self.times: dict[str, float] = {}
        self._begin = time.perf_counter()

    def __enter__(self) -> "_Run":
        self.folder.create()
        self.bars = self._stack.enter_context(Bars(self._tracking.progress))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

    def start(self, teachers: list[tuple[str, Mapping[str, float]]], *, together: bool) -> None:
        """Bring Ray up and open the tracker; from here on the run leaves traces."""
        with self.stage("start_ray"):
            self._stack.enter_context(ray_session())
        check_resources(teachers, self._scaling, together=together)
        self.folder.write("job.yaml", dump_yaml(self._job))
        self.tracker = self._stack.enter_context(
            Tracker(self.folder.path, self._tracking, self._job.to_plain(), str(self._config.name))
        )

    def fit(self, plan: RankPlan, replicas: Mapping[str, Any]) -> ray.train.Result:
        """Train the student on Ray Train."""
        mailbox = start_mailbox()
        with self.stage("train"), Follower(mailbox, self._on_message):
            return fit(
                plan,
                replicas=replicas,
                mailbox=mailbox,
                scaling_config=self._scaling,
                run_config=self._config,
            )

    def finish(
        self,
        fitted: ray.train.Result,
        teachers: dict[str, dict[str, float]],
        ensembles: dict[str, dict[str, float]],
        labels: dict[str, float],
    ) -> RunResult:
        """Export the student, write the report."""
        metrics: dict[str, float] = fitted.return_value or {}
        assert fitted.checkpoint is not None, "the loop ends with a checkpoint"
        with fitted.checkpoint.as_directory() as folder:
            self.folder.export_student(Path(folder) / STUDENT)
        counted = {k.removeprefix("labels/"): v for k, v in metrics.items() if "labels/" in k}
        self.times["total"] = time.perf_counter() - self._begin
        result = RunResult(
            folder=str(self.folder.path),
            student=str(self.folder.student),
            metrics=metrics,
            teachers=teachers,
            ensembles=ensembles,
            labels=labels | counted,
            times=self.times,
        )
        self.folder.write_json("report.json", asdict(result))
        self.folder.write("report.txt", render_report(asdict(result)))
        self.tracker.summary(
            metrics
            | {f"teacher/{n}/{k}": v for n, each in teachers.items() for k, v in each.items()}
            | {f"ensemble/{n}/{k}": v for n, each in ensembles.items() for k, v in each.items()}
            | {f"labels/{k}": v for k, v in result.labels.items()}
            | {f"time/{k}_s": v for k, v in self.times.items()}
        )
        return result

    def _on_message(self, message: Message) -> None:
        match message["kind"]:
            case "start":
                self.bars.start("training", message["num_steps"], "steps")
                self.bars.move_to("training", message["step"])
            case "progress":
                self.bars.move_to("training", message["step"])
            case "evaluating":
                self.bars.start("evaluating", message["total"], "examples")
                self.bars.move_to("evaluating", message["done"])
            case "values":
                self.tracker.log(message["values"], step=message["step"])
                self._note(message["values"])

    def _note(self, values: Mapping[str, float]) -> None:
        losses = [v for k, v in values.items() if k.startswith("train/") and k.endswith("/loss")]
        scores = [v for k, v in values.items() if k == "eval/score"]
        if losses:
            self.bars.note("training", f"loss {losses[0]:.3f}")
        if scores:
            self.bars.note("evaluating", f"score {scores[0]:.4f}")


class _Labelling:
    """The job's labels: what is missing, who computes it, and how many of each there were."""

    def __init__(self, job: DistillJob, preparation: Preparation, run: _Run):
        self._job, self._preparation, self._run = job, preparation, run
        self._store = LabelStore(job.labels.store)
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
                    Hosting(t.spec, t.signals, t.teacher.replicas, dict(t.teacher.resources))
                    for t in self._preparation.teachers
                ],
                self._job.labels.store,
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
            for teacher in self._preparation.teachers:
                for side in sides:
                    if side in self._preparation.tasks[teacher.task].folders:
                        self._fill(pool, teacher, side)

    def close(self, pool: TeacherPool | None) -> None:
        """Take the figures of the teachers and give their resources back."""
        if pool is None:
            return
        pool.flush()
        for name, figures in pool.figures().items():
            self.counts["forwards"] += figures["examples"]
            self._run.tracker.log({f"teacher/{name}/{k}": v for k, v in figures.items()}, step=0)
        pool.stop()

    def _fill(self, pool: TeacherPool, teacher: PreparedTeacher, side: str) -> None:
        rows, _ = self._missing(teacher, side)
        task = self._preparation.tasks[teacher.task]
        bar = f"labels {teacher.teacher.name} {side}"
        self._run.bars.start(bar, len(rows), "examples")
        pool.fill(
            teacher.teacher.name,
            task.folders[side],
            teacher.view,
            task.split(side).views[teacher.view].keys,
            rows,
            lambda count: self._run.bars.advance(bar, count),
        )

    def _missing(self, teacher: PreparedTeacher, side: str) -> tuple[np.ndarray, int]:
        # The first row of each content whose labels are not all there, and how many contents.
        view = self._preparation.tasks[teacher.task].split(side).views[teacher.view]
        _, first = np.unique(view.keys, axis=0, return_index=True)
        keys = view.keys[np.sort(first)]
        stores = [self._store.signal(teacher.spec.fingerprint, s) for s in teacher.signals]
        known = np.logical_and.reduce([store.contains(keys) for store in stores])
        return np.sort(first)[~known], len(first)


def _distill_plan(job: DistillJob, preparation: Preparation) -> RankPlan:
    return RankPlan(
        tasks=_task_plans(preparation),
        teachers=tuple(
            TeacherPlan(
                name=teacher.teacher.name,
                task=teacher.task,
                weight=teacher.teacher.weight,
                fingerprint=teacher.spec.fingerprint,
                view=teacher.view,
                signals=teacher.signals,
            )
            for teacher in preparation.teachers
        ),
        student=job.student,
        hosts={teacher.name: teacher for teacher in job.teachers},
        distillation=job.distillation,
        training=job.training,
        tracking=job.tracking,
        store=str(LabelStore(job.labels.store).root),
        matches=preparation.matches,
        window=job.labels.window,
        max_windows=job.labels.max_windows,
    )


def _task_plans(preparation: Preparation) -> tuple[TaskPlan, ...]:
    return tuple(
        TaskPlan(
            name=task.task.name,
            kind=task.task.kind,
            label_names=task.label_names,
            train=task.folders["train"],
            eval=task.folders.get("eval"),
            adaptor=task.task.adaptor,
        )
        for task in preparation.tasks
    )
