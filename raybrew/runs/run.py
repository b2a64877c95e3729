"""A run: its folder, Ray, progress bars, tracker and times, from the start to the report."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from ray.train import FailureConfig, Result, RunConfig, ScalingConfig

from raybrew.config import DistillJob, TrackingConfig, TrainJob
from raybrew.config.job_file import absolute_plain, dump_yaml
from raybrew.errors import ConfigError, DataError, Event
from raybrew.evaluation.stored_teachers import Metrics
from raybrew.runs.advice import data_warnings, result_warnings
from raybrew.runs.cluster import (
    check_devices,
    check_ray_address,
    check_resources,
    default_teacher_resources,
    ray_session,
    run_folder,
    sigterm_as_interrupt,
)
from raybrew.runs.defaults import chosen_values, describe_chosen
from raybrew.runs.events import EventLog, EventSubscriber, Message, Recovery, start_event_channel
from raybrew.runs.ray_config import MAX_FAILURES, NOTHING_TO_RESUME
from raybrew.runs.report import LabelResult, RunResult, read_baseline
from raybrew.runs.resolve import resolve_job
from raybrew.runs.student_folder import complete_student
from raybrew.runs.tracking import Tracker
from raybrew.teachers.router_actor import PoolAddress
from raybrew.training.checkpoints import Checkpoints, read_evaluation
from raybrew.training.job import ResolvedJob
from raybrew.training.progress import Bars
from raybrew.training.ray_private import spilled_objects
from raybrew.training.ray_train import fit
from raybrew.training.snapshot import STUDENT

logger = logging.getLogger(__name__)

_SHOWN = 6
"""Metrics of an evaluation that its line has."""
STATS_S = 10.0
"""How long a node may take to report what its object store did."""


class Run:
    """A run of a job, as a context manager: its folder, Ray, progress bars, tracker and times.

    Args:
        job: what to do.
        what: `distill`, `label`, `train` or `tune`, for the name of the run.
        scaling_config: the student's workers, Ray Train's own.
        run_config: name and folder of the run, Ray Train's own.
        resume: whether to resume the run in that folder.

    Attributes:
        events: faults that the run recovered from.
        times: seconds of each stage.
        step: optimizer steps done so far.
    """

    def __init__(
        self,
        job: DistillJob | TrainJob,
        what: str,
        scaling_config: ScalingConfig | None,
        run_config: RunConfig | None,
        resume: bool = False,
    ):
        self._job = job
        # Now: the working directory of a submitted job may not exist once Ray has started.
        self._plain_job = absolute_plain(job)
        self._scaling = scaling_config or ScalingConfig()
        if resume and run_config is None:
            raise ConfigError(NOTHING_TO_RESUME)
        name = f"{what}-{datetime.now():%Y%m%d-%H%M%S}"
        config = run_config or RunConfig(
            name=name,
            storage_path="runs",
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        )
        self.folder = run_folder(config, resume=resume)
        # Ray takes a path as it is, and has working directories of its own.
        self.ray_config = replace(config, storage_path=str(self.folder.path.parent))
        self.checkpoints = Checkpoints(self.folder.checkpoints)
        self.events = EventLog(self.folder.path)
        self._recovery = Recovery()
        self._resume = resume
        self._on_report: Callable[[], None] | None = None
        self._stack = ExitStack()
        self._tracking: TrackingConfig = job.tracking
        self.times: dict[str, float] = {}
        self._warnings: list[str] = []
        self._baseline: Mapping[str, Mapping[str, float]] = {}
        self.step = 0
        self._begin = time.perf_counter()

    def __enter__(self) -> "Run":
        check_ray_address()  # before the minutes that reading data may take
        self.folder.create(self._job, resume=self._resume)
        self._job = self.folder.with_chosen(self._job)
        self.bars = self._stack.enter_context(Bars(self._tracking.progress))
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stack.__exit__(*error)
        finally:
            self.checkpoints.clean()
            self.folder.remove_unused(refused=isinstance(error[1], (ConfigError, DataError)))

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.perf_counter() - self._begin

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

    def result(self) -> RunResult | None:
        """Return the results of the run that is to be resumed, if it is finished."""
        found = self.folder.result() if self._resume else None
        if found is not None:
            self.bars.say(f"{self.folder.path} holds a finished run: nothing is left to do")
        return found

    def resolve(self) -> ResolvedJob:
        """Resolve the job, start Ray, and give teachers the resources that the cluster has."""
        self._baseline = read_baseline(self._tracking, self._job)
        self.bars.say("reading data and models, encoding the examples")
        with self.stage("prepare"):
            job = resolve_job(self._job, self.folder.data)
        for line in describe_chosen(self._job, job.config):
            self.bars.say(f"chosen: {line}")
        self._plain_job |= chosen_values(job.config, self._plain_job)
        self._warnings = data_warnings(job)
        for line in self._warnings:
            logger.warning("%s", line)
        self.start_ray()
        return job.placed(default_teacher_resources())

    def start_ray(self) -> None:
        """Connect to Ray, or start it."""
        self.bars.say("starting Ray, or connecting to it")
        with self.stage("start_ray"):
            self._stack.enter_context(ray_session())
        # After Ray, which has a handler of its own that ends the process at once.
        self._stack.enter_context(sigterm_as_interrupt())

    def start(self, teachers: list[tuple[str, Mapping[str, float]]], *, together: bool) -> None:
        """Check resources, write the job and open the tracker.

        Args:
            teachers: name and resources of each replica that is about to start.
            together: whether they and the student's workers run at the same time.
        """
        check_resources(teachers, self._scaling, together=together)
        check_devices(teachers, self._scaling)
        self.folder.write("job.yaml", dump_yaml(self._plain_job))
        self.tracker = self._stack.enter_context(
            Tracker(
                self.folder.path,
                self._tracking,
                self._job.to_plain(),
                str(self.ray_config.name),
                on_lost=lambda what: self.record(Event("W&B lost", "tracking", what)),
            )
        )
        self._spilled = spilled_objects(STATS_S)
        self.bars.say(f"the run's folder is {self.folder.path}")

    def fit(
        self,
        job: ResolvedJob,
        teachers: PoolAddress | None = None,
        on_report: Callable[[], None] | None = None,
    ) -> Result:
        """Train the student on Ray Train.

        Args:
            job: what each rank trains.
            teachers: the pool that the ranks ask; None if the store has every label.
            on_report: called on the driver after each report of the student.
        """
        self._on_report = on_report
        self.bars.say(f"starting the student's workers ({self._scaling.num_workers})")
        channel = start_event_channel()
        with self.stage("train"), EventSubscriber(channel, self._on_message):
            return fit(
                job,
                teachers=teachers,
                channel=channel,
                scaling_config=self._scaling,
                run_config=self.ray_config,
                checkpoints=self.folder.checkpoints,
            )

    def finish(
        self,
        fitted: Result,
        job: ResolvedJob,
        labels: Mapping[str, float] | None = None,
        evaluated: tuple[Metrics, Metrics] = ({}, {}),
    ) -> RunResult:
        """Export the student, write the report.

        Args:
            fitted: what Ray Train returns.
            job: what was trained.
            labels: counts of labels.
            evaluated: metrics of the teachers, and of each task's mixture of them.
        """
        training = job.config.training
        kept = self.checkpoints.kept(training.keep)
        assert kept is not None, "the loop ends with a checkpoint"
        # Of the student that is kept, whatever the last step's was.
        metrics: dict[str, float] = {**(fitted.return_value or {}), **read_evaluation(kept)}
        best = self.checkpoints.best() if training.keep_checkpoints else None
        self.folder.export_student(kept / STUDENT)
        counted = {k.removeprefix("labels/"): v for k, v in metrics.items() if "labels/" in k}
        self._record_spilling()
        self.times["total"] = self.seconds
        teachers, ensembles = evaluated
        result = RunResult(
            folder=str(self.folder.path),
            student=str(self.folder.student),
            metrics=metrics,
            teachers=teachers,
            ensembles=ensembles,
            labels={**(labels or {}), **counted},
            data=job.data_counts(),
            times=self.times,
            recovered=self.events.all(),
            best=None if best is None else str(best),
        )
        complete_student(self.folder.student, self._job, result)
        self.write_report(result, job)
        self.tracker.summary(
            metrics
            | {f"teacher/{n}/{k}": v for n, each in teachers.items() for k, v in each.items()}
            | {f"ensemble/{n}/{k}": v for n, each in ensembles.items() for k, v in each.items()}
            | {f"labels/{k}": v for k, v in result.labels.items()}
            | {f"time/{k}_s": v for k, v in self.times.items()}
        )
        if not training.keep_checkpoints:
            self.checkpoints.remove()
        return result

    def write_report(self, result: RunResult | LabelResult, job: ResolvedJob) -> None:
        """Write the results as JSON, as text and as a page; the page last, which may fail alone.

        Args:
            result: of the run; gets its warnings, and the time of the page.
            job: what was run, without teachers that were dropped.
        """
        # Takes a second to import, and is needed only here.
        from raybrew.runs.page import Pages, read_curves, write_page

        curves = read_curves(self.folder.path / "metrics.jsonl")
        result.warnings.extend([*self._warnings, *result_warnings(result, job, curves)])
        self._write_tables(result)
        with self.stage("report"):
            write_page(self.folder, Pages(result, job, self._job, self._baseline))
        for line in result.warnings[len(self._warnings) :]:  # those of the start stand above
            logger.warning("%s", line)
        self.times.pop("total", None)  # it stands last
        self.times["total"] = self.seconds
        self._write_tables(result)

    def _write_tables(self, result: RunResult | LabelResult) -> None:
        self.folder.write_json("report.json", asdict(result))
        self.folder.write("report.txt", str(result))

    def record(self, event: Event) -> None:
        """Record a fault that the run recovered from, or another event."""
        self.events.add(event)

    def record_fault(self, fault: str, who: str, what: str) -> None:
        """Take note of a fault that training restarts after; it is recorded when that happens."""
        self._recovery.fault({"fault": fault, "who": who, "what": what})

    def _record_spilling(self) -> None:
        spilled = spilled_objects(STATS_S)
        if spilled is not None and self._spilled is not None and spilled > self._spilled:
            count = spilled - self._spilled
            what = f"{count} objects went to disk and came back as they were needed"
            self.record(Event("object store spilled", "Ray", what))

    def _on_message(self, message: Message) -> None:
        now = time.monotonic()
        match message["kind"]:
            case "event":
                self.record(Event(**message["event"]))
            case "fault":
                self._recovery.fault(message)
            case "start":
                for event in self._recovery.began(message["step"], message["workers"], now):
                    self.record(event)
                self.bars.start("training", message["num_steps"], "steps")
                self.bars.move_to("training", message["step"])
            case "progress":
                self._recovery.progress(message["step"], now)
                self.bars.move_to("training", message["step"])
            case "evaluating":
                self.bars.start("evaluating", message["total"], "examples")
                self.bars.move_to("evaluating", message["done"])
            case "values":
                self.step = message["step"]
                self.tracker.log(message["values"], step=message["step"])
                self._show(message["values"])
                if self._on_report is not None:
                    self._on_report()

    def _show(self, values: Mapping[str, float]) -> None:
        losses = [v for k, v in values.items() if k.startswith("train/") and k.endswith("/loss")]
        scores = [v for k, v in values.items() if k == "eval/score"]
        if losses:
            self.bars.note("training", f"loss {losses[0]:.3f}")
        if evaluated := [f"{k[5:]} {v:.4f}" for k, v in values.items() if k.startswith("eval/")]:
            self.bars.say(f"evaluated after step {self.step}: {', '.join(evaluated[:_SHOWN])}")
        if scores:
            self.bars.note("evaluating", f"score {scores[0]:.4f}")
