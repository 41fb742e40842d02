"""Policy Decorator (the paper's method): a residual that is bounded and introduced progressively."""

from dataclasses import dataclass, field, replace
from typing import Literal

from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.errors import UserError
from policy_decorator.methods import on_policy
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.auto import MeasuredExploration, bound_of
from policy_decorator.rl.captured import Captured
from policy_decorator.rl.compiled import Compiled
from policy_decorator.rl.demonstrations import Mixed, Share, as_source, transitions
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.replay import DataSource, NStep, Replay
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.selection import Proposer, Selection, ValueSelected
from policy_decorator.rl.td3 import TD3, Noisy, TD3Config
from policy_decorator.rollout import Collector
from policy_decorator.types import Gate


@dataclass(frozen=True)
class Config:
    bound: float | Literal["auto"] = 0.1
    """alpha: largest correction in every action dimension (paper Table 8); auto: from the demonstrations."""
    horizon: int | Literal["auto"] = 100_000
    """H: environment steps over which the residual is introduced (paper Table 8); auto: as success allows it."""
    opening_steps: int = 10_000
    """Environment steps over which `horizon = auto` introduces the residual if success never falls."""
    base_only_warmup: bool = False
    """Let the base act alone during warm-up and count H from its end (the released code counts from step 0)."""
    actor_sees: Literal["obs", "obs+base"] = "obs"
    """Input of the residual (Sec. 4.3, Fig. 19)."""
    critic_sees: Literal["sum", "concat", "residual"] = "sum"
    """Action input of the critic (Sec. 4.3, Fig. 20)."""
    standardize_obs: bool = False
    """Standardise what the networks see with the demonstrations' statistics (not in the paper)."""
    noise_hold: int = 1
    """Decisions for which the exploration noise stays the same (1 in the paper)."""
    n_step: int = 1
    """Decisions per return (1 in the paper)."""
    reward_shift: float = -1.0
    """Added to success (0 or 1): -1 as in the released code."""
    demo_share: float = 0.0
    """Share of every batch that comes from the demonstrations, where there are any (0 in the paper)."""
    demo_share_end: float | None = None
    """Where that share goes, in a straight line from the end of the warm-up on (arXiv:2603.10263); None: it stays."""
    demo_share_steps: int | None = None
    """Environment steps until it is there."""
    nets: NetConfig = field(default_factory=NetConfig)
    """Sizes of the residual and its critics."""
    learner: Literal["sac", "td3", "ppo"] = "sac"
    """How they learn (ppo: App. D.3; td3 is not in the paper)."""
    sac: SACConfig = field(default_factory=SACConfig)
    """Settings of sac; td3 shares those that are not about entropy, ppo gamma, lr and max_grad_norm."""
    td3: TD3Config = field(default_factory=TD3Config)
    """Settings of td3 alone."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Settings of ppo alone."""
    select_by_value: Literal["never", "training", "evaluation", "acting", "acting+target"] = "never"
    """Where the residual speaks only if the critics prefer that to the base alone (arXiv:2311.02198, 2507.07986)."""
    select_samples: int = 1
    """Residuals the critics choose among at a decision of training, with `select_by_value` (EXPO)."""

    def __post_init__(self) -> None:
        subset, critics = self.sac.critic_subset, self.nets.critics
        if subset is not None and not 1 <= subset <= critics:
            raise UserError(f"critic_subset must be between 1 and the number of critics ({critics}), got {subset}.")
        if (self.demo_share_end is None) != (self.demo_share_steps is None):
            raise UserError("demo_share_end and demo_share_steps go together: where the share goes, and how slowly.")
        if self.demo_share_end is not None and self.demo_share == 0:
            raise UserError("demo_share_end needs a demo_share to begin with.")
        if self.select_samples > 1 and self.select_by_value in ("never", "evaluation"):
            raise UserError("select_samples needs select_by_value = training, acting or acting+target.")
        if self.learner == "td3" and self.nets.initial_std is not None:
            raise UserError("initial_std is of sac and ppo: td3 explores with exploration_std.")
        own = {"demo_share": 0.0, "n_step": 1, "noise_hold": 1, "select_by_value": "never"}
        if self.learner == "ppo" and (foreign := [name for name, value in own.items() if getattr(self, name) != value]):
            raise UserError(
                f"PPO learns from what its policy does by itself, one decision after the other: leave out "
                f"{', '.join(foreign)}, or begin with the preset ppo."
            )


def build(cfg: Config, p: Problem) -> Run:
    bound = _bound(cfg, p)
    residual, monitor = Residual(bound, cfg.actor_sees, cfg.critic_sees), Monitor()
    if cfg.learner == "ppo":
        return on_policy.build(cfg, p, residual, _gate(cfg, p, monitor), monitor)
    actor, critics = _networks(cfg, p)
    selection = Selection(residual, cfg.sac.actor_value)
    shown = replace(residual, actor_sees="obs+base")  # whoever is chosen by value is shown both
    where = cfg.select_by_value.replace("acting", "training+evaluation")
    learner, explores = _learner(cfg, p, actor, critics, residual, selection if "target" in where else None)
    gate, policy = _gate(cfg, p, monitor), DecoratedPolicy(p.base, actor, residual)
    collector = Collector(p.env, p.base, shown if "training" in where else residual, gate, cfg.reward_shift, p.seed)
    if "training" in where:
        explores = ValueSelected(explores, critics, selection, cfg.select_samples)
    if "evaluation" in where:
        policy = DecoratedPolicy(p.base, ValueSelected(actor, critics, selection), shown)
    replay = Replay(p.capacity)
    return Run(
        collector=collector,
        learner=learner,
        explorer=Explorer(explores, cfg.noise_hold),
        replay=replay,
        intake=NStep(cfg.n_step, cfg.sac.gamma),
        data=_data(cfg, p, replay, collector, bound),
        monitor=monitor,
        policy=policy,
        update=_update(p, learner),
    )


def _learner(
    cfg: Config, p: Problem, actor: TanhGaussian, critics: Critics, residual: Residual, selection: Selection | None
) -> tuple[SAC | TD3, Proposer]:
    """And the actor as it explores."""
    if cfg.learner == "td3":
        return TD3(actor, critics, residual, cfg.sac, cfg.td3, selection), Noisy(actor, cfg.td3.exploration_std)
    return SAC(actor, critics, residual, p.action_size, cfg.sac, selection), actor


def _update(p: Problem, learner: SAC | TD3) -> Captured | Compiled | None:
    compiled = Compiled(learner) if p.compiled else None
    if p.cuda_graphs:
        return Captured(learner, compiled.step if compiled else learner.step)
    return compiled


def _bound(cfg: Config, p: Problem) -> float:
    if cfg.bound != "auto":
        return cfg.bound
    if p.demonstrated is None:
        raise UserError("bound = auto is read from demonstrations: give them (demos), or a number as the bound.")
    return bound_of(p.demonstrated)


def _gate(cfg: Config, p: Problem, monitor: Monitor) -> Gate:
    if cfg.horizon == "auto":
        return MeasuredExploration(monitor, p.warmup_steps, cfg.opening_steps)
    return ProgressiveExploration(cfg.horizon, start=p.warmup_steps if cfg.base_only_warmup else 0)


def _networks(cfg: Config, p: Problem) -> tuple[TanhGaussian, Critics]:
    seen = p.obs_size + (p.action_size if cfg.actor_sees == "obs+base" else 0)
    scored = p.action_size * (2 if cfg.critic_sees == "concat" else 1)
    actor, critics = TanhGaussian(seen, p.chunk, cfg.nets), Critics(p.obs_size, scored, cfg.nets)
    if cfg.standardize_obs and p.obs_statistics is not None:
        for net in (actor, critics):
            net.standardize.set(*p.obs_statistics)
    return actor.to(p.device), critics.to(p.device)


def _data(cfg: Config, p: Problem, replay: Replay, collector: Collector, bound: float) -> DataSource:
    if cfg.demo_share == 0 or p.demonstrated is None:
        return replay
    n_step, gamma, shift = cfg.n_step, cfg.sac.gamma, cfg.reward_shift
    batch = transitions(p.demonstrated, bound, n_step=n_step, gamma=gamma, reward_shift=shift)
    end = cfg.demo_share if cfg.demo_share_end is None else cfg.demo_share_end
    share = Share(cfg.demo_share, end, p.warmup_steps, cfg.demo_share_steps or 0)
    return Mixed(replay, as_source(batch), lambda: share(collector.step))
