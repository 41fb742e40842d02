"""SAC on the Behavior Transformer itself, by LoRA (paper App. B.4.1): "Basic RL" of its comparison.

    actor    the base, whose attention layers and head have low-rank corrections; the offset is noisy (`rl/offsets.py`)
    critics  an MLP of the newest frame; or a GPT of windows, fresh or as the base's (App. F.5.1)
    update   SAC; the critics may learn first, with the temperature, or without (App. F.5.2)

The base must have been trained with bounded offsets (`pidec imitate bet --bounded-offset`). App. F.2 is
`evaluate_after`, App. F.4 `base_steps`.

The paper does not say: LoRA's settings, the deviation at first, what acts before the first update (here the actor: at
random a base is no use), nor whether dropout stays on (here: as the base has it).
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from policy_decorator.decorator import ProgressiveExploration
from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Nobody, Takeover, refuse_pictures
from policy_decorator.methods.finetuned import INITIAL_STD, FineTuned, Opened, behavior_transformer_of
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig, assemble, compiled_on_cpus
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.offsets import OffsetActor, OffsetSAC
from policy_decorator.rl.replay import NStep
from policy_decorator.rl.windows import BackboneCritics, NewestCritics
from policy_decorator.rollout import Collector
from policy_decorator.types import Transition


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of SAC on a Behavior Transformer. `nets` are the critics'; of the actor, they bound its deviation."""

    OWN = ("learner", *DEMO_SHARE)

    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Of the low-rank corrections."""
    critic: Literal["mlp", "gpt", "pretrained"] = "mlp"
    """What the critics are: an MLP (the paper), a GPT like the base's, or a copy of the base's own (App. F.5.1)."""
    critic_first: int = 0
    """Updates, from the first one on, in which the critics learn and the actor rests (App. F.5.2)."""
    entropy: Literal["learned", "waits", "fixed"] = "learned"
    """The temperature: learned all the time, fixed until the actor learns, or always fixed (App. F.5.2)."""
    base_steps: int = 0
    """Environment steps of every episode that the base takes, and that nothing is learned from (App. F.4: 0 to 120).
    They count as environment steps in every other setting: the more of them, the more updates per own decision."""
    evaluate_after: tuple[int, ...] = ()
    """Updates after which the policy is evaluated, besides `eval_every` (App. F.2: 100 200)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learner != "sac" or self.demo_share:
            raise UserError("sac-lora learns with sac, from its own decisions: leave out learner and demo_share.")
        if min((self.critic_first, self.base_steps, *self.evaluate_after)) < 0:
            raise UserError("critic_first, base_steps and evaluate_after must be at least 0.")

    @property
    def tunes_base(self) -> bool:
        return True


@dataclass(frozen=True)
class BehindBase:
    """Opens when the base has taken its steps of an episode."""

    base_steps: int

    def __call__(self, step: int, episode_step: Tensor) -> Tensor:
        return episode_step >= self.base_steps


class OwnDecisions(NStep):
    """n-step returns of the actor's decisions only: the base's are its very actions."""

    def push(self, t: Transition, done: Tensor) -> Transition | None:
        complete = super().push(t, done)
        if complete is None:
            return None
        own = (complete.raw != complete.base).flatten(1).any(dim=1)
        return Transition(*(x[own] for x in complete)) if own.any() else None


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: pictures, a base that is no Behavior Transformer with bounded offsets; MissingExtra: PEFT."""
    refuse_pictures("sac-lora", p)
    base = behavior_transformer_of("sac-lora", p.base)
    std = INITIAL_STD if cfg.nets.initial_std is None else cfg.nets.initial_std
    actor = OffsetActor(base, cfg.lora, cfg.nets, std).to(p.device)
    composition, first = Takeover(), cfg.base_steps
    how: dict[str, Any] = {"critic_first": cfg.critic_first, "entropy": cfg.entropy}
    run = assemble(
        cfg,
        compiled_on_cpus(p),
        collector=Collector(
            p.env,
            p.base if first else Nobody(p.chunk, p.base.context),
            composition,
            BehindBase(first) if first else ProgressiveExploration(0),
            cfg.reward_shift,
            p.seed,
            sees="window",
            success_ends_value=cfg.success_ends_value,
        ),
        learner=OffsetSAC(actor, _critics(cfg, p, base), composition, p.action_size, cfg.sac, **how),
        explores=actor,
        policy=Opened(p.base, actor, composition, first) if first else FineTuned(p.base, actor, composition),
        monitor=Monitor(composition.idle),
    )
    intake = OwnDecisions(cfg.n_step, cfg.sac.gamma) if first else run.intake
    return replace(run, intake=intake, knows=True)


def _critics(cfg: Config, p: Problem, base: Any) -> nn.Module:
    if cfg.critic == "mlp":
        critics = NewestCritics(p.obs_size, p.action_size, cfg.nets)
        if cfg.standardize_obs and p.obs_statistics is not None:
            critics.standardize.set(*p.obs_statistics)
        return critics.to(p.device)
    backbones = [_backbone(base, cfg.critic == "pretrained") for _ in range(cfg.nets.critics)]
    return BackboneCritics(backbones, base.cfg.gpt_output, p.obs_size, p.action_size, cfg.nets).to(p.device)


def _backbone(base: Any, pretrained: bool) -> nn.Module:
    """The transformer without its head, all of which learns; it sees observations as the base does."""
    one = copy.deepcopy(base) if pretrained else type(base)(base.cfg, base.obs_size, base.action_size)
    one.head, one.standardize = nn.Identity(), copy.deepcopy(base.standardize)
    return one.requires_grad_(True)
