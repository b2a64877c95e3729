"""What a run shows while it works, on standard error: a line at each stage, and how far it is.

terminal         12:03:04 starting Ray               lines above, one bar a stage below them
                 training ━━━━━━━━ 120/456 steps
log, notebook    2026-12-01 12:03:04 starting Ray    lines alone, one now and then
                 2026-12-01 12:03:44 training 120/456 steps, loss 0.749, 3.1 steps/s, 1:48 left
"""

import functools
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LINE_S = 10.0
"""Time between two lines of a stage that goes on, where there are no bars, in seconds."""
LINE_SHARE = 0.02
"""The same as a share of the time that the stage has taken: a long run has a readable log."""
SHORT_S = 1.0
"""A stage that takes no longer ends without a line."""


def say(text: str) -> None:
    """Write a line with the time, above the bars if there are any."""
    console = _console()
    if console.is_terminal and not console.is_jupyter:
        # A path that is broken into two lines can't be copied.
        console.print(f"{datetime.now():%H:%M:%S} {text}", soft_wrap=True)
        return
    # A notebook shows standard error in red.
    stream = sys.stdout if console.is_jupyter else sys.stderr
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}", file=stream, flush=True)


@functools.cache
def _console() -> "Console":
    from rich.console import Console

    # Standard error as it is when something is written.
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@dataclass
class _Stage:
    """How far a stage is, for the lines of it."""

    total: float
    unit: str
    begin: float
    shown: float
    first: float | None = None
    """What was done at the first report: a resumed run doesn't begin at 0."""
    done: float = 0.0
    note: str = ""


class Bars:
    """How far each stage is: a bar in a terminal, which stays when the stage is done; else lines.

    A context manager; may be called from several threads. In a notebook too there are lines: bars
    would need a widget that may not be there.

    Args:
        enabled: False shows nothing, neither lines nor bars.
    """

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        console = _console()
        self._bars: Any = None
        if enabled and console.is_terminal and not console.is_jupyter:
            self._bars = _rich_bars(console)
        self._ids: dict[str, Any] = {}
        self._stages: dict[str, _Stage] = {}
        self._lock = Lock()

    def __enter__(self) -> "Bars":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Write a line."""
        if self._enabled:
            say(text)

    def start(self, name: str, total: float, unit: str) -> None:
        """Open a bar, or restart an open one."""
        with self._lock:
            begun = self._stages.get(name)
            if begun is None or begun.done >= begun.total:
                now = time.monotonic()
                self._stages[name] = _Stage(total, unit, now, now)
            if self._bars is None:
                return
            if name in self._ids:
                self._bars.reset(self._ids[name], total=total)
            else:
                self._ids[name] = self._bars.add_task(name, total=total, unit=unit, note="")

    def advance(self, name: str, by: float) -> None:
        """Advance a bar."""
        with self._lock:
            self._move_to(name, self._stages[name].done + by)

    def move_to(self, name: str, done: float) -> None:
        """Set the progress of a bar."""
        with self._lock:
            self._move_to(name, done)

    def _move_to(self, name: str, done: float) -> None:
        stage = self._stages[name]
        finished = stage.done < stage.total <= done
        stage.first = done if stage.first is None else stage.first
        stage.done = done
        if self._bars is not None:
            self._bars.update(self._ids[name], completed=done)
        elif self._enabled and _is_due(stage, finished):
            say(_line(name, stage))

    def note(self, name: str, text: str) -> None:
        """Set the text after a bar, if the bar is open."""
        with self._lock:
            if name in self._stages:
                self._stages[name].note = text
            if name in self._ids:
                self._bars.update(self._ids[name], note=text)


def _is_due(stage: _Stage, finished: bool) -> bool:
    now = time.monotonic()
    took = now - stage.begin
    due = now - stage.shown >= max(LINE_S, LINE_SHARE * took) and stage.done < stage.total
    if not (due or (finished and took > SHORT_S)):
        return False
    stage.shown = now
    return True


def _line(name: str, stage: _Stage) -> str:
    seconds = max(time.monotonic() - stage.begin, 1e-9)
    rate = (stage.done - (stage.first or 0.0)) / seconds
    parts = [f"{name} {stage.done:.0f}/{stage.total:.0f} {stage.unit}"]
    parts += [stage.note] if stage.note else []
    parts += [f"{rate:.3g} {stage.unit}/s"] if rate > 0 else []
    if stage.done >= stage.total:
        parts.append(f"took {_clock(seconds)}")
    elif rate > 0:
        parts.append(f"{_clock((stage.total - stage.done) / rate)} left")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _rich_bars(console: "Console") -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", table_column=Column(min_width=14, no_wrap=True)),
        BarColumn(bar_width=16),
        TextColumn(
            "{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}",
            table_column=Column(no_wrap=True),
        ),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
        console=console,
        refresh_per_second=4,
    )
