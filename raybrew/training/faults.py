"""Sees from Ray Train's controller when ranks fail.

controller ──after_exception──► FaultCallback ──► channel ──► driver: an event, once training
                                    │                       goes on
                                    └ an error of our own: no use in trying again
"""

from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import UserCallback

from raybrew.errors import RaybrewError
from raybrew.training.ray_private import root_error

DEATHS = (RayActorError, OutOfMemoryError)


def fault_message(fault: str, who: str, what: str) -> dict[str, Any]:
    """Return a message of a fault, whose cost is known when training starts again."""
    return {"kind": "fault", "fault": fault, "who": who, "what": what}


class FaultCallback(UserCallback):
    """Tells the driver of ranks that fail; runs in the controller's process."""

    def __init__(self, channel: ActorHandle):
        self._channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell of each rank; see Ray Train's `UserCallback`."""
        raised = {rank: root_error(error) for rank, error in sorted(worker_exceptions.items())}
        for error in raised.values():
            if isinstance(error, RaybrewError):
                # It would come again: raised here, it ends the run whatever FailureConfig allows.
                raise error
        # Who died comes first: the others failed because of it.
        for rank, error in sorted(raised.items(), key=lambda each: not isinstance(each[1], DEATHS)):
            fault = "rank died" if isinstance(error, DEATHS) else "rank failed"
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._channel.put.remote(fault_message(fault, f"rank {rank}", lines[0]))
