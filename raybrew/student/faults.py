"""Sees from Ray Train's controller when ranks fail.

controller ──after_exception──► FaultWatch ──► mailbox ──► driver: an event, once training
                                    │                       goes on
                                    └ an error of our own: no use in trying again
"""

from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.train import UserCallback

from raybrew.errors import RaybrewError
from raybrew.mailbox import Message

__all__ = ["FaultWatch", "fault_message"]


def fault_message(fault: str, who: str, what: str) -> Message:
    """Return a message of a fault, whose cost is known when training starts again."""
    return {"kind": "fault", "fault": fault, "who": who, "what": what}


class FaultWatch(UserCallback):
    """Tells the driver of ranks that fail; runs in the controller's process."""

    def __init__(self, mailbox: ActorHandle):
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell of each rank; see Ray Train's `UserCallback`."""
        for rank, error in sorted(worker_exceptions.items()):
            raised = getattr(error, "_base_exc", error)
            if isinstance(raised, RaybrewError):
                # It would come again: raised here, it ends the run whatever FailureConfig allows.
                raise raised
            died = isinstance(raised, RayActorError)
            lines = str(raised).strip().splitlines() or [type(raised).__name__]
            self._mailbox.put.remote(
                fault_message("rank died" if died else "rank failed", f"rank {rank}", lines[0])
            )
