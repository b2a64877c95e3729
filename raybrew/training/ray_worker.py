"""A rank of the student under Ray Train: its teachers, its training, and its reports.

job ──► teachers of this rank ──► its share of the labels, on disk
└────► StudentTraining, in DDP ──► losses, progress, events ──► channel ──► driver
├──► evaluation ──► Ray Train
└──► checkpoint ──► the run's folder
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.train.torch import get_device, prepare_model
from ray.util.placement_group import get_current_placement_group

from raybrew.errors import Event
from raybrew.labels.source import TeacherClient
from raybrew.models.devices import check_device
from raybrew.teachers.client import PoolClient
from raybrew.teachers.local import CombinedClient, LocalClient
from raybrew.teachers.router_actor import PoolAddress
from raybrew.training.build import build_training, check_class_orders
from raybrew.training.callbacks import Hooks
from raybrew.training.checkpoints import Checkpoints, CheckpointWriter
from raybrew.training.job import ResolvedJob
from raybrew.training.loop import StudentTraining
from raybrew.training.module import ddp_options
from raybrew.training.snapshot import Snapshot
from raybrew.training.world import World


def train_rank(
    job: ResolvedJob,
    *,
    teachers: PoolAddress | None,
    channel: ActorHandle,
    num_threads: int,
    checkpoints: Checkpoints,
) -> dict[str, float]:
    """Train on one rank; what Ray Train runs on each worker.

    Args:
        job: what to train.
        teachers: where they are; None if the store has every label.
        channel: where rank 0 reports to.
        num_threads: PyTorch threads of the rank.
        checkpoints: of the run, on a file system that every rank sees.

    Returns:
        The last metrics, and label counts over all ranks.
    """
    torch.set_num_threads(num_threads)
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    check_device(world.device, "a student worker", "scaling.use_gpu to false")
    pool = None if teachers is None else PoolClient(teachers)
    local = host_teachers(job, num_threads, world, partial(_put_event, channel))
    client = client_of(job, local, pool)
    training = build_training(job, world, client)
    if local is not None:
        precompute_shares(job, local, world)
    check_class_orders(job, world, client)
    ddp = ddp_options(training.module, training.samples()) if world.size > 1 else {}
    training.wrapped = prepare_model(training.module, parallel_strategy_kwargs=ddp)
    _resume(training, checkpoints, world, channel)
    with flush_at_end(local), CheckpointWriter(checkpoints) as writer:
        metrics = training.run(_RayHooks(channel, world, writer))
    if training.labels is not None:
        mine = {f"labels/{name}": count for name, count in training.labels.counts.items()}
        mine["labels/forwards_in_workers"] = local.forwards() if local else 0
        local_counts = torch.tensor(list(mine.values()), dtype=torch.float64, device=world.device)
        metrics |= dict(zip(mine, world.all_reduce(local_counts).tolist(), strict=True))
    return metrics


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
        on_event: called with events of a teacher.
    """
    mine = [(t, t.signals) for t in job.teachers if t.in_worker]
    return LocalClient(mine, job.store, num_threads, world.device, on_event) if mine else None


def client_of(
    job: ResolvedJob, local: LocalClient | None, pool: TeacherClient | None
) -> TeacherClient | None:
    """Return what computes the labels of all teachers; None if the store has everything."""
    if local is None:
        return pool
    clients = {t.name: local if t.in_worker else pool for t in job.teachers}
    return CombinedClient({name: each for name, each in clients.items() if each is not None})


def precompute_shares(job: ResolvedJob, local: LocalClient, world: World) -> None:
    """Compute this rank's share of the labels that no step requests, or that must be there first.

    No step requests those of evaluation rows. Ranks don't ask each other, so with several of them
    all labels are computed before the first step, each rank its share. Every rank calls it, and
    all shares are on disk when it returns.
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
    # A barrier: all shares are on disk.
    world.all_reduce(torch.zeros(1, device=world.device))


@contextmanager
def flush_at_end(local: LocalClient | None) -> Iterator[None]:
    """Write what the rank's teachers computed when training ends, however it ends."""
    try:
        yield
    finally:
        if local is not None:
            local.flush()


def _resume(
    training: StudentTraining, checkpoints: Checkpoints, world: World, channel: ActorHandle
) -> None:
    # Rank 0 chooses: all ranks continue from the same one, whatever they see.
    newest: Path | None = None
    if world.rank == 0:
        checkpoints.clean()
        newest = checkpoints.newest(
            lambda what: _put_event(channel, Event("checkpoint damaged", "the student", what))
        )
    newest = world.all_gather(newest)[0]
    if newest is not None:
        training.resume(newest)


def _put_event(channel: ActorHandle, event: Event) -> None:
    ray.get(channel.put.remote(event.message()))


class _RayHooks(Hooks):
    """Reports to the driver through the channel, and to Ray Train; see `Hooks`."""

    def __init__(self, channel: ActorHandle, world: World, writer: CheckpointWriter):
        self._channel, self._world, self._writer = channel, world, writer
        self._last_progress_s = 0.0
        self._saved_for: Any = None

    def begin(self, step: int, num_steps: int) -> None:
        start = {"kind": "start", "step": step, "num_steps": num_steps}
        group = get_current_placement_group()
        self._put({**start, "workers": self._world.size, "placement_group": group})

    def losses(self, step: int, values: dict[str, float]) -> None:
        self._put({"kind": "values", "step": step, "values": values})

    def progress(self, step: int) -> None:
        # Ten times a second is enough for a progress bar.
        if time.monotonic() - self._last_progress_s >= 0.1:
            self._last_progress_s = time.monotonic()
            self._put({"kind": "progress", "step": step})

    def evaluating(self, done: int, total: int) -> None:
        self._put({"kind": "evaluating", "done": done, "total": total})

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        # A barrier: every rank calls it.
        ray.train.report({"step": step, **values})
        if self._world.rank == 0:
            # Waited for, so that nothing is lost of a run that ends here.
            ray.get(self._put({"kind": "progress", "step": step}))
            ray.get(self._put({"kind": "values", "step": step, "values": values}))

    def checkpoint(self, snapshot: Snapshot) -> None:
        self._writer.submit(snapshot.step, snapshot.write)

    def save_requested(self) -> bool:
        # A barrier too. A node will be taken away: what isn't saved by then is lost.
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
        self._put(event.message())

    def _put(self, message: dict[str, Any]) -> ray.ObjectRef:
        return self._channel.put.remote(message)
