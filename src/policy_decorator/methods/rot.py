"""ROT (arXiv:2206.15469; paper Sec. 5.2.1, App. B.5.1): the base itself goes on learning, held near the demonstrations.

    actor   the base, all of which learns, or LoRA's corrections; it acts alone, after a warm-up in which the base does
    reward  how cheaply an episode can be carried over to a demonstration, measured in the critics' trunk or, where
            there are pictures, in what the base's encoder says of them
    update  SAC, with imitation of the demonstrations as far as the critics prefer the base (`rl/rot.py`)

Success is measured, never rewarded. The base is a Behavior Transformer, as in the paper, or an MLP of this package; on
pictures one of these behind an encoder, which stays as it is (`embedded.py`).

The paper does not say: w, lambda's form, the trunk's size and the number of demonstrations compared; they are ROT's. It
takes SAC where ROT takes DDPG with noise of a fixed size. Of a Behavior Transformer the offsets learn, as in B.4.1; a
demonstrated action is imitated in the cluster it belongs to. Differs from the paper: all of the base learns unless
`learns = lora`; offsets are with or without a tanh, as the base was trained; the target critics' trunk is used as it is
at the end of an episode, where ROT's code copies it now and then.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from policy_decorator.chunks import unqueued
from policy_decorator.decorator import ProgressiveExploration
from policy_decorator.errors import UserError
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.embedded import WithEyes, embedded
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig, assemble, compiled_on_cpus, with_share
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.demonstrations import as_source, transitions, windows_of
from policy_decorator.rl.episodes import WholeEpisodes
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.rot import ROT, ShownWindows, TrunkCritics, WindowActor
from policy_decorator.rl.transport import TransportReward, episodes_of, needs_pot
from policy_decorator.rollout import Collector


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of ROT. `reward_shift` is of success, which is not rewarded."""

    OWN = ("learner", "success_ends_value", *DEMO_SHARE)

    learns: Literal["all", "lora"] = "all"
    """What of the base learns: all of it (ROT's own), or low-rank corrections of a Behavior Transformer's attention
    layers and head (the paper, as in B.4.1)."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Of those."""
    imitation_weight: float = 0.03
    """w, weight of the demonstrations' log-density (ROT's code)."""
    imitation_batch: int = 128
    """Demonstrated windows per update (ROT's code)."""
    begin_std: float = 0.1
    """Standard deviation with which the base begins to explore, learned from there on, and with which it imitates
    (ROT's code: 0.1, in both always)."""
    trunk: int = 50
    """Units of the critics' first layer, where distances are measured (ROT's code)."""
    compared: int = 10
    """Demonstrations that an episode is compared with, the first that succeed; the nearest counts (ROT: 10)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.imitation_batch, self.trunk, self.compared) < 1:
            raise UserError("imitation_batch, trunk and compared must be at least 1.")
        if self.begin_std <= 0 or self.imitation_weight < 0:
            raise UserError("begin_std must be above 0 and imitation_weight at least 0.")
        if self.learner != "sac" or self.success_ends_value:
            raise UserError("rot learns with sac, from whole episodes: leave out learner and success_ends_value.")
        if self.nets.initial_std is not None:
            raise UserError("nets are the critics' here: the actor's first standard deviation is begin_std.")

    @property
    def uses_demonstrations(self) -> bool:
        return True

    @property
    def tunes_base(self) -> bool:
        return True

    @property
    def asks_about_demonstrations(self) -> bool:
        """Where they are in its batches, the Q-filter compares them with what the base would have done."""
        return self.demo_share > 0


def build(cfg: Config, p: Problem) -> Run:
    """The run; of a task that shows pictures, behind the base's encoder.

    Raises:
        UserError: no demonstrations, a base that cannot go on learning, or has no encoder where there are pictures.
        MissingExtra: POT is not installed, or PEFT where `learns` is lora.
    """
    p.demonstrations_for("rot")
    needs_pot()
    if not p.shapes:
        return _run(cfg, p)
    if cfg.sees != "embedding":
        raise UserError(
            "rot sees pictures as the encoder of the base does, which stays as it is: give sees = embedding."
        )
    inner, eye = embedded("rot", p)
    run = _run(cfg, inner, visual=slice(p.obs_size, None))
    tuned: Any = WithEyes(eye, cast(ROT, run.learner).actor)
    return replace(run, policy=FineTuned(p.base, tuned, Takeover()))


def _run(cfg: Config, p: Problem, visual: slice | None = None) -> Run:
    """Of observations that are vectors; those parts of them that are `visual` are compared as they are."""
    shown = p.demonstrations_for("rot")
    base, lora = _tunable(p), cfg.lora if cfg.learns == "lora" else None
    if hasattr(_policy_of(base), "choice"):  # a transformer's dropout and choice of clusters draw as it goes
        p = compiled_on_cpus(p)
    elif lora is not None:
        raise UserError("learns = lora is for a Behavior Transformer: of an MLP let all learn.")
    actor = WindowActor(base, p.obs_size, p.chunk, cfg.begin_std, lora).to(p.device)
    critics = TrunkCritics(p.obs_size, p.action_size, cfg.trunk, cfg.nets)
    if cfg.standardize_obs and p.obs_statistics is not None:
        critics.standardize.set(*p.obs_statistics)
    composition, context = Takeover(), p.base.context
    imitated = {"weight": cfg.imitation_weight, "shown_batch": cfg.imitation_batch}
    windows = ShownWindows(windows_of(shown, shown.obs, context), windows_of(shown, shown.action[:, 0], context))
    learner = ROT(actor, critics.to(p.device), composition, p.action_size, cfg.sac, shown=windows, **imitated)
    gate = ProgressiveExploration(0, start=p.warmup_steps)
    run = assemble(
        replace(cfg, demo_share=0.0, demo_share_end=None, demo_share_steps=None),
        p,
        collector=Collector(p.env, p.base, composition, gate, cfg.reward_shift, p.seed, sees="window"),
        learner=learner,
        explores=actor,
        policy=FineTuned(p.base, actor, composition),
        monitor=Monitor(composition.idle),
    )
    target: Any = learner.target
    look = target.look if visual is None else lambda obs: obs[:, visual]
    reward = TransportReward(episodes_of(shown, cfg.compared), look)
    seen = replace(shown, obs=windows.obs.flatten(1))
    batch = transitions(seen, 1.0, n_step=cfg.n_step, gamma=cfg.sac.gamma, reward_shift=0.0)
    batch = batch._replace(raw=batch.raw + batch.base, reward=torch.zeros_like(batch.reward))
    return replace(
        run,
        intake=WholeEpisodes(reward, cfg.n_step, cfg.sac.gamma, p.obs_size),
        data=with_share(cfg, p, run.replay, as_source(batch), run.collector),
        reward=reward,
        knows=True,
    )


def _tunable(p: Problem) -> nn.Module:
    """The base. Raises UserError where it cannot go on learning."""
    base = unqueued(p.base)
    inner = _policy_of(base)
    if not isinstance(base, nn.Module) or not (callable(getattr(inner, "means", None)) and hasattr(inner, "cfg")):
        raise UserError(
            f"rot goes on training the base policy itself, and cannot with {type(inner).__name__}: give a Behavior "
            "Transformer, an MLP or a CNN of this package (pidec imitate bet, mlp or cnn)."
        )
    return base


def _policy_of(base: Any) -> Any:
    """The policy itself, where `base` is what stands behind an encoder."""
    return getattr(base, "policy", base)
