"""The student on Ray Train, seen from the driver: the `TorchTrainer`, and faults of ranks.

    driver: ResolvedJob ──► TorchTrainer ──► on each worker: `ray_worker.train_rank`
       ▲                        │ a rank fails ──► FaultCallback ──► channel ──► driver: an event,
       │                        │                                    once training continues
       └── again, when its controller dies

Checkpoints are found in the run's folder: Ray Train loses the last report of a rank that is killed.
The controller imports this module, which therefore imports no transformers.
"""

import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchTrainer
from ray.util.placement_group import remove_placement_group

from raybrew.errors import RaybrewError, TrainingError
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.ray_private import root_error

if TYPE_CHECKING:
    from raybrew.teachers.router_actor import PoolAddress
    from raybrew.training.job import ResolvedJob

DEATHS = (RayActorError, OutOfMemoryError)
MAX_CONTROLLER_DEATHS = 3
"""So often in a row, without a new checkpoint, training restarts after its controller died."""


def fit(
    job: "ResolvedJob",
    *,
    teachers: "PoolAddress | None",
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
    # Imported here, since the controller imports this module for `FaultCallback`.
    from raybrew.training.ray_worker import train_rank

    resources: Any = scaling_config.resources_per_worker or {}
    cpus = resources.get("CPU", 1)
    keep = run_config.checkpoint_config.num_to_keep if run_config.checkpoint_config else None
    trainer = TorchTrainer(
        # Not as `train_loop_config`: Ray Train's controller unpickles that, and would import
        # transformers for it before any rank starts.
        partial(
            train_rank,
            job,
            teachers=teachers,
            channel=channel,
            num_threads=job.config.training.num_threads or max(1, int(cpus)),
            checkpoints=Checkpoints(checkpoints, keep or 2),
        ),
        scaling_config=scaling_config,
        run_config=replace(
            run_config, callbacks=[*(run_config.callbacks or []), FaultCallback(channel)]
        ),
    )
    return _fit_again_after_deaths(trainer, channel, Checkpoints(checkpoints))


def _fit_again_after_deaths(
    trainer: TorchTrainer, channel: ActorHandle, checkpoints: Checkpoints
) -> ray.train.Result:
    deaths, before = 0, checkpoints.paths()
    while True:
        try:
            return _fit_once(trainer)
        except DEATHS as death:
            # Its workers die with it. A new controller continues where the old one was.
            now = checkpoints.paths()
            deaths, before = (deaths + 1 if now == before else 1), now
            if deaths > MAX_CONTROLLER_DEATHS:
                raise TrainingError(
                    f"training: Ray Train's controller died {deaths} times in a row without a new "
                    f"checkpoint: {death}. See Ray's logs; then go on with --resume"
                ) from death
            what = str(death).splitlines()[0]
            group: Any = ray.get(channel.placement_group.remote())
            if group is not None:
                # Ray Train's own cleaner finds a dead controller by the dashboard, which may not
                # be there; without it the new ranks would wait for the old ones' resources forever.
                remove_placement_group(group)
            ray.get(channel.put.remote(fault_message("controller died", "Ray Train", what)))


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
    # An error of raybrew is raised as on the rank: its message is all that a user needs.
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), getattr(error, "controller_failure", None)]:
        raised = None if failure is None else root_error(failure)
        if isinstance(raised, RaybrewError):
            return raised
    return error


def fault_message(fault: str, who: str, what: str) -> dict[str, Any]:
    """Return a message of a fault, whose cost is known when training starts again."""
    return {"kind": "fault", "fault": fault, "who": who, "what": what}


class FaultCallback(UserCallback):
    """Reports ranks that fail to the driver; runs in the controller's process.

    An error of raybrew ends the run: a restart would end in the same error.
    """

    def __init__(self, channel: ActorHandle):
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report each rank; see Ray Train's `UserCallback`."""
        raised = {rank: root_error(error) for rank, error in sorted(worker_exceptions.items())}
        for error in raised.values():
            if isinstance(error, RaybrewError):
                # Raised here, it ends the run whatever FailureConfig allows.
                raise error
        # Ranks that died come first: the others failed because of them.
        for rank, error in sorted(raised.items(), key=lambda each: not isinstance(each[1], DEATHS)):
            fault = "rank died" if isinstance(error, DEATHS) else "rank failed"
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._channel.put.remote(fault_message(fault, f"rank {rank}", lines[0]))
