"""The student under Ray Train: workers, their teachers, checkpoints and failures."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)

from raybrew.errors import Event, RaybrewError, TrainingError
from raybrew.labels.source import TeacherClient
from raybrew.models.devices import check_device
from raybrew.teachers.client import PoolAddress, PoolClient
from raybrew.teachers.local import CombinedClient, LocalClient
from raybrew.training.batches import StudentTask
from raybrew.training.build import RankPlan, build_training, check_class_orders
from raybrew.training.checkpoints import Checkpoints, CheckpointWriter
from raybrew.training.faults import FaultCallback, fault_message
from raybrew.training.job import ResolvedJob
from raybrew.training.loop import StudentTraining
from raybrew.training.module import ddp_options
from raybrew.training.snapshot import Snapshot
from raybrew.training.world import World

# The teachers that a rank hosts itself (`placement: worker`), beside those of the pool. No Ray.
#
# job ──► LocalClient ──► before the first step: this rank's share of the labels, on disk
# └──► Askers (with the pool's) ──► LabelSource


def host_teachers(
    job: ResolvedJob,
    num_threads: int,
    world: World,
    on_event: Callable[[Event], None] = lambda event: None,
) -> LocalClient | None:
    """Return the teachers that this rank hosts; they are loaded at their first label.

    Args:
        job: what the rank trains.
        num_threads: PyTorch threads of the rank.
        world: the rank.
        on_event: called with what befalls a teacher.
    """
    mine = [(t, t.signals) for t in job.teachers if t.in_worker]
    return LocalClient(mine, job.store, num_threads, world.device, on_event) if mine else None


def client_of(
    job: ResolvedJob, local: LocalClient | None, pool: TeacherClient | None
) -> TeacherClient | None:
    """Return who computes the labels of all teachers; None if the store has everything."""
    if local is None:
        return pool
    askers = {t.name: local if t.in_worker else pool for t in job.teachers}
    return CombinedClient({name: asker for name, asker in askers.items() if asker is not None})


def precompute_shares(job: ResolvedJob, local: LocalClient, world: World) -> None:
    """Compute what can't wait until it is asked for; every rank calls it, and all are done then.

    Evaluation rows are never asked for by a step. Ranks don't ask each other, so with several of
    them all labels are computed before the first step, each rank its share.
    """
    at_once = job.labels.when == "ahead" or world.size > 1
    for teacher in job.teachers:
        if not teacher.in_worker:
            continue
        task = job.task_of(teacher)
        needed = [task.train] if at_once else []
        if not at_once:
            local.expect(teacher.name, task.train.views[teacher.view])
        for split in [*needed, task.eval]:
            if split is not None:
                local.fill_share(teacher.name, split.views[teacher.view], world.rank, world.size)
    local.unload()
    # Nobody goes on before all shares are on disk.
    world.all_reduce(torch.zeros(1, device=world.device))


@contextlib.contextmanager
def kept(local: LocalClient | None) -> Iterator[None]:
    """Write what the rank's teachers computed when training ends, however it ends."""
    try:
        yield
    finally:
        if local is not None:
            local.flush()


# The student on Ray Train: what each worker builds and runs, and the `TorchTrainer` around it.
#
# driver: ResolvedJob ──► TorchTrainer ──► on each worker: load, build, DDP, StudentTraining.run
#    ▲                                                     │ losses, progress  ──► channel
#    └ again, when its controller dies                     ├ evaluation ──► Ray Train
#                                                          └ checkpoint ──► run folder
#
# Checkpoints are found by looking into the run's folder: Ray Train loses the last report of a rank
# that is killed.

MAX_CONTROLLER_DEATHS = 3
"""So often in a row, without a new checkpoint, training starts again after its controller died."""


def fit(
    job: ResolvedJob,
    *,
    teachers: PoolAddress | None,
    channel: ActorHandle,
    scaling_config: ScalingConfig,
    run_config: RunConfig,
    checkpoints: Path,
) -> ray.train.Result:
    """Train the student, from the newest checkpoint if there is one.

    Args:
        job: what to train.
        teachers: where they are; None if the store has every label.
        channel: where rank 0 reports to.
        scaling_config: Ray Train's own.
        run_config: Ray Train's own.
        checkpoints: folder that every node sees; they are written there.

    Returns:
        Ray Train's result.
    """
    resources: Any = scaling_config.resources_per_worker or {}
    cpus = resources.get("CPU", 1)
    keep = run_config.checkpoint_config.num_to_keep if run_config.checkpoint_config else None
    config = {
        "job": job,
        "teachers": teachers,
        "channel": channel,
        "num_threads": job.config.training.num_threads or max(1, int(cpus)),
        "checkpoints": Checkpoints(checkpoints, keep or 2),
    }
    trainer = TorchTrainer(
        # Not as `train_loop_config`: Ray Train's controller unpickles that, and would import
        # transformers for it before any rank starts.
        partial(_train_rank, config),
        scaling_config=scaling_config,
        run_config=replace(
            run_config, callbacks=[*(run_config.callbacks or []), FaultCallback(channel)]
        ),
    )
    return _fit(trainer, channel, Checkpoints(checkpoints))


def _fit(trainer: TorchTrainer, channel: ActorHandle, checkpoints: Checkpoints) -> ray.train.Result:
    deaths, before = 0, checkpoints.paths()
    while True:
        try:
            return _fit_once(trainer)
        except (RayActorError, OutOfMemoryError) as death:
            # Its workers die with it. A new controller goes on where the old one was.
            now = checkpoints.paths()
            deaths, before = (deaths + 1 if now == before else 1), now
            if deaths > MAX_CONTROLLER_DEATHS:
                raise TrainingError(
                    f"training: Ray Train's controller died {deaths} times in a row without a new "
                    f"checkpoint: {death}. See Ray's logs; then go on with --resume"
                ) from death
            what = str(death).splitlines()[0]
            group: Any = ray.get(channel.placement_group.remote())
            _give_back(group)
            ray.get(channel.put.remote(fault_message("controller died", "Ray Train", what)))


def _give_back(group: PlacementGroup | None) -> None:
    # Ray Train's own cleaner finds a dead controller by the dashboard, which may not be there;
    # without it the new ranks would wait for the old ones' resources for ever.
    if group is not None:
        remove_placement_group(group)


def _fit_once(trainer: TorchTrainer) -> ray.train.Result:
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return trainer.fit()
    except SystemExit as stop:
        # Ray Train aborts its controller on Ctrl-C and then leaves; here it stays an interrupt.
        raise KeyboardInterrupt from stop
    except TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)


def _cause(error: TrainingFailedError) -> Exception:
    # Ours, as it was raised on the rank: its message is all that a user needs.
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), getattr(error, "controller_failure", None)]:
        raised = None if failure is None else root_error(failure)
        if isinstance(raised, RaybrewError):
            return raised
    return error


def _train_rank(config: dict[str, Any]) -> dict[str, float]:
    job: ResolvedJob = config["job"]
    torch.set_num_threads(config["num_threads"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    check_device(world.device, "a student worker", "scaling.use_gpu to false")
    channel: ActorHandle = config["channel"]
    pool = None if config["teachers"] is None else PoolClient(config["teachers"])
    local = host_teachers(job, config["num_threads"], world, partial(_put_event, channel))
    asker = client_of(job, local, pool)
    training = build_training(job, world, asker)
    if local is not None:
        precompute_shares(plan, training.tasks, local, world)
    check_class_orders(plan, training.tasks, world, asker)
    ddp = ddp_options(training.module, training.samples()) if world.size > 1 else {}
    training.wrapped = prepare_model(training.module, parallel_strategy_kwargs=ddp)
    _resume(training, config["checkpoints"], world, channel)
    with kept(local), CheckpointWriter(config["checkpoints"]) as writer:
        values = training.run(_RayHooks(channel, world, writer))
    if training.labels is not None:
        figures = training.labels.counts
        here = [figures.hits, figures.misses, figures.dropped, local.forwards() if local else 0]
        names = ("hits", "misses", "dropped", "forwards_in_workers")
        counts = torch.tensor(here, dtype=torch.float64, device=world.device)
        total = world.all_reduce(counts).tolist()
        values |= {f"labels/{name}": count for name, count in zip(names, total, strict=True)}
    return values


def _resume(
    training: StudentTraining, checkpoints: Checkpoints, world: World, channel: ActorHandle
) -> None:
    # Rank 0 chooses: all ranks go on from the same one, whatever they see.
    newest: Path | None = None
    if world.rank == 0:
        checkpoints.clean()
        newest = checkpoints.newest(
            lambda said: _put_event(channel, Event("checkpoint damaged", "the student", said))
        )
    newest = world.all_gather(newest)[0]
    if newest is not None:
        training.resume(newest)


def _put_event(channel: ActorHandle, event: Event) -> None:
    ray.get(channel.put.remote(event.message()))


class _RayHooks:
    def __init__(self, channel: ActorHandle, world: World, writer: CheckpointWriter):
        self._channel, self._world, self._writer = channel, world, writer
        self._told = 0.0
        self._saved_for: Any = None

    def begin(self, step: int, num_steps: int) -> None:
        group = get_current_placement_group()
        self._put(
            {
                "kind": "start",
                "step": step,
                "num_steps": num_steps,
                "workers": self._world.size,
                "placement_group": group,
            }
        )

    def losses(self, step: int, values: dict[str, float]) -> None:
        self._put({"kind": "values", "step": step, "values": values})

    def progress(self, step: int) -> None:
        # A bar that moves ten times a second is lively enough.
        if time.monotonic() - self._told >= 0.1:
            self._told = time.monotonic()
            self._put({"kind": "progress", "step": step})

    def evaluating(self, done: int, total: int) -> None:
        self._put({"kind": "evaluating", "done": done, "total": total})

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        # `report` is a barrier: every rank calls it.
        ray.train.report({"step": step, **values})
        if self._world.rank == 0:
            # Waited for, so that nothing of a run that ends here is lost.
            ray.get(self._put({"kind": "progress", "step": step}))
            ray.get(self._put({"kind": "values", "step": step, "values": values}))

    def checkpoint(self, snapshot: Snapshot) -> None:
        self._writer.submit(snapshot.step, snapshot.write)

    def save_requested(self) -> bool:
        # A barrier too. A node is about to be taken away: what was not saved by then is lost.
        info = ray.train.get_preemption_info()
        if info is None or info == self._saved_for:
            return False
        self._saved_for = info
        if self._world.rank == 0:
            nodes, ranks = len(info.preempted_node_ids), info.preempted_ranks
            what = f"{nodes} nodes, with ranks {ranks}, are being taken away; saved at once"
            self.recovered(Event("preemption", "the student", what))
        return True

    def recovered(self, event: Event) -> None:
        self._put(event_message(event))

    def _put(self, message: dict[str, Any]) -> ray.ObjectRef:
        return self._channel.put.remote(message)
