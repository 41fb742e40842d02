"""One side of a comparison in a process of its own, so that neither sees the other's settings of process and memory."""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from policy_decorator.errors import UserError

Side = Callable[[Any], Any]
"""Answers questions; the time that it takes to be made is not measured."""


class Child:
    """`make(*args)` in a fresh process; `ask` waits for its answer, so that one side works at a time."""

    def __init__(self, make: Callable[..., Side], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args))
        self.process.start()
        theirs.close()
        try:
            self._answer()  # made
        except BaseException:
            self.close()
            raise

    def ask(self, question: Any) -> Any:
        """Raises UserError as the side did, RuntimeError for anything else that went wrong in it."""
        self.pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("a measured process died: it may have run out of memory") from None
        if kind == "wrong input":
            raise UserError(answer)
        if kind == "failed":
            raise RuntimeError(f"a measured process failed:\n{answer}")
        return answer

    def close(self) -> None:
        """End the process, and with it the simulators it started."""
        self.pipe.close()
        self.process.join(timeout=20)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[..., Side], args: tuple[Any, ...]) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is the answer's alone
    side: Side | None = None
    try:
        side = make(*args)
        pipe.send(("made", None))
        while True:
            pipe.send(("answer", side(pipe.recv())))
    except (EOFError, KeyboardInterrupt):  # nothing more is asked
        pass
    except UserError as error:
        pipe.send(("wrong input", str(error)))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))
    finally:
        getattr(side, "close", lambda: None)()


def peak_memory() -> dict[str, int | None]:
    """Largest resident memory in bytes so far: of this process, and of all those it started together (Linux)."""
    started = [_peak(str(p.pid)) for p in multiprocessing.active_children()]
    return {"learner": _peak("self"), "simulators": None if None in started else sum(n or 0 for n in started)}


def _peak(pid: str) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024
