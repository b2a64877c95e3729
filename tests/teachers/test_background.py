"""An event loop on a thread: it ends once."""

import asyncio
from concurrent.futures import CancelledError

import pytest

from raybrew.teachers.background import Background


def test_nothing_is_started_once_it_is_closed():
    background = Background("test")
    assert background.start(asyncio.sleep(0, 7)).result() == 7
    background.close()
    with pytest.raises(CancelledError):
        background.start(asyncio.sleep(0))
    background.close()  # again, as by a second `stop`
