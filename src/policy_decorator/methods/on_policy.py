"""Learning from whole rollouts of the policy as it is, instead of a replay; and PPO's residual (paper App. D.3)."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from policy_decorator.decorator import DecoratedPolicy, Residual
from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Takeover, collector_alone, refuse_pictures
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.dppo import DPPO
from policy_decorator.rl.exploration import Explorer, Sampler
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, TanhGaussian
from policy_decorator.rl.ppo import PPO, PPOConfig, Rollouts
from policy_decorator.rl.replay import Replay
from policy_decorator.rollout import Collector
from policy_decorator.types import Actor, Gate

if TYPE_CHECKING:
    from policy_decorator.methods.policy_decorator import ResidualConfig

INITIAL_STD = 0.5
"""Standard deviation (before tanh) of the untrained residual, where `nets.initial_std` says nothing else."""


@dataclass(frozen=True)
class OnPolicyConfig(OffPolicyConfig):
    """Settings of methods that know PPO only. Those of a replay are there, and must be left as they are."""

    BATCHES = False
    OWN = ("learner", "reward_shift", "success_ends_value", "sac", "ppo", "n_step", "noise_hold", *DEMO_SHARE)

    reward_shift: float = 0.0
    """Added to success (0 or 1)."""
    learner: Literal["sac", "td3", "ppo"] = "ppo"
    """How it learns: with ppo."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of ppo alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = {"learner": "ppo", "n_step": 1, "noise_hold": 1, "demo_share": 0.0}
        if foreign := [name for name, value in needed.items() if getattr(self, name) != value]:
            raise UserError(f"It learns with PPO, from what its policy does by itself: leave out {', '.join(foreign)}.")


@dataclass(frozen=True)
class OnPolicyRun(Run):
    """Updates come in rounds, each time the environments have filled a rollout."""

    def learn(self, updates: int) -> None:
        """A round if one is due; how many gradient steps it has is PPO's to say."""
        if isinstance(self.intake, Rollouts) and isinstance(self.learner, PPO | DPPO) and self.intake.full:
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
        collector=Collector(
            p.env, p.base, residual, gate, cfg.reward_shift, p.seed, success_ends_value=cfg.success_ends_value
        ),
        learner=PPO(actor, value, residual, cfg.sac, cfg.ppo),
        explorer=Explorer(actor),
        replay=replay,
        intake=Rollouts(cfg.ppo.rollout),
        data=replay,
        monitor=monitor,
        policy=DecoratedPolicy(p.base, actor, residual),
    )


def check_tuning(method: str, p: Problem) -> None:
    """Raises UserError: pictures, a warm-up in which something else than the policy would act."""
    refuse_pictures(method, p)
    if p.warmup_steps:
        raise UserError(f"{method} learns from what its policy does, from the first step on: give --warmup-steps 0.")


def value_of(cfg: OnPolicyConfig, p: Problem) -> Critics:
    """A value function of the newest frame."""
    value = Critics(p.obs_size, 0, replace(cfg.nets, critics=1)).to(p.device)
    if cfg.standardize_obs and p.obs_statistics is not None:
        value.standardize.set(*p.obs_statistics)
    return value


def tuning(
    cfg: OnPolicyConfig, p: Problem, learner: PPO | DPPO, explores: Sampler, intake: Rollouts, tuned: Actor
) -> Run:
    """The run of a base policy that is tuned, `tuned`, and acts alone: by `explores` in training."""
    replay = Replay(0)
    return OnPolicyRun(
        collector=collector_alone(cfg, p, sees="window"),
        learner=learner,
        explorer=Explorer(explores),
        replay=replay,
        intake=intake,
        data=replay,
        monitor=Monitor(),
        policy=FineTuned(p.base, tuned, Takeover()),
    )
