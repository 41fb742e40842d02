"""The toy task seen from above: where the goal is, and which colour it has, is to be seen in the picture alone."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from policy_decorator.envs.images import FrameNumbers, together
from policy_decorator.envs.task import image_space
from policy_decorator.types import Step

SIZE, EDGE = 16, 1.2
"""Pixels of the picture, high and wide, and the coordinate at the middle of its outermost ones."""
SPREAD = 1.5
"""Pixels over which a point fades out: where it is between them can be told."""


def red(seeds: Tensor) -> Tensor:
    """(B,) bool: whether the goals of these episodes are red; the others are blue. Success does not depend on it."""
    return (torch.sin(seeds.double() * 0.7391 + 2.0) * 43758.5453) % 1.0 < 0.5


def draw(pos: Tensor, goal: Tensor, is_red: Tensor) -> Tensor:
    """Point (green) and goal (red or blue), (B, 2) each -> (B, 3, SIZE, SIZE) uint8; outside of it nothing is drawn."""
    at = torch.linspace(-EDGE, EDGE, SIZE, device=pos.device)
    pitch = 2 * EDGE / (SIZE - 1)
    points = torch.stack([pos, goal], dim=1)[..., None]  # (B, 2, 2, 1)
    along = (1 - (at - points).abs() / (SPREAD * pitch)).clamp(min=0)  # (B, point or goal, x or y, SIZE)
    spots = along[:, :, 1, :, None] * along[:, :, 0, None, :]  # (B, 2, SIZE, SIZE), rows along y
    point, disc, hue = spots[:, 0], spots[:, 1], is_red[:, None, None]
    return (255 * torch.stack([disc * hue, point, disc * ~hue], dim=1)).round().byte()


class SeenReach:
    """`toy.Reach` whose windows (B, 1) are TensorDicts: the point's position as `state`, and `rgb`."""

    def __init__(self, n: int, *, max_steps: int | None = None, device: str | torch.device = "cpu") -> None:
        from policy_decorator.envs.toy import MAX_STEPS, Reach

        self.inner = Reach(n, max_steps=MAX_STEPS if max_steps is None else max_steps, device=device)
        self.numbers = FrameNumbers(n)

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        return self._seen(
            self.inner.reset(seed, episodes), torch.ones(self.inner.n, dtype=torch.bool), self.inner.seeds
        )

    def step(self, action: Tensor) -> Step:
        before = self.inner.seeds
        out = self.inner.step(action)
        final = self._seen(out.final_window, torch.ones_like(out.done), before)
        window = self._seen(out.window, out.done, self.inner.seeds) if out.done.any() else final
        return out._replace(window=window, final_window=final)

    def _seen(self, window: Tensor, new: Tensor, seeds: Tensor) -> Tensor:
        pos, goal = window[:, 0].chunk(2, dim=-1)
        parts = {"state": pos[:, None].clone(), "rgb": draw(pos, goal, red(seeds))[:, None]}
        return self.numbers(together(parts, ndim=2), new)

    def state(self) -> dict[str, Tensor]:
        return self.inner.state() | self.numbers.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        self.numbers.restore(state)
        self.inner.restore({name: x for name, x in state.items() if name not in self.numbers.state()})

    def close(self) -> None: ...


class SeenReachEnv(gym.Wrapper[Any, Any, Any, Any]):
    """The same as one Gymnasium environment."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = image_space(2, 1, SIZE, SIZE, depth=False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self.hue = red(torch.tensor([0 if seed is None else seed]))
        return self._seen(obs), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(obs), float(reward), terminated, truncated, info

    def _seen(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        pos, goal = torch.from_numpy(obs)[None].float().chunk(2, dim=-1)
        return {"state": pos[0].numpy().copy(), "rgb": draw(pos, goal, self.hue)[0].numpy()}


class MisledByColour:
    """A base policy that finds the goal in the picture, and steers past it: right of a red one, left of a blue one."""

    context = 1

    def __init__(self, offset: float = 0.1, noise: float = 0.15) -> None:
        self.offset, self.noise = offset, noise

    def act(self, window: Any) -> Tensor:
        from policy_decorator.envs.toy import SPEED

        frame = window[:, -1]
        disc = frame["rgb"].float()[:, [0, 2]]  # (B, 2, SIZE, SIZE), of which one is black
        at = torch.linspace(-EDGE, EDGE, SIZE, device=disc.device)
        along = torch.stack([disc.sum(dim=(1, 2)), disc.sum(dim=(1, 3))], dim=1)  # (B, x or y, SIZE)
        goal = (along * at).sum(-1) / along.sum(-1)
        side = torch.where(disc[:, 0].amax(dim=(1, 2)) > disc[:, 1].amax(dim=(1, 2)), self.offset, -self.offset)
        a = (goal + torch.stack([side, torch.zeros_like(side)], dim=-1) - frame["state"]) / SPEED
        return (a + self.noise * torch.randn_like(a)).clamp(-1, 1)[:, None]
