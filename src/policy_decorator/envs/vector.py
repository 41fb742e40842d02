"""B copies of a task behind one interface: decisions in, windows and success out.

Time limit, termination at success, frame windows, action chunks and resets are decided here and nowhere else.
"""

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from torch import Tensor

from policy_decorator.envs.actions import check_finite, finite_rows
from policy_decorator.envs.images import FrameNumbers, together
from policy_decorator.envs.task import Task
from policy_decorator.envs.workers import Here, Workers, why_not_elsewhere
from policy_decorator.errors import UserError
from policy_decorator.types import Step, VectorEnv

Simulation = Literal["auto", "cpu", "gpu"]
"""Where simulators run that can do both: auto is on the GPU where the learner is, if it can be had."""


class DecisionEnv(gym.Wrapper[Any, Any, Any, Any]):
    """One `step` is one decision: a chunk (Ta, Da) is clipped and executed open loop, the last To frames come back.

    The episode ends at the first success (terminated) unless `task.ends_at_success` is False, at a failure that the
    simulator declares (terminated), or after `task.max_steps` environment steps or where the simulator says that time
    is up (truncated); the rest of the chunk is then dropped. `info["success"]` tells whether any step of the decision
    was a success. At reset all To slots hold the first frame. An episode whose seed is `options["until"]` or above is
    not wanted: no steps are taken in it.
    """

    def __init__(self, env: gym.Env[Any, Any], task: Task, context: int, chunk: int) -> None:
        super().__init__(env)
        self.task = task
        flat = gym.spaces.Box(-np.inf, np.inf, (task.obs_size,), np.float32)
        self.frame_space = env.observation_space if task.shows else flat
        self.observation_space = batch_space(self.frame_space, context)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (chunk, task.action_size), np.float32)
        self.frames: deque[Any] = deque(maxlen=context)
        self.steps, self.rests = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """`options["replay"]` may map an episode's seed to the chunks (L, Ta, Da) with which to bring it back."""
        until = (options or {}).get("until")
        self.rests = until is not None and seed is not None and seed >= until
        if self.rests and self.frames:
            return self._window(), {}
        obs, _ = self.env.reset(seed=seed)
        self.steps = 0
        self.frames.extend([deepcopy(obs)] * self.context)
        for action in (options or {}).get("replay", {}).get(seed, ()):
            self.step(action)
        return self._window(), {}

    def _window(self) -> Any:
        """(To, Do), from old to new; a dict of such arrays where there are images."""
        out = create_empty_array(self.frame_space, self.context)
        return concatenate(self.frame_space, self.frames, out)

    @property
    def context(self) -> int:
        return self.frames.maxlen or 1

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.rests:
            return self._window(), 0.0, False, False, {"success": False, "env_steps": 0}
        before, success, terminated, over = self.steps, False, False, False
        for a in np.clip(action, -1.0, 1.0):
            obs, _, terminated, over, info = self.env.step(a)
            self.frames.append(deepcopy(obs))
            self.steps += 1
            success = success or bool(info["success"])
            terminated = bool(terminated) or (success and self.task.ends_at_success)
            over = bool(over) or self.steps >= self.task.max_steps
            if terminated or over:
                break
        truncated = over and not terminated
        info = {"success": success, "env_steps": self.steps - before}
        return self._window(), float(success), terminated, truncated, info


class SimulatorVector:
    """Copies of a `Task` in this process, or shared out among `workers` processes."""

    def __init__(
        self,
        task: Task,
        n: int,
        *,
        context: int = 1,
        chunk: int = 1,
        workers: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.n, self.device = n, torch.device(device)
        makers = [partial(_make, task, context, chunk)] * n
        if workers and (why := why_not_elsewhere(makers)) is not None:
            warnings.warn(
                f"The environments are simulated in this process, as {why}. With workers = 0 this is not said.",
                stacklevel=2,
            )
            workers = 0
        self.envs = Workers(makers, workers) if workers else Here(makers)
        self.seeds = np.arange(n)
        self.next_seed = n
        self.until: int | None = None
        self.executed: list[list[np.ndarray]] = [[] for _ in range(n)]  # chunks since reset, to bring an episode back
        self.numbers = FrameNumbers(n)

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.next_seed, self.until = seed, None if episodes is None else seed + episodes
        everywhere = np.ones(self.n, dtype=bool)
        return self._tensor(self._start(everywhere), everywhere)

    def step(self, action: Tensor) -> Step:
        self.send(action)
        return self.receive()

    def send(self, action: Tensor) -> None:
        """Begin a step: simulators in processes of their own take it while this one does something else.

        Raises:
            UserError: an action that is not finite.
        """
        executed = action.detach().to("cpu", torch.float32, copy=True)
        check_finite(finite_rows(executed))
        chunk = executed.numpy()  # kept: see `executed`
        for done_so_far, a in zip(self.executed, chunk, strict=True):
            done_so_far.append(a)
        self.envs.send(chunk)

    def receive(self) -> Step:
        """The other half: wait for the answer, and begin new episodes where old ones have ended."""
        window, _, terminated, truncated, info = self.envs.receive()
        done, episode = terminated | truncated, torch.from_numpy(self.seeds.copy())
        final_window = self._tensor(window, np.ones(self.n, dtype=bool))
        return Step(
            window=self._tensor(self._start(done), done) if done.any() else final_window,
            final_window=final_window,
            success=torch.from_numpy(info["success"]).bool(),
            terminated=torch.from_numpy(terminated),
            done=torch.from_numpy(done),
            env_steps=torch.from_numpy(info["env_steps"]),
            episode=episode,
        )

    def _start(
        self, rows: np.ndarray, replay: Mapping[int, Sequence[np.ndarray] | np.ndarray] | None = None
    ) -> np.ndarray:
        """Begin new episodes in `rows` (or bring the current ones back from `replay`)."""
        if replay is None:
            self.seeds[rows] = self.next_seed + np.arange(rows.sum())
            self.next_seed += int(rows.sum())
        for i in np.flatnonzero(rows):
            self.executed[i] = [] if replay is None else list(replay[int(self.seeds[i])])
        options = {"reset_mask": rows, "replay": replay or {}, "until": self.until}
        window, _ = self.envs.reset(seed=[int(s) for s in self.seeds], options=options)
        return window

    def state(self) -> dict[str, Tensor]:
        """Seeds of the running episodes and the actions taken in them: enough to bring back any simulator exactly."""
        chunks = {f"executed_{i}": torch.from_numpy(np.stack(e)) for i, e in enumerate(self.executed) if e}
        seeds = {"seeds": torch.from_numpy(self.seeds.copy()), "next_seed": torch.tensor(self.next_seed)}
        return {**seeds, **self.numbers.state(), **chunks}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.seeds, self.next_seed = state["seeds"].cpu().numpy().copy(), int(state["next_seed"])
        self.until = None
        self.numbers.restore(state)
        chunks = [state.get(f"executed_{i}") for i in range(self.n)]
        replay = {int(s): () if c is None else c.cpu().numpy() for s, c in zip(self.seeds, chunks, strict=True)}
        self._start(np.ones(self.n, dtype=bool), replay)

    def close(self) -> None:
        self.envs.close()

    def _tensor(self, window: Any, new: np.ndarray) -> Tensor:
        """The window on the device; `new` (B,) bool, whose newest frame has not been seen before."""
        if isinstance(window, np.ndarray):
            return torch.from_numpy(window).to(self.device, non_blocking=True)
        parts = {name: torch.from_numpy(x).to(self.device, non_blocking=True) for name, x in window.items()}
        return self.numbers(together(parts, ndim=2), torch.from_numpy(new))


def _make(task: Task, context: int, chunk: int) -> DecisionEnv:
    return DecisionEnv(task.make_env(None), task, context, chunk)


def simulated_on(task: Task, device: str | torch.device, simulation: Simulation) -> Literal["cpu", "gpu"]:
    """What `simulation` means for `task` and a learner on `device`; warns where auto does without the GPU.

    Raises:
        UserError: simulation on a GPU was asked for, and the task has none, or it cannot be had.
    """
    device = torch.device(device)
    if simulation == "cpu":
        return "cpu"
    if task.make_on_gpu is None or device.type != "cuda":
        why = f"{task.name} has no such simulation" if task.make_on_gpu is None else f"the device is {device}"
    elif (why := task.why_not_on_gpu()) is None:
        return "gpu"
    elif simulation == "auto":
        warnings.warn(
            f"{task.name} is simulated on the CPU: {why}. With simulation = cpu this is not said.", stacklevel=1
        )
    if simulation == "gpu":
        raise UserError(f"simulation = gpu is not possible: {why}. Leave it on auto.")
    return "cpu"


def make_vector(
    task: Task,
    n: int,
    *,
    context: int = 1,
    chunk: int = 1,
    workers: int = 0,
    device: str | torch.device = "cpu",
    simulation: Simulation = "auto",
) -> VectorEnv:
    """`n` copies of `task`: the simulator's own vectorisation where it has one.

    Raises:
        UserError: simulation on a GPU was asked for, and the task has none, or it cannot be had.
    """
    device = torch.device(device)
    if simulated_on(task, device, simulation) == "gpu" and task.make_on_gpu is not None:
        sizes = {"context": context, "ends_at_success": task.ends_at_success, "device": device}
        return task.make_on_gpu(n, max_steps=task.max_steps, **sizes)
    if task.make_native is not None and context == chunk == 1 and task.ends_at_success:
        return task.make_native(n, max_steps=task.max_steps, device=device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autoreset.*")
        return SimulatorVector(task, n, context=context, chunk=chunk, workers=workers, device=device)
