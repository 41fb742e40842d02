"""What methods that learn from a replay have in common: settings, and the parts of a run made from them."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

from policy_decorator.encoders import Encoder, EncoderConfig
from policy_decorator.errors import UserError
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.captured import Captured
from policy_decorator.rl.compiled import Compiled, Updated
from policy_decorator.rl.demonstrations import Mixed, Share, as_source, transitions
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.replay import DataSource, NStep, Replay
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.selection import Proposer, Selection
from policy_decorator.rl.sight import (
    EmbeddedNStep,
    Embedding,
    Eye,
    SeeingSAC,
    SeeingTD3,
    check_room,
    embedding_of,
    seen,
)
from policy_decorator.rl.td3 import TD3, Noisy, TD3Config
from policy_decorator.rollout import Collector
from policy_decorator.types import BasePolicy, Composition

DEMO_SHARE = ("demo_share", "demo_share_end", "demo_share_steps")


@dataclass(frozen=True)
class OffPolicyConfig:
    """Settings of every method that learns from a replay."""

    OWN: ClassVar[tuple[str, ...]] = ()
    """Fields that make the method what it is: another method's settings do not decide them."""
    BATCHES: ClassVar[bool] = True
    """Whether an update needs a batch and nothing else, so that one can be tried before there are data."""

    standardize_obs: bool = False
    """Standardise what the networks see with the demonstrations' statistics (not in the paper)."""
    noise_hold: int = 1
    """Decisions for which the exploration noise stays the same (1 in the paper)."""
    n_step: int = 1
    """Decisions per return (1 in the paper)."""
    reward_shift: float = -1.0
    """Added to success (0 or 1): -1 as in the released code."""
    success_ends_value: bool = False
    """Nothing behind a success counts, also where episodes go on (not in the paper): values are as where they end."""
    demo_share: float = 0.0
    """Share of every batch that comes from the demonstrations, where there are any (0 in the paper)."""
    demo_share_end: float | None = None
    """Where that share goes, in a straight line from the end of the warm-up on (arXiv:2603.10263); None: it stays."""
    demo_share_steps: int | None = None
    """Environment steps until it is there."""
    nets: NetConfig = field(default_factory=NetConfig)
    """Sizes of the actor and its critics."""
    learner: Literal["sac", "td3", "ppo"] = "sac"
    """How they learn (ppo: App. D.3, where the method has it; td3 is not in the paper)."""
    sac: SACConfig = field(default_factory=SACConfig)
    """Settings of sac; td3 shares those that are not about entropy, ppo gamma, lr and max_grad_norm."""
    td3: TD3Config = field(default_factory=TD3Config)
    """Settings of td3 alone."""
    sees: Literal["pictures", "embedding"] = "pictures"
    """What actor and critics see of pictures: them, through a CNN of their own, or the frozen base's embedding."""
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
        if self.learner == "td3" and self.nets.initial_std is not None:
            raise UserError("initial_std is of sac and ppo: td3 explores with exploration_std.")

    @classmethod
    def taking(cls, **common: Any) -> Self:
        """These settings from those of another method, but for what is a method's own.

        A preset's penalty is on the residual and its entropy is the residual's: one that acts alone has neither.
        """
        kept = {name: value for name, value in common.items() if name not in cls.OWN}
        if "sac" in kept:
            whole = {"residual_penalty": SACConfig.residual_penalty, "target_entropy": SACConfig.target_entropy}
            kept["sac"] = replace(kept["sac"], **whole)
        return cls(**kept)

    @property
    def on_policy(self) -> bool:
        """Whether it learns only from what its latest policy did."""
        return self.learner == "ppo"

    @property
    def uses_demonstrations(self) -> bool:
        """Whether it learns from demonstrations."""
        return self.demo_share > 0

    @property
    def tunes_base(self) -> bool:
        """Whether a network of the base's kind learns, of which an update takes several times as long."""
        return False

    @property
    def asks_about_demonstrations(self) -> bool:
        """Whether it needs to know what the base would have done in them: a correction is one of the base's action."""
        return False


def eye_of(cfg: OffPolicyConfig, p: Problem) -> tuple[Eye | None, int]:
    """What makes vectors of frames, and their size; None where observations are vectors."""
    if not p.shapes:
        return None, p.obs_size
    if cfg.sees == "embedding":
        eye = embedding_of(p.base, p.env.reset(p.seed)[:, -1])
    else:
        check_room(p.shapes, p.capacity, p.device)
        eye = Encoder(cfg.eyes, p.shapes, p.obs_size).to(p.device)
    return eye, eye.size


def networks(cfg: OffPolicyConfig, p: Problem, shown: int, obs_size: int, scored: int) -> tuple[TanhGaussian, Critics]:
    """An actor that sees `shown` numbers, and critics of `obs_size` and `scored` numbers."""
    actor, critics = TanhGaussian(shown, p.chunk, cfg.nets), Critics(obs_size, scored, cfg.nets)
    if cfg.standardize_obs and p.obs_statistics is not None:
        for net in (actor, critics):
            net.standardize.set(*p.obs_statistics)
    return actor.to(p.device), critics.to(p.device)


def learner_of(
    cfg: OffPolicyConfig,
    p: Problem,
    actor: TanhGaussian,
    critics: Critics,
    composition: Composition,
    selection: Selection | None = None,
    eye: Eye | None = None,
) -> tuple[SAC | TD3, Proposer]:
    """And the actor as it explores."""
    encoder = eye if isinstance(eye, Encoder) else None
    if cfg.learner == "td3":
        td3 = actor, critics, composition, cfg.sac, cfg.td3, selection
        learner = TD3(*td3) if encoder is None else SeeingTD3(*td3, encoder=encoder)
        return learner, Noisy(actor, cfg.td3.exploration_std)
    sac = actor, critics, composition, p.action_size, cfg.sac, selection
    return SAC(*sac) if encoder is None else SeeingSAC(*sac, encoder=encoder), actor


def assemble(
    cfg: OffPolicyConfig,
    p: Problem,
    *,
    collector: Collector,
    learner: SAC | TD3,
    explores: Proposer,
    policy: BasePolicy,
    monitor: Monitor,
    bound: float = 1.0,
    eye: Eye | None = None,
) -> Run:
    """The run of these parts; `bound` is what demonstrated corrections are measured in."""
    replay, returns = Replay(p.capacity), (cfg.n_step, cfg.sac.gamma)
    return Run(
        collector=collector,
        learner=learner,
        explorer=Explorer(explores, cfg.noise_hold),
        replay=replay,
        intake=EmbeddedNStep(*returns, eye) if isinstance(eye, Embedding) else NStep(*returns),
        data=_data(cfg, p, replay, collector, bound, eye),
        monitor=monitor,
        policy=policy,
        update=update_of(p, learner),
    )


def uncompiled(p: Problem) -> Problem:
    """The same, whose updates are neither compiled nor replayed: those that write into the replay."""
    return replace(p, compiled=False, cuda_graphs=False)


def compiled_on_cpus(p: Problem) -> Problem:
    """The same, for updates of a transformer, which draw dropout and clusters: on a GPU they are made as they are."""
    return replace(p, compiled=p.compiled and p.device.type == "cpu", cuda_graphs=False)


def update_of(p: Problem, learner: Updated) -> Captured | Compiled | None:
    """How its updates are made on this machine; None: as they are."""
    compiled = Compiled(learner) if p.compiled else None
    if p.cuda_graphs:
        return Captured(learner, compiled.step if compiled else learner.step)
    return compiled


def _data(
    cfg: OffPolicyConfig, p: Problem, replay: Replay, collector: Collector, bound: float, eye: Eye | None
) -> DataSource:
    if cfg.demo_share == 0 or p.demonstrated is None:
        return replay
    n_step, gamma, shift = cfg.n_step, cfg.sac.gamma, cfg.reward_shift
    shown, frames = seen(p.demonstrated, eye)
    batch = transitions(shown, bound, n_step=n_step, gamma=gamma, reward_shift=shift)
    return with_share(cfg, p, replay, as_source(batch, frames), collector)


def with_share(
    cfg: OffPolicyConfig, p: Problem, own: DataSource, shown: DataSource, collector: Collector
) -> DataSource:
    """Batches from both, as `demo_share` and what belongs to it say."""
    if cfg.demo_share == 0:
        return own
    end = cfg.demo_share if cfg.demo_share_end is None else cfg.demo_share_end
    share = Share(cfg.demo_share, end, p.warmup_steps, cfg.demo_share_steps or 0)
    return Mixed(own, shown, lambda: share(collector.step))
