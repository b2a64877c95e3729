"""An event loop on a thread: it ends once."""

import asyncio
from concurrent.futures import CancelledError

import pytest

from raybrew.teachers.client import EventLoopThread


def test_nothing_is_started_once_it_is_closed():
    background = EventLoopThread("test")
    assert background.start(asyncio.sleep(0, 7)).result() == 7
    background.close()
    with pytest.raises(CancelledError):
        background.start(asyncio.sleep(0))
    background.close()  # again, as by a second `stop`
