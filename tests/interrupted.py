"""A display that interrupts what it shows."""

from collections.abc import Iterator
from contextlib import contextmanager

from policy_decorator.progress import Silent, Update


class Interrupted(Silent):
    """Ctrl-C when the stage that begins with `title` has come to `at`; keeps what it is told."""

    def __init__(self, at: int, title: str = "refining") -> None:
        self.at, self.title, self.said = at, title, list[str]()

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Update]:
        def update(done: int, total: int = total, note: str = "") -> None:
            if title.startswith(self.title) and done >= self.at:
                raise KeyboardInterrupt

        yield update
