"""A replica behind its queue: what it tells of itself, and what it writes unasked."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybrew.errors import LabelError
from raybrew.labels.store import LabelStore
from raybrew.teachers import host as host_module
from raybrew.teachers.host import ReplicaHost
from tests.teachers.test_replica import SIGNALS, SPEC, VIEW, Counting


def host_of(folder: Path) -> ReplicaHost:
    host = ReplicaHost(SPEC, SIGNALS, str(folder))
    host._replica._teacher = Counting()
    return host


async def looks_until(host: ReplicaHost, condition: Callable[[dict[str, Any]], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition(await host.health()):
            await asyncio.sleep(0.01)


def test_what_it_answered_is_told_until_it_was_heard_and_written_though_nobody_asks_again(
    tmp_path, monkeypatch
):
    async def story() -> None:
        host = host_of(tmp_path)
        await host.ask(VIEW, SIGNALS, 7)
        said = await host.health()
        (entry,) = said["answers"]
        assert (entry.ticket, entry.computed.sum()) == (7, len(VIEW))
        assert (said["heard"], said["on_disk"]) == (0, 0)
        assert not LabelStore(str(tmp_path)).signal("f1", SIGNALS[0]).contains(VIEW.keys).any()
        monkeypatch.setattr("raybrew.teachers.replica.FLUSH_S", 0.0)
        await looks_until(host, lambda said: said["on_disk"] == 1)
        assert LabelStore(str(tmp_path)).signal("f1", SIGNALS[0]).contains(VIEW.keys).all()
        # Of another life nothing is known: all is told again.
        assert (await host.health("another", 1))["answers"] == [entry]
        said = await host.health(said["life"], 1)
        assert (said["answers"], said["heard"]) == ([], len(VIEW))

    asyncio.run(story())


def test_what_cannot_be_written_is_said_once_in_a_while(tmp_path, monkeypatch, caplog):
    async def story() -> None:
        host, tries = host_of(tmp_path), []

        def full() -> None:
            tries.append(1)
            raise LabelError("no room")

        monkeypatch.setattr("raybrew.teachers.replica.FLUSH_S", 0.0)
        monkeypatch.setattr(host._replica, "flush", full)
        await host.ask(VIEW, SIGNALS, 1)
        await looks_until(host, lambda _: "no room" in caplog.text)
        for _ in range(20):
            await host.health()
            await asyncio.sleep(0.01)
        assert len(tries) == 1
        monkeypatch.setattr(host, "_no_flush_until", 0.0)
        await looks_until(host, lambda _: len(tries) == 2)
        # Whoever asks next hears of it.
        with pytest.raises(LabelError, match="no room"):
            await host.ask(VIEW, SIGNALS, 2)

    with caplog.at_level(logging.WARNING, host_module.__name__):
        asyncio.run(story())
