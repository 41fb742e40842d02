"""What a user sees while waiting: stages with a bar and an ETA, or nothing at all."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Update = Callable[..., None]
"""(done, total, note="") -> None"""


class Display(Protocol):
    """Shows stages of work and one-line messages."""

    def stage(self, title: str, total: int) -> AbstractContextManager[Update]: ...
    def say(self, text: str) -> None: ...


class Silent:
    """Shows nothing: the default in Python."""

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Update]:
        yield lambda done, total=total, note="": None

    def say(self, text: str) -> None: ...


class Bars:
    """A rich bar with elapsed and remaining time on a terminal; about ten plain lines a stage elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bars: Progress | None = None  # one live display, shared by a stage and the stages inside it

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Update]:
        if not self.console.is_terminal:
            yield _Lines(self.console, title, total)
            return
        outer, bars = self._bars, self._bars or self._new()
        task = bars.add_task(title, total=total, note="")

        def update(done: int, total: int = total, note: str = "") -> None:
            fields = {"note": note} if note else {}
            bars.update(task, completed=done, total=total, advance=None, visible=None, refresh=False, **fields)

        if outer is None:
            self._bars = bars
            bars.start()
        try:
            yield update
        finally:
            if outer is None:
                bars.stop()
                self._bars = None
            else:
                bars.remove_task(task)

    def _new(self) -> Progress:
        return Progress(
            TextColumn("[bold]{task.description:<26}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            speed_estimate_period=60,
        )

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False)


class _Lines:
    def __init__(self, console: Console, title: str, total: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.started, self.tenth = time.monotonic(), 0

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None:
        total = total or self.total
        tenth = 10 * done // max(total, 1)
        if tenth <= self.tenth:
            return
        self.tenth = tenth
        elapsed = time.monotonic() - self.started
        eta = elapsed * (total - done) / max(done, 1)
        line = f"{self.title}: {done:,}/{total:,}  {elapsed:.0f} s, ETA {eta:.0f} s  {note}"
        self.console.print(line.rstrip(), highlight=False, soft_wrap=True)
