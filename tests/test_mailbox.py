"""What a run tells its driver is noted as far as it can be; a disk that is full ends nothing."""

from typing import Any

import raybrew.mailbox
from raybrew.mailbox import Follower, Message


class Mailbox:
    """Stands in for the actor; hands out what it has."""

    def __init__(self, messages: list[Message]):
        self.messages, self.take = messages, self
        self.killed = False

    def remote(self) -> list[Message]:
        taken, self.messages = self.messages, []
        return taken


def test_a_message_that_cannot_be_noted_is_logged_and_the_next_is_noted(monkeypatch, caplog):
    def kill(mailbox: Mailbox) -> None:
        mailbox.killed = True

    monkeypatch.setattr(raybrew.mailbox.ray, "get", lambda value: value)
    monkeypatch.setattr(raybrew.mailbox.ray, "kill", kill)
    noted: list[int] = []

    def note(message: Message) -> None:
        if message["step"] == 2:
            raise OSError(28, "No space left on device")
        noted.append(message["step"])

    mailbox: Any = Mailbox([{"kind": "values", "step": step} for step in (1, 2, 3)])
    with Follower(mailbox, note):
        pass
    assert noted == [1, 3]
    assert "could not be noted: values" in caplog.text
    assert mailbox.killed
