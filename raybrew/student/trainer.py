"""The student on Ray Train: what each worker builds and runs, and the `TorchTrainer` around it.

driver: RankPlan ──► TorchTrainer ──► on each worker: load, build, DDP, StudentTraining.run
                                                         │ losses, progress  ──► mailbox
                                                         └ evaluation, checkpoint ──► Ray Train
"""

import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.train import Checkpoint, CheckpointConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer, get_device, prepare_model

from raybrew.errors import RaybrewError
from raybrew.mailbox import Message
from raybrew.student.building import RankPlan, build_training
from raybrew.student.hosting import asker_of, fill_shares, host_teachers
from raybrew.student.loop import Saver
from raybrew.student.world import World
from raybrew.teachers.client import PoolAddress, PoolClient

__all__ = ["fit"]


def fit(
    plan: RankPlan,
    *,
    teachers: PoolAddress | None,
    mailbox: ActorHandle,
    scaling_config: ScalingConfig,
    run_config: RunConfig,
) -> ray.train.Result:
    """Train the student.

    Args:
        plan: what to do.
        teachers: where they are; None if the store has every label.
        mailbox: where rank 0 reports to.
        scaling_config: Ray Train's own.
        run_config: Ray Train's own; where it keeps no checkpoints' number, the best and the last
            are kept.

    Returns:
        Ray Train's result; its checkpoint is the last one.
    """
    resources: Any = scaling_config.resources_per_worker or {}
    cpus = resources.get("CPU", 1)
    trainer = TorchTrainer(
        _train_rank,
        train_loop_config={
            "plan": plan,
            "teachers": teachers,
            "mailbox": mailbox,
            "num_threads": plan.training.num_threads or max(1, int(cpus)),
        },
        scaling_config=scaling_config,
        run_config=_keep_best_and_last(run_config),
    )
    return _fit(trainer)


def _fit(trainer: TorchTrainer) -> ray.train.Result:
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
    for failure in failures.values():
        raised = getattr(failure, "_base_exc", failure)
        if isinstance(raised, RaybrewError):
            return raised
    return error


def _train_rank(config: dict[str, Any]) -> dict[str, float]:
    plan: RankPlan = config["plan"]
    torch.set_num_threads(config["num_threads"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), get_device())
    pool = None if config["teachers"] is None else PoolClient(config["teachers"])
    local = host_teachers(plan, config["num_threads"])
    training = build_training(plan, world, asker_of(plan, local, pool))
    if local is not None:
        fill_shares(plan, training.tasks, local, world)
    training.wrapped = prepare_model(training.module)
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            training.resume(Path(folder))
    values = training.run(_RayHooks(config["mailbox"], world))
    if training.labels is not None:
        figures = training.labels.figures
        counted = torch.tensor([figures.hits, figures.misses], dtype=torch.float64)
        hits, misses = world.total(counted).tolist()
        values |= {"labels/hits": hits, "labels/misses": misses}
    return values


class _RayHooks:
    def __init__(self, mailbox: ActorHandle, world: World):
        self._mailbox, self._world = mailbox, world
        self._told = 0.0

    def begin(self, step: int, num_steps: int) -> None:
        self._put({"kind": "start", "step": step, "num_steps": num_steps})

    def losses(self, step: int, values: dict[str, float]) -> None:
        self._put({"kind": "values", "step": step, "values": values})

    def progress(self, step: int) -> None:
        # A bar that moves ten times a second is lively enough.
        if time.monotonic() - self._told >= 0.1:
            self._told = time.monotonic()
            self._put({"kind": "progress", "step": step})

    def evaluating(self, done: int, total: int) -> None:
        self._put({"kind": "evaluating", "done": done, "total": total})

    def evaluated(self, step: int, values: dict[str, float], save: Saver) -> None:
        # `report` is a barrier: every rank calls it, rank 0 alone brings files.
        reported = {"step": step, **values}
        if self._world.rank > 0:
            ray.train.report(reported)
            return
        with tempfile.TemporaryDirectory(prefix="raybrew-") as folder:
            save(Path(folder))
            ray.train.report(reported, checkpoint=Checkpoint.from_directory(folder))
        # Waited for, so that nothing of a run that ends here is lost.
        ray.get(self._put({"kind": "progress", "step": step}))
        ray.get(self._put({"kind": "values", "step": step, "values": values}))

    def _put(self, message: Message) -> ray.ObjectRef:
        return self._mailbox.put.remote(message)


def _keep_best_and_last(run_config: RunConfig) -> RunConfig:
    if run_config.checkpoint_config and run_config.checkpoint_config.num_to_keep is None:
        run_config.checkpoint_config = CheckpointConfig(num_to_keep=2)
    return run_config
