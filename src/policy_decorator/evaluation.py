"""Whole episodes on given seeds, so that two policies can be compared episode by episode."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator import randomness
from policy_decorator.memory import AnyPolicy, session
from policy_decorator.stepping import AroundVector
from policy_decorator.types import Composition, Step, VectorEnv

# Seeds of episodes that must not meet: what is trained on, selected on, reported on and imitated.
TRAINING, VALIDATION, TEST, DEMOS = 0, 1_000_000_000, 2_000_000_000, 3_000_000_000
PROBES = 1_500_000_000
"""Of episodes by which a run settles how it learns, before it learns."""
EPISODES_PER_SEED = 10_000_000
SEEDS = (VALIDATION - TRAINING) // EPISODES_PER_SEED
"""Runs whose training episodes meet neither one another's nor those of evaluations: seeds 0 to 99."""


@dataclass(frozen=True)
class Episodes:
    """Outcomes of the episodes seeded `seed`, `seed + 1`, ..., in that order."""

    seed: int
    success: np.ndarray  # (N,) bool, at any of its steps
    env_steps: np.ndarray  # (N,)
    simulated_steps: int = 0
    """Of all environments, with what they went on to until the last of these episodes had ended."""

    @property
    def rate(self) -> float:
        return float(self.success.mean())


@torch.no_grad()
def run_episodes(
    env: VectorEnv,
    policy: AnyPolicy,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Run exactly the episodes `seed` to `seed + episodes - 1`: two policies given the same seeds are paired.

    Where only a reset decides how episodes begin (`drawn_at_reset`), they are played in waves of B, one per row, each
    from a reset of its own: there is a pair for every episode, whichever policy is done first. A policy that draws
    from the process's generators (torch, numpy, random) draws the same numbers at every call, and training's stream is
    left alone; so is what a policy remembers of the episodes it is trained on.
    """
    success = np.zeros(episodes, dtype=bool)
    steps, finished = np.zeros(episodes, dtype=np.int64), np.zeros(episodes, dtype=bool)
    policy, simulated = session(policy), 0
    with randomness.forked():
        while not finished.all():
            first = int(finished.argmin())  # 0, or where waves are played the number of those before
            randomness.seed_all(seed + first)
            window = env.reset(seed + first, episodes - first)
            last = min(first + len(window), episodes) if getattr(env, "drawn_at_reset", False) else episodes
            policy.reset(rows := torch.arange(len(window)))
            while not finished[first:last].all():
                out = env.step(policy.act(window, rows))
                policy.reset(rows[out.done])
                simulated += int(out.env_steps.sum())
                index, window = (out.episode - seed).cpu().numpy(), out.window
                ours = index < last  # environments may go on to episodes nobody asked for
                steps[index[ours]] += out.env_steps.cpu().numpy()[ours]
                ended = ours & out.done.cpu().numpy()
                success[index[ours]] |= out.success.cpu().numpy()[ours]
                finished[index[ended]] = True
                if progress is not None and ended.any():
                    progress(int(finished.sum()), episodes)
    return Episodes(seed, success, steps, simulated)


@dataclass(frozen=True)
class Gated:
    """A composition whose residual speaks with probability `epsilon`: the behaviour at one moment of training.

    The gate itself is not asked: it may count who asks it (`rl.auto`).
    """

    composition: Composition
    epsilon: float

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor:
        return self.composition.actor_input(obs, base)

    def execute(self, base: Tensor, raw: Tensor) -> Tensor:
        open_ = torch.rand(len(base), device=base.device) < self.epsilon
        return self.composition.execute(base, torch.where(open_[:, None, None], raw, self.idle(base)))

    def critic_action(self, base: Tensor, raw: Tensor) -> Tensor:
        return self.composition.critic_action(base, raw)

    def idle(self, base: Tensor) -> Tensor:
        return self.composition.idle(base)


@dataclass
class Trajectory:
    """What one episode saw and did."""

    obs: list[np.ndarray] = field(default_factory=list)  # (Do,) newest frame at every decision, without its pictures
    actions: list[np.ndarray] = field(default_factory=list)  # (Ta, Da) as sent to the environment


@dataclass(frozen=True)
class Played:
    """Episodes with their trajectories."""

    episodes: Episodes
    trajectories: dict[int, Trajectory]  # by seed


@dataclass(frozen=True)
class Comparison:
    """Base and refined policy on the same seeds."""

    base: Played
    refined: Played


class Recorded(AroundVector):
    """Environments that keep the trajectory of every episode they run, by its seed.

    A reset forgets the episodes that begin anew after it, those of its seed and later ones, and keeps earlier ones.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.trajectories: dict[int, Trajectory] = {}

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.trajectories = {k: played for k, played in self.trajectories.items() if k < seed}
        self._window = self.env.reset(seed, episodes)
        return self._window

    def step(self, action: Tensor) -> Step:
        newest: Any = self._window[:, -1]
        state = newest if isinstance(newest, Tensor) else newest["state"]
        obs, actions = state.cpu().numpy(), action.cpu().numpy()
        out = self.env.step(action)
        for episode, o, a in zip(out.episode.tolist(), obs, actions, strict=True):
            trajectory = self.trajectories.setdefault(episode, Trajectory())
            trajectory.obs.append(o.copy())
            trajectory.actions.append(a.copy())
        self._window = out.window
        return out
