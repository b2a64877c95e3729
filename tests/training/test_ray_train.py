"""What the driver is told of ranks that fail."""

from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

import raybrew as rb
from raybrew.training.faults import FaultCallback


class _Put:
    def __init__(self, kept: list[dict[str, Any]]):
        self._kept = kept

    def remote(self, message: dict[str, Any]) -> None:
        self._kept.append(message)


class _EventChannel:
    def __init__(self):
        self.kept: list[dict[str, Any]] = []
        self.put = _Put(self.kept)


def watch() -> tuple[FaultCallback, list[dict[str, Any]]]:
    channel: Any = _EventChannel()
    return FaultCallback(channel), channel.kept


def test_who_died_comes_before_who_failed_because_of_it():
    watcher, kept = watch()
    died = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError())
    lost = UserExceptionWithTraceback(RuntimeError("Connection reset by peer"), "…")
    watcher.after_exception(None, {0: lost, 1: died})
    assert [(each["fault"], each["who"]) for each in kept] == [
        ("rank died", "rank 1"),
        ("rank failed", "rank 0"),
    ]
    assert kept[1]["what"] == "Connection reset by peer"


def test_an_error_of_ours_is_not_tried_again():
    watcher, kept = watch()
    ours = UserExceptionWithTraceback(rb.TrainingError("no number"), "…")
    with pytest.raises(rb.TrainingError, match="no number"):
        watcher.after_exception(None, {0: ours})
    assert kept == []
