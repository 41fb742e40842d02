"""PPO fine-tuning (paper App. D.3): every parameter of the base policy is tuned by PPO, without a residual.

    pi(a | o) = N(base(o), std^2)

BeT's bin is the likeliest one, and its centre stays where it is: gradients come to the offset, and to all that is in
front of it.

The paper does not say: any setting of its PPO. Those here are a residual's, with a smaller deviation to begin with, a
lower learning rate, and first rounds in which only the value learns, so that the base is not lost at once.
"""

from dataclasses import dataclass, field
from typing import Any

from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.on_policy import OnPolicyConfig, check_tuning, tuning, value_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.gaussian import GaussianActor, GaussianPPO
from policy_decorator.rl.ppo import Rollouts
from policy_decorator.rl.sac import SACConfig

INITIAL_STD = 0.1
"""Standard deviation of the actions at the beginning, where `nets.initial_std` says nothing else (DPPO's floor)."""


@dataclass(frozen=True)
class Config(OnPolicyConfig):
    """Settings of PPO fine-tuning."""

    sac: SACConfig = field(default_factory=lambda: SACConfig(gamma=0.99, lr=1e-4, max_grad_norm=0.5))
    """Read for gamma, the learning rate of policy and value, and the gradient norm at which both are clipped."""
    critic_rounds: int = 2
    """Rounds of updates, from the first one on, in which only the value learns (DPPO's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_rounds < 0:
            raise UserError(f"critic_rounds must be at least 0, got {self.critic_rounds}.")


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: pictures, a warm-up, a base that is not differentiable."""
    check_tuning("ppo-finetuning", p)
    base: Any = p.base
    if not hasattr(base, "deterministic"):
        raise UserError(
            "ppo-finetuning tunes an mlp or a bet of this package. Take dppo for a Diffusion Policy, and the method "
            "policy-decorator for any other base."
        )
    std = INITIAL_STD if cfg.nets.initial_std is None else cfg.nets.initial_std
    actor = GaussianActor(base.deterministic().requires_grad_(True), p.chunk, p.obs_size, std).to(p.device)
    learner = GaussianPPO(actor, value_of(cfg, p), Takeover(), cfg.sac, cfg.ppo, critic_rounds=cfg.critic_rounds)
    return tuning(cfg, p, learner, actor, Rollouts(cfg.ppo.rollout), actor)
