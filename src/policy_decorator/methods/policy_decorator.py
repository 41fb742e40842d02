"""Policy Decorator (the paper's method): a residual that is bounded and introduced progressively."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.errors import UserError
from policy_decorator.methods import on_policy
from policy_decorator.methods.off_policy import OffPolicyConfig, assemble, eye_of, learner_of, networks
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.auto import BOUND_SHARE, MeasuredExploration, bound_of
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.scale import ProgressiveScale
from policy_decorator.rl.selection import Selection, ValueSelected
from policy_decorator.rl.sight import through
from policy_decorator.rollout import Collector


@dataclass(frozen=True)
class ResidualConfig(OffPolicyConfig):
    """Settings of every residual."""

    actor_sees: Literal["obs", "obs+base"] = "obs"
    """Input of the residual (Sec. 4.3, Fig. 19)."""
    critic_sees: Literal["sum", "concat", "residual"] = "sum"
    """Action input of the critic (Sec. 4.3, Fig. 20)."""
    base_only_warmup: bool = False
    """Let the base act alone during warm-up and count H from its end (the released code counts from step 0)."""
    select_by_value: Literal["never", "training", "evaluation", "acting", "acting+target"] = "never"
    """Where the residual speaks only if the critics prefer that to the base alone (arXiv:2311.02198, 2507.07986)."""
    select_samples: int = 1
    """Residuals the critics choose among at a decision of training, with `select_by_value` (EXPO)."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of ppo alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select_samples > 1 and self.select_by_value in ("never", "evaluation"):
            raise UserError("select_samples needs select_by_value = training, acting or acting+target.")
        own = {"demo_share": 0.0, "n_step": 1, "noise_hold": 1, "select_by_value": "never"}
        if self.learner == "ppo" and (foreign := [name for name, value in own.items() if getattr(self, name) != value]):
            raise UserError(
                f"PPO learns from what its policy does by itself, one decision after the other: leave out "
                f"{', '.join(foreign)}, or begin with the preset ppo."
            )

    @property
    def asks_about_demonstrations(self) -> bool:
        return self.uses_demonstrations

    @classmethod
    def taking(cls, **common: Any) -> Self:
        """A residual's penalty and entropy too."""
        return cls(**{name: value for name, value in common.items() if name not in cls.OWN})


@dataclass(frozen=True)
class Config(ResidualConfig):
    """Settings of Policy Decorator."""

    bound: float | Literal["auto", "tolerance"] = 0.1
    """alpha: largest correction in every action dimension (paper Table 8); auto: from the demonstrations; tolerance:
    the noise that costs the base half of its success, measured in episodes before the run."""
    bound_share: float | None = None
    """Factor of `bound = auto` (None: 0.7) or `bound = tolerance` (None: 1)."""
    horizon: int | Literal["auto"] = 100_000
    """H: environment steps over which the residual is introduced (paper Table 8); auto: as success allows it."""
    opening_steps: int = 10_000
    """Environment steps over which `horizon = auto` introduces the residual if success never falls."""
    introduced_by: Literal["chance", "scale"] = "chance"
    """What epsilon is: with which probability the residual speaks at a decision (Eq. 1), or how loudly at every one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.introduced_by == "chance":
            return
        if self.learner != "sac" or self.select_by_value != "never":
            raise UserError("introduced_by = scale needs learner = sac and select_by_value = never: or give chance.")
        if self.horizon != "auto" and not self.base_only_warmup:
            raise UserError(
                "introduced_by = scale needs base_only_warmup: the warm-up's random corrections would not be small."
            )

    @property
    def uses_demonstrations(self) -> bool:
        return super().uses_demonstrations or self.bound == "auto"


def build(cfg: Config, p: Problem) -> Run:
    bound = _bound(cfg, p)
    residual, monitor = Residual(bound, cfg.actor_sees, cfg.critic_sees), Monitor()
    if cfg.learner == "ppo":
        return on_policy.build(cfg, p, residual, _schedule(cfg, p, monitor), monitor)
    eye, obs_size = eye_of(cfg, p)
    seen = obs_size + (p.action_size if cfg.actor_sees == "obs+base" else 0)
    actor, critics = networks(cfg, p, seen, obs_size, p.action_size * (2 if cfg.critic_sees == "concat" else 1))
    selection = Selection(residual, cfg.sac.actor_value)
    shown = replace(residual, actor_sees="obs+base")  # whoever is chosen by value is shown both
    where = cfg.select_by_value.replace("acting", "training+evaluation")
    learner, explores = learner_of(cfg, p, actor, critics, residual, selection if "target" in where else None, eye)
    exploring, acting = (explores, residual), (actor, residual)
    if "training" in where:
        exploring = ValueSelected(explores, critics, selection, cfg.select_samples), shown
    if "evaluation" in where:
        acting = ValueSelected(actor, critics, selection), shown
    explores, composition = through(eye, *exploring)
    schedule = _schedule(cfg, p, monitor)
    gate = ProgressiveScale(schedule, actor) if cfg.introduced_by == "scale" else schedule
    ends = cfg.success_ends_value
    collector = Collector(p.env, p.base, composition, gate, cfg.reward_shift, p.seed, success_ends_value=ends)
    policy = DecoratedPolicy(p.base, *through(eye, *acting))
    parts = {"collector": collector, "learner": learner, "explores": explores, "policy": policy}
    return assemble(cfg, p, **parts, monitor=monitor, bound=bound, eye=eye)


def _bound(cfg: Config, p: Problem) -> float:
    if cfg.bound == "auto":
        if p.demonstrated is None:
            raise UserError("bound = auto is read from demonstrations: give them (demos), or bound = tolerance.")
        return bound_of(p.demonstrated, BOUND_SHARE if cfg.bound_share is None else cfg.bound_share)
    if cfg.bound == "tolerance":
        return p.tolerance(cfg.noise_hold) * (1.0 if cfg.bound_share is None else cfg.bound_share)
    return cfg.bound


def _schedule(cfg: Config, p: Problem, monitor: Monitor) -> MeasuredExploration | ProgressiveExploration:
    if cfg.horizon == "auto":
        return MeasuredExploration(monitor, p.warmup_steps, cfg.opening_steps)
    return ProgressiveExploration(cfg.horizon, start=p.warmup_steps if cfg.base_only_warmup else 0)
