"""Faults that a run recovered from: their log, what they cost, and how they reach the driver.

    rank 0, an actor ──put──► EventChannel (actor) ◄──take── EventSubscriber (thread on the driver)
                                                                   └──► events.jsonl, tracker, bars

    events.jsonl   {"time": …, "fault": "rank died", "who": "rank 1", "what": "…",
                    "lost_s": 6.1, "lost_steps": 3}

One JSON object a line, written as it happens, so that it is there whatever comes next. Events, and
the losses and steps of a run, are messages to the driver, which has the tracker with its files and
credentials; workers never see them.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybrew.data.files import to_json
from raybrew.errors import Event, RaybrewError

logger = logging.getLogger(__name__)

EVENTS = "events.jsonl"
POLL_S = 0.3

Message = dict[str, Any]


class EventLog:
    """Appends events to the run's `events.jsonl`, and warns of each fault."""

    def __init__(self, folder: Path):
        self._path = folder / EVENTS

    def add(self, event: Event) -> None:
        """Record an event."""
        if event.is_fault:
            logger.warning("recovered: %s (%s): %s", event.fault, event.who, event.what)
        else:
            logger.info("%s (%s): %s", event.fault, event.who, event.what)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_json({"time": time.time(), **asdict(event)}) + "\n")

    def all(self) -> list[dict[str, Any]]:
        """Return the faults that the run recovered from so far, also before it was resumed."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        # A killed driver may have torn its last line.
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in events if event.get("is_fault", True)]


class Recovery:
    """Makes events of faults after which training starts again: only then their cost is known.

    Times are seconds of any one clock.
    """

    def __init__(self):
        self._faults: list[tuple[str, str, str]] = []
        self._last: tuple[int, float] | None = None
        self._workers = 0

    def progress(self, step: int, now: float) -> None:
        """Note how far training is."""
        self._last = (step, now)

    def fault(self, message: Mapping[str, Any]) -> None:
        """Note a fault: `fault`, `who`, `what`."""
        self._faults.append((message["fault"], message["who"], message["what"]))

    def began(self, step: int, workers: int, now: float) -> list[Event]:
        """Return the events that a start of training after `step` steps ends."""
        before, self._workers = self._workers, workers
        faults, self._faults = self._faults, []
        if self._last is None:
            self._last = (step, now)
            return [Event(*fault) for fault in faults]
        done, at = self._last
        self._last = (step, now)
        if not faults and before:
            faults = [("workers changed", "the student", f"{_count(before, 'worker')} before")]
        again = f"; went on after step {step} with {_count(workers, 'worker')}"
        return [
            Event(
                fault,
                who,
                what + again,
                lost_s=round(now - at, 2) if number == 0 else 0.0,
                lost_steps=max(0, done - step) if number == 0 else 0,
            )
            for number, (fault, who, what) in enumerate(faults)
        ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


class _EventChannel:
    def __init__(self):
        self._messages: list[Message] = []
        self._group: PlacementGroup | None = None

    def put(self, message: Message) -> None:
        self._group = message.get("placement_group", self._group)
        self._messages.append(message)

    def placement_group(self) -> PlacementGroup | None:
        """Return the placement group of the ranks that started last."""
        return self._group

    def take(self) -> list[Message]:
        taken, self._messages = self._messages, []
        return taken


def start_event_channel() -> ActorHandle:
    """Start a channel on the driver's node, so that no other node ends it; it costs no CPU."""
    actor: Any = ray.remote(_EventChannel)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here
    ).remote()


class EventSubscriber:
    """Hands each message to `on_message`, on a thread of the driver; a context manager.

    Args:
        channel: where they come from; ended when the context ends.
        on_message: called with one message after another.
    """

    def __init__(self, channel: ActorHandle, on_message: Callable[[Message], None]):
        self._channel, self._on_message = channel, on_message
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="raybrew-events", daemon=True)

    def __enter__(self) -> "EventSubscriber":
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
        ray.kill(self._channel)

    def _work(self) -> None:
        last = False
        while not last:
            # One more round after the end: what was put before it must be seen.
            last = self._over.wait(POLL_S)
            try:
                messages: list[Message] = ray.get(self._channel.take.remote())
            except RayError as error:
                # It starts again; what it held is lost: bars and metrics of a moment.
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
