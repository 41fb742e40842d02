"""Rewards in units that do not depend on the task."""

from typing import Any

import numpy as np
import torch
from gymnasium.wrappers.utils import RunningMeanStd
from torch import Tensor

EPSILON = 1e-8


class RewardScale:
    """Divides rewards by the standard deviation of the discounted return so far, over all rollouts.

        R_t = r_t + gamma (1 - first_t) R_(t - 1),   scaled r_t = clip(r_t / std(R), -limit, limit)

    The mean is not taken away. Its statistics are Gymnasium's; a rollout counts before it is scaled.
    """

    def __init__(self, gamma: float, limit: float) -> None:
        self.gamma, self.limit = gamma, limit
        self.statistics = RunningMeanStd()
        self.running = np.zeros(0)  # (B,) R of the last decision, zero where its episode ended

    def __call__(self, reward: Tensor, done: Tensor) -> Tensor:
        """(T, B) each, `done` 1.0 where an episode ended -> (T, B)."""
        rewards, ended = reward.double().cpu().numpy(), done.double().cpu().numpy()
        running = self.running if len(self.running) else np.zeros(rewards.shape[1])
        returns = np.empty_like(rewards)
        for t in range(len(rewards)):
            returns[t] = rewards[t] + self.gamma * running
            running = returns[t] * (1 - ended[t])
        self.running = running
        self.statistics.update(returns.flatten())
        return (reward / float(np.sqrt(self.statistics.var + EPSILON))).clamp(-self.limit, self.limit)

    def state_dict(self) -> dict[str, Any]:
        known = self.statistics
        numbers = torch.tensor([float(known.mean), float(known.var), float(known.count)], dtype=torch.float64)
        return {"numbers": numbers, "running": torch.from_numpy(self.running)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        known = self.statistics
        known.mean, known.var, known.count = (np.float64(x) for x in state["numbers"].tolist())
        self.running = state["running"].cpu().numpy().copy()
