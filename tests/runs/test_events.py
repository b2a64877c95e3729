import json
import logging
from typing import Any

import raybrew.runs.events
from raybrew.errors import Event
from raybrew.runs.events import EventLog, EventSubscriber, Message, Recovery

# The log of what a run recovered from.


def test_events_are_a_line_each_and_a_warning_and_outlive_a_torn_line(tmp_path, caplog):
    log = EventLog(tmp_path)
    assert log.all() == []
    event = Event("replica died", "teacher 'a', replica 0", "asked another one", 1.5)
    with caplog.at_level(logging.WARNING):
        log.add(event)
    assert "replica died" in caplog.text
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "fau')
    (found,) = EventLog(tmp_path).all()
    assert {k: found[k] for k in ("fault", "who", "lost_s", "lost_steps")} == {
        "fault": "replica died",
        "who": "teacher 'a', replica 0",
        "lost_s": 1.5,
        "lost_steps": 0,
    }
    assert Event(**json.loads(json.dumps(event.message()["event"]))) == event


def fault(who: str) -> dict[str, str]:
    return {"fault": "rank died", "who": who, "what": "killed"}


def test_the_cost_of_a_fault_is_known_when_training_goes_on():
    recovery = Recovery()
    assert recovery.began(0, 2, 0.0) == []
    recovery.progress(17, 50.0)
    recovery.fault(fault("rank 1"))
    recovery.fault(fault("rank 0"))
    first, second = recovery.began(10, 2, 58.0)
    assert (first.lost_s, first.lost_steps) == (8.0, 7)
    assert (second.lost_s, second.lost_steps) == (0.0, 0)
    assert "after step 10 with 2 workers" in first.what
    recovery.progress(12, 60.0)
    (resized,) = recovery.began(12, 1, 66.0)
    assert resized.fault == "workers changed"
    assert "2 workers before; went on after step 12 with 1 worker" in resized.what
    assert (resized.lost_s, resized.lost_steps) == (6.0, 0)


def test_a_fault_before_the_first_step_is_an_event_too():
    recovery = Recovery()
    recovery.fault(fault("rank 0"))
    (event,) = recovery.began(0, 1, 3.0)
    assert event.fault == "rank died"


def test_what_is_no_fault_is_a_line_and_neither_warned_of_nor_survived(tmp_path, caplog):
    log = EventLog(tmp_path)
    with caplog.at_level(logging.INFO):
        log.add(Event("teacher left", "teacher 'a'", "all is there", is_fault=False))
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["fault"] == "teacher left"
    assert log.all() == []
    (record,) = caplog.records
    assert record.levelno == logging.INFO


# What a run tells its driver is noted as far as it can be; a disk that is full ends nothing.


class Channel:
    """Stands in for the actor; hands out what it has."""

    def __init__(self, messages: list[Message]):
        self.messages, self.take = messages, self
        self.killed = False

    def remote(self) -> list[Message]:
        taken, self.messages = self.messages, []
        return taken


def test_a_message_that_cannot_be_noted_is_logged_and_the_next_is_noted(monkeypatch, caplog):
    def kill(channel: Channel) -> None:
        channel.killed = True

    monkeypatch.setattr(raybrew.runs.events.ray, "get", lambda value: value)
    monkeypatch.setattr(raybrew.runs.events.ray, "kill", kill)
    noted: list[int] = []

    def note(message: Message) -> None:
        if message["step"] == 2:
            raise OSError(28, "No space left on device")
        noted.append(message["step"])

    channel: Any = Channel([{"kind": "values", "step": step} for step in (1, 2, 3)])
    with EventSubscriber(channel, note):
        pass
    assert noted == [1, 3]
    assert "could not be noted: values" in caplog.text
    assert channel.killed
