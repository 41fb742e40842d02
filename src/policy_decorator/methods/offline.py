"""What methods have in common whose policy acts alone and learns from demonstrations: before and while it acts.

Before the first environment step they may be all there is to learn from (`offline_updates`); from then on they are in
every batch. RLPD, SACfd, Cal-QL, CQL, IQL and AWAC differ in little else than the losses.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch

from policy_decorator.decorator import DecoratedPolicy
from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Alone, Takeover, collector_alone, own_actions, refuse_pictures
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig, compiled_on_cpus, update_of, with_share
from policy_decorator.methods.problem import Learner, Offline, Problem, Run
from policy_decorator.rl.demonstrations import Demonstrated, Mixed, Pooled, as_source, transitions, windows_of
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.offsets import OffsetActor
from policy_decorator.rl.replay import DataSource, NStep, Replay
from policy_decorator.rl.weighted import BoundedGaussian
from policy_decorator.rollout import Collector
from policy_decorator.types import Transition

UNTRAINED_STD = 0.5
"""Standard deviation of an untrained policy that imitates, or of a transformer, where `nets.initial_std` says nothing
else."""

LEAST_LOG_STD = -5.0
"""Of a policy that imitates: demonstrations that are all alike would make it ever surer of itself (IQL's code)."""


@dataclass(frozen=True)
class FromDemonstrations(OffPolicyConfig):
    """Settings of these methods."""

    OWN = ("learner", "mix", "offline_updates", "offline_data", *DEMO_SHARE)

    demo_share: float = 0.5
    """Share of every batch that comes from the demonstrations."""
    mix: Literal["share", "pool"] = "share"
    """share: demo_share of every batch is demonstrated; pool: demonstrations lie in the replay among own decisions, and
    stay there."""
    offline_updates: int = 0
    """Updates on demonstrations alone before the first environment step."""
    offline_data: Literal["all", "successes"] = "all"
    """Which of the episodes in the demonstrations' file are learned from: all, or those that succeed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learner != "sac":
            raise UserError(f"This method has a learner of its own: leave out learner = {self.learner}.")
        if self.mix == "pool" and (self.demo_share, self.demo_share_end) != (FromDemonstrations.demo_share, None):
            raise UserError("demo_share and demo_share_end are of mix = share: in a pool all rows are drawn alike.")
        if self.offline_updates < 0:
            raise UserError(f"offline_updates must be at least 0, got {self.offline_updates}.")

    @classmethod
    def taking(cls, **common: Any) -> Self:
        """LayerNorm is what tells RLPD from the others."""
        made = super().taking(**common)
        return replace(made, nets=replace(made.nets, critic_layer_norm=False))

    @property
    def uses_demonstrations(self) -> bool:
        return True

    @property
    def tunes_base(self) -> bool:
        return self.looks_at == "window"

    @property
    def looks_at(self) -> Literal["newest", "window"]:
        """The frames that the actor sees."""
        return "newest"

    @property
    def knows(self) -> bool:
        """Whether the actor acts itself from the first step on, although nothing was learned offline."""
        return False


def shown_to(method: str, cfg: FromDemonstrations, p: Problem) -> Demonstrated:
    """The demonstrated actions as the actor's own, with the frames it looks at.

    Raises:
        UserError: no demonstrations, none of which the method may learn; a task with pictures.
    """
    refuse_pictures(method, p)
    shown = own_actions(p.demonstrated)
    if shown is None:
        raise UserError(f"{method} learns from demonstrations: give them (--demos, or demos=...).")
    shown = successes(shown) if cfg.offline_data == "successes" else shown
    if len(shown.obs) < 2:
        raise UserError(f"{method} learns from demonstrations, and these hold no episode that it may learn from.")
    if cfg.looks_at == "newest":
        return shown
    return replace(shown, obs=windows_of(shown, shown.obs, p.base.context).flatten(1))


def successes(d: Demonstrated) -> Demonstrated:
    """The episodes that succeed."""
    parts = d.success.split(d.lengths.tolist())
    solved = torch.tensor([bool(x.any()) for x in parts], device=d.obs.device)
    rows = solved.repeat_interleave(d.lengths)
    columns = {name: getattr(d, name)[rows] for name in ("obs", "action", "base", "success")}
    return replace(d, **columns, lengths=d.lengths[solved])


def source_of(cfg: FromDemonstrations, shown: Demonstrated) -> Replay:
    """Its transitions, to sample from. Raises UserError where there is none."""
    batch = transitions(shown, 1.0, n_step=cfg.n_step, gamma=cfg.sac.gamma, reward_shift=cfg.reward_shift)
    if not len(batch.reward):
        raise UserError("The demonstrations hold no decision whose outcome is known: record longer episodes.")
    return as_source(batch)


def mixed(cfg: FromDemonstrations, p: Problem, replay: Replay, demos: Replay, collector: Collector) -> DataSource:
    """Own decisions and demonstrated ones, as `mix` says."""
    if cfg.mix == "pool":
        return Mixed(replay, demos, Pooled(replay, demos))
    return with_share(cfg, p, replay, demos, collector)


def imitator(cfg: FromDemonstrations, p: Problem, *, clamps: bool = True) -> BoundedGaussian:
    """A policy for losses that imitate; its parameters and its mode are those of a `TanhGaussian`."""
    std = UNTRAINED_STD if cfg.nets.initial_std is None else cfg.nets.initial_std
    nets = replace(cfg.nets, initial_std=std, log_std_min=max(cfg.nets.log_std_min, LEAST_LOG_STD))
    actor = BoundedGaussian(p.obs_size, p.chunk, nets, clamps=clamps)
    return standardized(cfg, p, actor).to(p.device)


def value_of(cfg: OffPolicyConfig, p: Problem, nets: NetConfig | None = None) -> Critics:
    """A network from observations to values."""
    return standardized(cfg, p, Critics(p.obs_size, 0, replace(nets or cfg.nets, critics=1))).to(p.device)


def standardized(cfg: OffPolicyConfig, p: Problem, net: Any) -> Any:
    """The network, with the demonstrations' statistics where `cfg` wants them."""
    if cfg.standardize_obs and p.obs_statistics is not None:
        net.standardize.set(*p.obs_statistics)
    return net


def run_of(
    cfg: FromDemonstrations,
    p: Problem,
    demos: Replay,
    learner: Any,
    actor: TanhGaussian | OffsetActor,
    *,
    offline_learner: Any = None,
    offline_demos: Replay | None = None,
    kind: Any = Transition,
    intake: Any = None,
) -> Run:
    """The run of these parts.

    `offline_learner`: what learns before the first environment step, where it is not `learner` itself; it learns the
    same networks. `kind`: of the replay's rows, which `intake` makes.
    """
    collector, replay = collector_alone(cfg, p, cfg.looks_at), Replay(p.capacity, kind)
    policy: DecoratedPolicy = Alone(p.base, actor, Takeover())
    if cfg.looks_at == "window":
        policy = FineTuned(p.base, actor, Takeover(), from_base=cfg.knows)
        p = compiled_on_cpus(p)
    before = copy.copy(learner) if offline_learner is None else offline_learner  # the same parts, and its own count
    offline = None
    if cfg.offline_updates:
        data = demos if offline_demos is None else offline_demos
        offline = Offline(cfg.offline_updates, before, data, cfg.sac.batch_size, update_of(p, before))
    own: Learner = learner
    return Run(
        collector=collector,
        learner=own,
        explorer=Explorer(actor, cfg.noise_hold),
        replay=replay,
        intake=intake or NStep(cfg.n_step, cfg.sac.gamma),
        data=mixed(cfg, p, replay, demos, collector),
        monitor=Monitor(),
        policy=policy,
        update=update_of(p, learner),
        offline=offline,
        knows=cfg.knows,
    )
