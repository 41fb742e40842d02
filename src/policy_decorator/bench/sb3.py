"""What one would do otherwise: Stable-Baselines3's SAC, with the residual as a wrapper around each environment.

Same sizes, batches, update ratio, simulator and base policy; no progressive exploration, which costs no time.
"""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from policy_decorator.bench.child import peak_memory
from policy_decorator.bench.config import BOUND, STEPS_PER_ROUND, BenchConfig, base_of, count, learn_of, task_of
from policy_decorator.bench.loop import WARMUP_STEPS, Question
from policy_decorator.envs.task import Task
from policy_decorator.envs.vector import DecisionEnv
from policy_decorator.errors import MissingExtra
from policy_decorator.memory import AnyPolicy, session


@dataclass(frozen=True)
class Setting:
    """How Stable-Baselines3 is run."""

    envs: Literal["dummy", "subproc"] = "dummy"
    threads: int | None = None
    """Of the learner; None: PyTorch's own choice."""

    def __str__(self) -> str:
        threads = "default threads" if self.threads is None else count(self.threads, "thread")
        return f"float32, {threads}, {'DummyVecEnv' if self.envs == 'dummy' else 'SubprocVecEnv'}"


class ResidualEnv(gym.Wrapper[np.ndarray, np.ndarray, Any, Any]):
    """action = base(window) + bound * raw; the observation is the newest frame, the reward success - 1."""

    def __init__(self, env: DecisionEnv, base: AnyPolicy, bound: float) -> None:
        super().__init__(env)
        self.base, self.bound, self.task = session(base), bound, env.task
        self.row = torch.zeros(1, dtype=torch.int64)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (env.task.obs_size,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (env.task.action_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self.window, info = self.env.reset(seed=seed, options=options)  # (To, Do)
        self.base.reset(self.row)
        return self.window[-1], info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        with torch.no_grad():
            base = self.base.act(torch.from_numpy(self.window)[None], self.row)[0].numpy()  # (1, Da)
        self.window, success, terminated, truncated, info = self.env.step(base + self.bound * action[None])
        return self.window[-1], float(success) - 1.0, terminated, truncated, info


def make_env(task: Task, base: AnyPolicy, bound: float, threads: int | None) -> ResidualEnv:
    """One environment; `threads` where it has a process of its own."""
    if threads is not None:
        torch.set_num_threads(threads)
    env = DecisionEnv(task.make_env(None), task, base.context, 1)
    return ResidualEnv(env, base, bound)


def check_installed() -> None:
    """Raises MissingExtra where Stable-Baselines3 is not installed."""
    if importlib.util.find_spec("stable_baselines3") is None:
        raise MissingExtra("Stable-Baselines3 (or leave it out, with --no-sb3)", "bench")


class StableBaselines:
    """Answers with environment steps per second, updates included."""

    def __init__(self, cfg: BenchConfig, how: Setting) -> None:
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import Logger
        from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

        if how.threads is not None:
            torch.set_num_threads(how.threads)
        task, learn = task_of(cfg), learn_of(cfg)
        base = base_of(cfg, task)
        inner = 1 if how.envs == "subproc" else None
        makers: list[Callable[[], gym.Env[Any, Any]]] = [partial(make_env, task, base, BOUND, inner)] * cfg.envs
        self.env = DummyVecEnv(makers) if how.envs == "dummy" else SubprocVecEnv(makers)
        rounds = max(1, STEPS_PER_ROUND // cfg.envs)  # steps of all environments between two rounds of updates
        self.model = SAC(
            "MlpPolicy",
            self.env,
            learning_rate=learn.sac.lr,
            buffer_size=cfg.replay,
            learning_starts=WARMUP_STEPS,
            batch_size=cfg.batch_size,
            tau=learn.sac.tau,
            gamma=learn.sac.gamma,
            train_freq=rounds,
            gradient_steps=max(1, round(rounds * cfg.envs * cfg.updates_per_step)),
            policy_kwargs={"net_arch": [cfg.width] * cfg.depth, "n_critics": cfg.critics},
            device=cfg.device,
            seed=0,
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))  # its own would leave folders behind
        self._learn(WARMUP_STEPS + 2 * STEPS_PER_ROUND)

    def __call__(self, question: Question) -> float | dict[str, int | None]:
        if question.what == "memory":
            return peak_memory()
        before, start = self.model.num_timesteps, time.perf_counter()
        self._learn(question.steps)
        return (self.model.num_timesteps - before) / (time.perf_counter() - start)

    def _learn(self, steps: int) -> None:
        self.model.learn(steps, reset_num_timesteps=False)

    def close(self) -> None:
        self.env.close()
