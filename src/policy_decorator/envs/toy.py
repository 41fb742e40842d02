"""A point in the plane must stop within a small disc: sparse reward, no simulator. For unit tests only."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator.envs.task import Expert, Images, Task
from policy_decorator.envs.toy_pictures import SIZE, SeenReach, SeenReachEnv
from policy_decorator.types import Step

SPEED, RADIUS, MAX_STEPS = 0.2, 0.06, 25
PHASES = torch.tensor([0.7548, 0.5698, 0.8191, 0.6711])


def _layout(seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Start and goal (B, 2) in [-1, 1] as a fixed irregular function of the episode's seed (B,)."""
    phase = seeds.double()[:, None] * PHASES.to(seeds.device, non_blocking=True)
    x = (torch.sin(phase * 12.9898 + 1.0) * 43758.5453) % 1.0  # (B, 4) in [0, 1)
    return (2 * x[:, :2] - 1).float(), (2 * x[:, 2:] - 1).float()


class Reach:
    """N independent points as tensors; the observation is (position, goal), the action a displacement."""

    def __init__(self, n: int, *, max_steps: int = MAX_STEPS, device: str | torch.device = "cpu") -> None:
        self.n, self.max_steps, self.device = n, max_steps, torch.device(device)

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.seeds = seed + torch.arange(self.n, device=self.device)
        self.next_seed = self.seeds[-1] + 1
        self.pos, self.goal = _layout(self.seeds)
        self.t = torch.zeros(self.n, dtype=torch.long, device=self.device)
        return self._window()

    def step(self, action: Tensor) -> Step:
        self.pos = (self.pos + SPEED * action[:, 0].clamp(-1, 1)).clamp(-1.5, 1.5)
        self.t = self.t + 1
        success = (self.pos - self.goal).norm(dim=-1) < RADIUS
        done = success | (self.t >= self.max_steps)
        final, facts = self._window(), torch.stack([success, done, self.seeds]).cpu()
        self.seeds = torch.where(done, self.next_seed + done.cumsum(0) - 1, self.seeds)
        self.next_seed = self.next_seed + done.sum()
        pos, goal = _layout(self.seeds)
        self.pos = torch.where(done[:, None], pos, self.pos)
        self.goal = torch.where(done[:, None], goal, self.goal)
        self.t = torch.where(done, 0, self.t)
        success, done = facts[:2].bool()
        return Step(self._window(), final, success, success, done, torch.ones_like(facts[2]), facts[2])

    def state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in ("seeds", "next_seed", "pos", "goal", "t")}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value.to(self.device))

    def close(self) -> None: ...

    def _window(self) -> Tensor:
        return torch.cat([self.pos, self.goal], dim=-1)[:, None]  # (B, 1, 4)


class ReachEnv(gym.Env[np.ndarray, np.ndarray]):
    """The same task as one Gymnasium environment, for what speaks Gymnasium."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-2, 2, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        self.pos, self.goal = (x[0].numpy() for x in _layout(torch.tensor([drawn])))
        return np.concatenate([self.pos, self.goal]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.pos = (self.pos + np.float32(SPEED) * np.clip(action, -1, 1).astype(np.float32)).clip(-1.5, 1.5)
        success = bool(np.linalg.norm(self.pos - self.goal) < RADIUS)
        return np.concatenate([self.pos, self.goal]), float(success), False, False, {"success": success}


class BiasedController:
    """A base policy that nearly works: it steers to a point beside the goal."""

    context = 1

    def __init__(self, offset: float = 0.08, noise: float = 0.15) -> None:
        self.offset, self.noise = offset, noise

    def act(self, window: Tensor) -> Tensor:
        pos, goal = window[:, -1].chunk(2, dim=-1)
        a = (goal + self.offset - pos) / SPEED
        return (a + self.noise * torch.randn_like(a)).clamp(-1, 1)[:, None]


def _make_env(render_mode: str | None) -> ReachEnv:
    del render_mode
    return ReachEnv()


def _make_seen(render_mode: str | None) -> SeenReachEnv:
    return SeenReachEnv(_make_env(render_mode))


def _make_expert() -> Expert:
    return _expert


def _expert(obs: np.ndarray) -> np.ndarray:
    return np.clip((obs[2:] - obs[:2]) / SPEED, -1, 1)


def _task(name: str, *, native: bool) -> Task:
    return Task(
        name=name,
        obs_size=4,
        action_size=2,
        max_steps=MAX_STEPS,
        control_hz=10.0,
        success=f"the point is within {RADIUS} of the goal",
        demos="scripted expert, embedded",
        make_env=_make_env,
        make_expert=_make_expert,
        make_native=Reach if native else None,
        held_actions=(),
        renders=False,
        images={"rgb": SEEN} if native else {},
    )


SEEN = Images(("above",), SIZE, SIZE, depth=False, state_size=2, make_env=_make_seen, make_native=SeenReach)

TASKS = {
    "toy/reach": _task("toy/reach", native=True),
    "toy/reach-gym": _task("toy/reach-gym", native=False),
}
