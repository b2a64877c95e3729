"""Progress bars on the driver, by rich: one line a stage, kept when the stage is done."""

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

__all__ = ["Bars"]


class Bars:
    """Named bars; a context manager. Written to standard error, so that output stays clean."""

    def __init__(self, enabled: bool = True):
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=14, no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn(
                "{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}",
                table_column=Column(no_wrap=True),
            ),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
            console=Console(file=sys.stderr),
            disable=not enabled,
            refresh_per_second=4,
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, name: str, total: float, unit: str) -> None:
        """Open a bar, or begin an open one again."""
        if name in self._bars:
            self._progress.reset(self._bars[name], total=total)
        else:
            self._bars[name] = self._progress.add_task(name, total=total, unit=unit, note="")

    def advance(self, name: str, by: float) -> None:
        """Move a bar on."""
        self._progress.advance(self._bars[name], by)

    def move_to(self, name: str, done: float) -> None:
        """Set how far a bar is."""
        self._progress.update(self._bars[name], completed=done)

    def note(self, name: str, text: str) -> None:
        """Set what stands behind a bar, if it is there."""
        if name in self._bars:
            self._progress.update(self._bars[name], note=text)
