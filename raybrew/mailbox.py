"""How a student's rank 0 tells the driver what happens: an actor that holds messages for a moment.

    rank 0 ──put──► Mailbox (actor) ◄──take── Follower (thread on the driver) ──► tracker, bars

The tracker lives on the driver, with its files and its credentials; workers never see them.
Only scalars and steps travel this way.
"""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybrew.errors import RaybrewError

__all__ = ["Follower", "Message", "start_mailbox"]

logger = logging.getLogger(__name__)

Message = dict[str, Any]
POLL_S = 0.3


class _Mailbox:
    def __init__(self):
        self._messages: list[Message] = []
        self._group: str | None = None

    def put(self, message: Message) -> None:
        self._group = message.get("placement_group", self._group)
        self._messages.append(message)

    def placement_group(self) -> str | None:
        """Return the placement group, in hexadecimal, of the ranks that began last."""
        return self._group

    def take(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken


def start_mailbox() -> ActorHandle:
    """Start a mailbox beside the driver, so that it dies with no other node; it costs no CPU."""
    actor: Any = ray.remote(_Mailbox)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    ).remote()


class Follower:
    """Hands each message to `on_message`, on a thread of the driver; a context manager.

    Args:
        mailbox: where they come from; ended when the context ends.
        on_message: called with one message after another.
    """

    def __init__(self, mailbox: ActorHandle, on_message: Callable[[Message], None]):
        self._mailbox, self._on_message = mailbox, on_message
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raybrew-follower", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(timeout=10)
        ray.kill(self._mailbox)

    def _follow(self) -> None:
        last = False
        while not last:
            # One more round after the end: what was put before it must be seen.
            last = self._over.wait(POLL_S)
            try:
                messages: list[Message] = ray.get(self._mailbox.take.remote())
            except RayError as error:
                # It starts again; what it held is lost: bars and figures of a moment.
                logger.warning("the run's messages were lost: %s", error)
                continue
            for message in messages:
                self._hand_over(message)

    def _hand_over(self, message: Message) -> None:
        try:
            self._on_message(message)
        except (OSError, RaybrewError, RayError):
            # A disk that is full, say: the run goes on, and what comes later may be written.
            logger.exception("a message of the run could not be noted: %s", message.get("kind"))
