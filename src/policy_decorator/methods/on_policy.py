"""A residual that PPO learns (paper App. D.3): from whole rollouts of the policy as it is, instead of a replay."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from policy_decorator.decorator import DecoratedPolicy, Residual
from policy_decorator.errors import UserError
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, TanhGaussian
from policy_decorator.rl.ppo import PPO, Rollouts
from policy_decorator.rl.replay import Replay
from policy_decorator.rollout import Collector
from policy_decorator.types import Gate

if TYPE_CHECKING:
    from policy_decorator.methods.policy_decorator import ResidualConfig

INITIAL_STD = 0.5
"""Standard deviation (before tanh) of the untrained residual, where `nets.initial_std` says nothing else."""


@dataclass(frozen=True)
class OnPolicyRun(Run):
    """Updates come in rounds, each time the environments have filled a rollout."""

    def learn(self, updates: int) -> None:
        """A round if one is due; how many gradient steps it has is PPO's to say."""
        if isinstance(self.intake, Rollouts) and isinstance(self.learner, PPO) and self.intake.full:
            self.monitor.learning |= self.learner.learn(*self.intake.take())


def build(cfg: "ResidualConfig", p: Problem, residual: Residual, gate: Gate, monitor: Monitor) -> Run:
    """Raises UserError: a warm-up in which something else than the policy would act, a task with pictures."""
    if p.warmup_steps and not cfg.base_only_warmup:
        raise UserError("PPO cannot learn from random actions: give --warmup-steps 0, or --base-only-warmup.")
    if p.shapes:
        raise UserError("PPO has no eyes here: take --learner sac for a task with pictures.")
    seen = p.obs_size + (p.action_size if cfg.actor_sees == "obs+base" else 0)
    std = INITIAL_STD if cfg.nets.initial_std is None else cfg.nets.initial_std
    actor = TanhGaussian(seen, p.chunk, replace(cfg.nets, initial_std=std)).to(p.device)
    value = Critics(seen, 0, replace(cfg.nets, critics=1)).to(p.device)
    if cfg.standardize_obs and p.obs_statistics is not None:
        for net in (actor, value):
            net.standardize.set(*p.obs_statistics)
    replay = Replay(0)
    return OnPolicyRun(
        collector=Collector(p.env, p.base, residual, gate, cfg.reward_shift, p.seed),
        learner=PPO(actor, value, residual, cfg.sac, cfg.ppo),
        explorer=Explorer(actor),
        replay=replay,
        intake=Rollouts(cfg.ppo.rollout),
        data=replay,
        monitor=monitor,
        policy=DecoratedPolicy(p.base, actor, residual),
    )
