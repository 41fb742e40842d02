"""Simulators spread over processes, a few in each: one message per process and step, whatever their number.

Gymnasium's own `AsyncVectorEnv` gives every environment a process, which costs more than it brings where a step takes
a millisecond and there are more environments than cores.
"""

import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

MakeEnv = Callable[[], gym.Env[Any, Any]]


def in_process(makers: Sequence[MakeEnv]) -> SyncVectorEnv:
    """Environments of this process, reset by hand."""
    return SyncVectorEnv(list(makers), autoreset_mode=AutoresetMode.DISABLED)


Answer = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]
"""What `step` of Gymnasium's vector environments returns."""


class Here:
    """Environments of this process with `step` in two halves, the first of which does it all."""

    def __init__(self, makers: Sequence[MakeEnv]) -> None:
        self.envs = in_process(makers)
        self.reset, self.close = self.envs.reset, self.envs.close

    def send(self, actions: np.ndarray) -> None:
        self.answer = self.envs.step(actions)

    def receive(self) -> Answer:
        return self.answer


def process_context() -> ForkServerContext | SpawnContext:
    """Where processes come from: on Linux a server that imports torch once, for all of them, and is then forked.

    Forking this process itself may hang the child where torch's threads run.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "policy_decorator.envs"])
    return context


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started meanwhile do not run the lines of the user's program once more, guarded or not."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def why_not_elsewhere(makers: Sequence[MakeEnv]) -> str | None:
    """Why other processes could not make these environments, in words; None where they can."""
    try:
        packed = ForkingPickler.dumps(makers).tobytes()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        return f"it cannot be said to another process how to make them ({error})"
    program = getattr(sys.modules["__main__"], "__file__", None)
    if b"__main__" in packed and (program is None or not Path(program).exists()):
        return "they are defined in a program that is no file, as a notebook's: another process cannot import it"
    return None


class Workers:
    """`SyncVectorEnv`s in processes, with the same methods over all of them."""

    def __init__(self, makers: Sequence[MakeEnv], processes: int) -> None:
        context, own = process_context(), b"__main__" in ForkingPickler.dumps(makers).tobytes()
        self.rows = np.array_split(np.arange(len(makers)), min(processes, len(makers)))
        self.pipes: list[Connection] = []
        self.processes = []
        for rows in self.rows:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, dict(os.environ)), daemon=True)
            with nullcontext() if own else without_main():
                process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
            _tell(ours, [makers[i] for i in rows])

    def reset(self, *, seed: Sequence[int], options: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Reset the rows of `options["reset_mask"]`; the others answer with the observation they are at."""
        mask = options["reset_mask"]
        for pipe, rows in zip(self.pipes, self.rows, strict=True):
            _tell(pipe, ("reset", [seed[i] for i in rows], {**options, "reset_mask": mask[rows]}))
        return _joined([_answer(pipe) for pipe in self.pipes]), {}

    def send(self, actions: np.ndarray) -> None:
        for pipe, rows in zip(self.pipes, self.rows, strict=True):
            _tell(pipe, ("step", actions[rows]))

    def receive(self) -> Answer:
        answers = [_answer(pipe) for pipe in self.pipes]
        obs, reward, terminated, truncated = (_joined([a[i] for a in answers]) for i in range(4))
        info = {name: np.concatenate([a[4][name] for a in answers]) for name in answers[0][4]}
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                try:
                    pipe.send(("close",))
                except OSError:
                    process.terminate()
            process.join(timeout=5)
            if process.is_alive():  # a simulator that takes its time to go
                process.terminate()
                process.join()
            pipe.close()


def _joined(parts: Sequence[Any]) -> Any:
    """Arrays, or dicts of arrays, one below the other."""
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)


DIED = (
    "an environment process died: the simulator crashed, or the machine ran out of memory. Or the environment is "
    "defined in the program itself, which every process runs again: put what it does behind "
    '`if __name__ == "__main__":`, or give workers = 0.'
)


def _tell(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError:
        raise RuntimeError(DIED) from None


def _answer(pipe: Connection) -> Any:
    try:
        ok, answer = pipe.recv()
    except (EOFError, OSError):
        raise RuntimeError(DIED) from None
    if not ok:
        raise RuntimeError(f"an environment process failed:\n{answer}")
    return answer


def _serve(pipe: Connection, environ: Mapping[str, str]) -> None:
    """`environ` is the parent's: the server may have been started before a renderer was chosen there."""
    os.environ.clear()
    os.environ.update(environ)
    np.random.seed()  # noqa: NPY002 - forks of the server would all have the same
    try:
        envs = in_process(pipe.recv())
        obs = np.zeros(())
        while True:
            match pipe.recv():
                case ("reset", seeds, options):
                    if options["reset_mask"].any():
                        obs, _ = envs.reset(seed=seeds, options=options)
                    pipe.send((True, obs))
                case ("step", actions):
                    obs, reward, terminated, truncated, info = envs.step(actions)
                    info = {name: info[name] for name in ("success", "env_steps")}
                    pipe.send((True, (obs, reward, terminated, truncated, info)))
                case _:
                    envs.close()
                    return
    except (EOFError, KeyboardInterrupt):  # the run is over
        return
    except Exception:
        pipe.send((False, traceback.format_exc()))
