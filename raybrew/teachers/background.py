"""An event loop on a thread: what waits for many answers at once beside plain, blocking code."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any

__all__ = ["Background", "all_of"]


class Background:
    """Runs coroutines; its thread starts with the first of them and doesn't keep a process."""

    def __init__(self, name: str):
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, work: Coroutine[Any, Any, Any]) -> Future:
        """Run a coroutine beside the caller.

        Raises:
            CancelledError: it was closed, perhaps by another thread.
        """
        if self._closed:
            work.close()
            raise CancelledError
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name=self._name, daemon=True
            )
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what runs and end the thread; nothing can be started afterwards."""
        self._closed = True
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = self._thread = None


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def all_of(work: Iterable[Any]) -> list[Any]:
    """Wait for all of them; if one fails, end the others first."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # Those that are over don't notice.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
