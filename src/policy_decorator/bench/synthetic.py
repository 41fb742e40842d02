"""A task that costs next to nothing and has any sizes: what remains is the time of base policy and learner."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator.envs.task import Task
from policy_decorator.types import Step

MAX_STEPS = 300


class SyntheticEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observations from a table, whatever the action; never a success."""

    def __init__(self, obs: int, action: int) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (obs,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (action,), np.float32)
        self.table = np.random.default_rng(0).standard_normal((64, obs)).astype(np.float32)
        self.t = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.table[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.table[self.t % 64], 0.0, False, False, {"success": False}


class SyntheticVector:
    """The same as one tensor of B rows: for the cost of B itself."""

    def __init__(
        self,
        n: int,
        obs: int,
        *,
        context: int = 1,
        max_steps: int = MAX_STEPS,
        staggered: bool = False,
        succeeds: bool = False,
        device: str | torch.device = "cpu",
    ) -> None:
        """`staggered`: rows begin evenly spread over an episode, and their episodes end one after the other.

        `succeeds`: in every other row the last step of an episode is a success, since what learns in rounds rests
        where nothing is rewarded. The episode was out of time.
        """
        self.table = torch.randn(64, n, context, obs, generator=torch.Generator().manual_seed(0)).to(device)
        self.max_steps, self.begin = max_steps, torch.arange(n) * max_steps // n * staggered
        self.t = self.begin  # (B,) steps into its episode
        self.no, self.ones = torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.long)
        self.lucky = torch.arange(n) % 2 == 0 if succeeds else self.no

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.t = self.begin
        return self.table[0]

    def step(self, action: Tensor) -> Step:
        """A chunk (B, Ta, Da) takes Ta environment steps, or those that are left of the episode."""
        taken = (self.max_steps - self.t).clamp(max=action.shape[1])
        self.t = (self.t + taken) % self.max_steps
        window = self.table[int(self.t[0]) % 64]
        done = self.t == 0
        return Step(window, window, done & self.lucky, self.no, done, taken, self.ones)

    def state(self) -> dict[str, Tensor]:
        return {"t": self.t}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.t = state["t"]

    def close(self) -> None: ...


def _make(obs: int, action: int, render_mode: str | None) -> SyntheticEnv:
    del render_mode
    return SyntheticEnv(obs, action)


def synthetic_task(obs: int, action: int) -> Task:
    """Of these sizes, stepped like any simulator."""
    return Task(
        name="synthetic",
        obs_size=obs,
        action_size=action,
        max_steps=MAX_STEPS,
        control_hz=100.0,
        success="never",
        demos="none",
        make_env=partial(_make, obs, action),
        renders=False,
    )
