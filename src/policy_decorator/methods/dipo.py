"""DIPO on the Diffusion Policy itself, by LoRA (paper App. B.4.2, H.2; arXiv:2305.13122).

    actor    the base, all of whose layers have low-rank corrections; its samples explore
    critics  MLPs of the newest frame and the executed actions
    update   actions are improved by the critics' gradient, and imitated (`rl/dipo.py`)

The paper found no success with it on any task. It does not say: LoRA's settings, those of the action gradient (here
DIPO's), nor what acts before the first update (here the actor). Learning rate, discount and batch are its Table 9's.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Self

from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Takeover, collector_alone, refuse_pictures
from policy_decorator.methods.finetuned import FineTuned, diffusion_of
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig, assemble, uncompiled
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.dipo import DIPO, DIPOConfig, Predictions, SequenceActor
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.settings import SACConfig
from policy_decorator.rl.windows import NewestCritics

GRADIENT_NORM = 2.0
"""At which policy and critics are clipped (DIPO's code)."""


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of DIPO. `nets` are the critics'. Its updates are neither compiled nor replayed from CUDA graphs."""

    BATCHES = False
    OWN = ("learner", "noise_hold", *DEMO_SHARE)

    sac: SACConfig = field(default_factory=lambda: SACConfig(max_grad_norm=GRADIENT_NORM))
    """Read for what is not about entropy."""
    dipo: DIPOConfig = field(default_factory=DIPOConfig)
    """Of the action gradient."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Of the low-rank corrections."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learner != "sac" or self.demo_share:
            raise UserError("dipo has a learner of its own, for its own decisions: leave out learner and demo_share.")
        if self.sac.residual_penalty or self.nets.initial_std is not None:
            raise UserError("dipo's actor is a Diffusion Policy: leave out residual_penalty and initial_std.")

    @classmethod
    def taking(cls, **common: Any) -> Self:
        """With gradients clipped as DIPO's are."""
        made = super().taking(**common)
        return replace(made, sac=replace(made.sac, max_grad_norm=GRADIENT_NORM))


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: pictures, a base that is no Diffusion Policy or is asked action by action; PEFT is missing."""
    refuse_pictures("dipo", p)
    base = diffusion_of("dipo", p.base)
    if base.cfg.late_steps:
        raise UserError("This Diffusion Policy has a second network for its last steps (DPPO): dipo tunes one network.")
    actor = SequenceActor(base, cfg.lora).to(p.device)
    critics = NewestCritics(p.obs_size, p.action_size, cfg.nets)
    if cfg.standardize_obs and p.obs_statistics is not None:
        critics.standardize.set(*p.obs_statistics)
    learner: Any = DIPO(actor, critics.to(p.device), cfg.sac, cfg.dipo)
    run = assemble(
        cfg,
        uncompiled(p),
        collector=collector_alone(cfg, p, sees="window"),
        learner=learner,
        explores=actor,
        policy=FineTuned(p.base, actor, Takeover()),
        monitor=Monitor(),
    )
    learner.memory = run.replay
    return replace(run, intake=Predictions(cfg.n_step, cfg.sac.gamma, actor), knows=True)
