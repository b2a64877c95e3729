"""Which messages the driver gets about ranks that fail."""

from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

import raybrew as rb
from raybrew.training.ray_train import FaultCallback


class _Put:
    def __init__(self, messages: list[dict[str, Any]]):
        self._messages = messages

    def remote(self, message: dict[str, Any]) -> None:
        self._messages.append(message)


class _EventChannel:
    def __init__(self):
        self.messages: list[dict[str, Any]] = []
        self.put = _Put(self.messages)


def make_callback() -> tuple[FaultCallback, list[dict[str, Any]]]:
    channel: Any = _EventChannel()
    return FaultCallback(channel), channel.messages


def test_who_died_comes_before_who_failed_because_of_it():
    callback, messages = make_callback()
    died = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError())
    lost = UserExceptionWithTraceback(RuntimeError("Connection reset by peer"), "…")
    callback.after_exception(None, {0: lost, 1: died})
    assert [(each["fault"], each["who"]) for each in messages] == [
        ("rank died", "rank 1"),
        ("rank failed", "rank 0"),
    ]
    assert messages[1]["what"] == "Connection reset by peer"


def test_an_error_of_ours_is_not_tried_again():
    callback, messages = make_callback()
    ours = UserExceptionWithTraceback(rb.TrainingError("no number"), "…")
    with pytest.raises(rb.TrainingError, match="no number"):
        callback.after_exception(None, {0: ours})
    assert messages == []
