"""Success of the Adroit tasks, told from what a file without success flags holds: observations and rewards.

The observation holds every quantity that the success tests of gymnasium-robotics ask for, laid out as in its
`_get_obs` (envs/adroit_hand), which is the layout of D4RL and DAPG too. Success at step t is a fact about the
state after action t, so it is read from observation t + 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from policy_decorator.envs.task import Task


@dataclass(frozen=True)
class Rule:
    """How one task's success is told."""

    words: str
    solved: Callable[[np.ndarray], np.ndarray]
    """Observations (N, Do) -> (N,) bool, whether the task is solved in that state."""
    reward: float
    """The dense reward of a solved step, with its bonuses, is above this one, and that of any other below."""


def _door(obs: np.ndarray) -> np.ndarray:
    return obs[:, 28] >= 1.35  # hinge, rad


def _pen(obs: np.ndarray) -> np.ndarray:
    near = np.linalg.norm(obs[:, 39:42], axis=1) < 0.075  # pen to target, m
    cosine = (obs[:, 33:36] * obs[:, 36:39]).sum(axis=1)  # of the pen's direction and the wanted one
    return near & (cosine > 0.95)


# x and y in m of the nail's place in the board; the board moves along z only, and the nail along x and y.
_NAIL_GOAL = np.array([0.0406796, -0.0036236])


def _hammer(obs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(obs[:, 42:44] - _NAIL_GOAL, axis=1) < 0.01  # nail to its place, m


def _relocate(obs: np.ndarray) -> np.ndarray:
    return np.linalg.norm(obs[:, 36:39], axis=1) < 0.1  # ball to target, m


# Bonuses of the dense rewards, solved and at most otherwise: door 20 and 10, pen 60 and 10, hammer 102 and 27,
# relocate 10 and 1. What distances and speeds add or take is far smaller, whatever its sign (it has changed).
RULES: dict[tuple[int, int], Rule] = {
    (39, 28): Rule("hinge angle >= 1.35 rad", _door, 15.0),
    (45, 24): Rule("pen within 7.5 cm and cosine 0.95 of the target", _pen, 35.0),
    (46, 26): Rule("nail within 1 cm of its place", _hammer, 65.0),
    (39, 30): Rule("ball within 10 cm of the target", _relocate, 5.5),
}
"""(observation size, action size), which no two of the four tasks share -> rule."""


def rule_for(task: Task) -> Rule | None:
    """The rule of an Adroit task, None for any other."""
    return RULES.get((task.obs_size, task.action_size))


def derive(rule: Rule, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """(L,) bool, success after each action of one episode of observations (L, Do) and rewards (L,).

    The state after the last action is in no observation: there the reward tells.
    """
    success = np.zeros(len(observations), dtype=bool)
    success[:-1] = rule.solved(observations[1:])
    success[-1:] = rewards[-1:] > rule.reward
    return success


def words(rule: Rule | None) -> str:
    """For `details["success"]` of demonstrations."""
    return "unknown" if rule is None else f"derived: {rule.words} after the action; at the last step, the reward"
