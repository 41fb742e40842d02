"""Policy Decorator (the paper's method): a residual that is bounded and introduced progressively."""

from dataclasses import dataclass, field, replace
from typing import Literal

from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.encoders import Encoder, EncoderConfig
from policy_decorator.errors import UserError
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.auto import MeasuredExploration, bound_of
from policy_decorator.rl.captured import Captured
from policy_decorator.rl.compiled import Compiled
from policy_decorator.rl.demonstrations import Mixed, Share, as_source, transitions
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.replay import DataSource, NStep, Replay
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.selection import Proposer, Selection, ValueSelected
from policy_decorator.rl.sight import (
    EmbeddedNStep,
    Embedding,
    Eye,
    SeeingSAC,
    SeeingTD3,
    check_room,
    embedding_of,
    seen,
    through,
)
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
    learner: Literal["sac", "td3"] = "sac"
    """How they learn (td3 is not in the paper)."""
    sac: SACConfig = field(default_factory=SACConfig)
    """Settings of sac; td3 shares those that are not about entropy."""
    td3: TD3Config = field(default_factory=TD3Config)
    """Settings of td3 alone."""
    select_by_value: Literal["never", "training", "evaluation", "acting", "acting+target"] = "never"
    """Where the residual speaks only if the critics prefer that to the base alone (arXiv:2311.02198, 2507.07986)."""
    select_samples: int = 1
    """Residuals the critics choose among at a decision of training, with `select_by_value` (EXPO)."""
    sees: Literal["pictures", "embedding"] = "pictures"
    """What residual and critics see of pictures: them, through a CNN of their own, or the frozen base's embedding."""
    eyes: EncoderConfig = field(default_factory=EncoderConfig)
    """That CNN."""

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
            raise UserError("initial_std is of sac: td3 explores with exploration_std.")


def build(cfg: Config, p: Problem) -> Run:
    bound = _bound(cfg, p)
    residual, monitor = Residual(bound, cfg.actor_sees, cfg.critic_sees), Monitor()
    eye, obs_size = _eye(cfg, p)
    actor, critics = _networks(cfg, p, obs_size)
    selection = Selection(residual, cfg.sac.actor_value)
    shown = replace(residual, actor_sees="obs+base")  # whoever is chosen by value is shown both
    where = cfg.select_by_value.replace("acting", "training+evaluation")
    learner, explores = _learner(cfg, p, actor, critics, residual, selection if "target" in where else None, eye)
    exploring, acting = (explores, residual), (actor, residual)
    if "training" in where:
        exploring = ValueSelected(explores, critics, selection, cfg.select_samples), shown
    if "evaluation" in where:
        acting = ValueSelected(actor, critics, selection), shown
    explores, composition = through(eye, *exploring)
    collector = Collector(p.env, p.base, composition, _gate(cfg, p, monitor), cfg.reward_shift, p.seed)
    replay, returns = Replay(p.capacity), (cfg.n_step, cfg.sac.gamma)
    return Run(
        collector=collector,
        learner=learner,
        explorer=Explorer(explores, cfg.noise_hold),
        replay=replay,
        nstep=EmbeddedNStep(*returns, eye) if isinstance(eye, Embedding) else NStep(*returns),
        data=_data(cfg, p, replay, collector, bound, eye),
        monitor=monitor,
        policy=DecoratedPolicy(p.base, *through(eye, *acting)),
        update=_update(p, learner),
    )


def _eye(cfg: Config, p: Problem) -> tuple[Eye | None, int]:
    """What makes vectors of frames, and their size; None where observations are vectors."""
    if not p.shapes:
        return None, p.obs_size
    if cfg.sees == "embedding":
        eye = embedding_of(p.base, p.env.reset(p.seed)[:, -1])
    else:
        check_room(p.shapes, p.capacity, p.device)
        eye = Encoder(cfg.eyes, p.shapes, p.obs_size).to(p.device)
    return eye, eye.size


def _learner(
    cfg: Config,
    p: Problem,
    actor: TanhGaussian,
    critics: Critics,
    residual: Residual,
    selection: Selection | None,
    eye: Eye | None,
) -> tuple[SAC | TD3, Proposer]:
    """And the actor as it explores."""
    encoder = eye if isinstance(eye, Encoder) else None
    if cfg.learner == "td3":
        td3 = actor, critics, residual, cfg.sac, cfg.td3, selection
        learner = TD3(*td3) if encoder is None else SeeingTD3(*td3, encoder=encoder)
        return learner, Noisy(actor, cfg.td3.exploration_std)
    sac = actor, critics, residual, p.action_size, cfg.sac, selection
    return SAC(*sac) if encoder is None else SeeingSAC(*sac, encoder=encoder), actor


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


def _networks(cfg: Config, p: Problem, obs_size: int) -> tuple[TanhGaussian, Critics]:
    seen = obs_size + (p.action_size if cfg.actor_sees == "obs+base" else 0)
    scored = p.action_size * (2 if cfg.critic_sees == "concat" else 1)
    actor, critics = TanhGaussian(seen, p.chunk, cfg.nets), Critics(obs_size, scored, cfg.nets)
    if cfg.standardize_obs and p.obs_statistics is not None:
        for net in (actor, critics):
            net.standardize.set(*p.obs_statistics)
    return actor.to(p.device), critics.to(p.device)


def _data(cfg: Config, p: Problem, replay: Replay, collector: Collector, bound: float, eye: Eye | None) -> DataSource:
    if cfg.demo_share == 0 or p.demonstrated is None:
        return replay
    n_step, gamma, shift = cfg.n_step, cfg.sac.gamma, cfg.reward_shift
    shown, frames = seen(p.demonstrated, eye)
    batch = transitions(shown, bound, n_step=n_step, gamma=gamma, reward_shift=shift)
    end = cfg.demo_share if cfg.demo_share_end is None else cfg.demo_share_end
    share = Share(cfg.demo_share, end, p.warmup_steps, cfg.demo_share_steps or 0)
    return Mixed(replay, as_source(batch, frames), lambda: share(collector.step))
