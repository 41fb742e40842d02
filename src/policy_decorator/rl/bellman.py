"""What Q functions are regressed on, and how often the actor learns beside them."""

from abc import ABC, abstractmethod

from torch import Tensor

from policy_decorator.rl.settings import SACConfig
from policy_decorator.types import Transition


def bootstrapped(b: Transition, gamma: float, value: Tensor) -> Tensor:
    """(B,): the reward of a transition and `value` (B,), what lies behind it."""
    return b.reward + gamma**b.decisions * (1 - b.terminated) * value


def regression(q: Tensor, goal: Tensor) -> Tensor:
    """(n_critics, B), (B,) -> mean squared error, summed over critics."""
    return ((q - goal) ** 2).mean(dim=1).sum()


class Updating(ABC):
    """Counts its updates. The actor takes a step at every `cfg.actor_every`th."""

    cfg: SACConfig
    updates: int

    @abstractmethod
    def step(self, b: Transition, with_actor: bool) -> dict[str, Tensor]:
        """All of an update that is done with tensors."""

    def begun(self) -> bool:
        """Count one more update; whether the actor takes a step in it."""
        self.updates += 1
        return self.updates % self.cfg.actor_every == 0

    def update(self, b: Transition) -> dict[str, Tensor]:
        """One gradient step of each loss that is due."""
        return self.step(b, self.begun())
