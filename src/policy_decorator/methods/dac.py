"""DAC, Discriminator-Actor-Critic (arXiv:1809.02925; paper Table 1): TD3 from a replay, rewarded by a discriminator.

As GAIL here in what is rewarded, log d - log(1 - d), and in how D learns. Differs from GAIL here: TD3 instead of SAC,
one step of D per update of the policy, single decisions, and the value of the absorbing state behind an end is learned
by the critics (`rl/absorbing.py`), where GAIL here has it in closed form, reward / (1 - gamma).

Differs from the original: D learns between every `discriminator_every` updates and not after whole episodes, its hidden
units are ReLU, and learning rates do not decay. What an action in the absorbing state is worth is the same for all.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from torch import Tensor

from policy_decorator.errors import UserError
from policy_decorator.methods import gail
from policy_decorator.methods.alone import Alone, Takeover, collector_alone, own_actions, refuse_pictures
from policy_decorator.methods.off_policy import update_of
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.absorbing import AbsorbingCritics, Endless, in_an_episode
from policy_decorator.rl.demonstrations import transitions
from policy_decorator.rl.discriminator import DiscriminatorConfig
from policy_decorator.rl.exploration import Explorer
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import TanhGaussian
from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.rl.td3 import TD3, Noisy


@dataclass(frozen=True)
class Config(gail.Config):
    """Settings of DAC; those of D are the original's."""

    OWN = (*gail.Config.OWN, "learner", "n_step")

    learner: Literal["sac", "td3", "ppo"] = "td3"
    discriminator: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig(d_width=100, d_lr=1e-3, d_steps=16)
    )
    """Settings of D."""

    def __post_init__(self) -> None:
        if self.learner != "td3":
            raise UserError("dac learns with td3: take gail for sac.")
        super().__post_init__()
        if self.n_step != 1 or self.demo_share:
            raise UserError("dac learns from single decisions of its own: leave out n_step and demo_share.")

    @classmethod
    def taking(cls, **common: Any) -> Self:
        """Without the deviation of SAC's actor, which TD3's has none of."""
        nets = {"nets": replace(common["nets"], initial_std=None)} if "nets" in common else {}
        return super().taking(**common | nets)


@dataclass(frozen=True)
class Living(Takeover):
    """The actor does not see the number that says whether an episode is over."""

    obs_size: int
    """Do."""

    def actor_input(self, obs: Tensor, base: Tensor) -> Tensor:
        """(B, Do) in an episode, (B, Do + 1) in a batch -> (B, Do)."""
        return obs[:, : self.obs_size]


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures."""
    refuse_pictures("dac", p)
    p.demonstrations_for("dac")
    shown: Any = own_actions(p.demonstrated)
    judge = gail.judge_of(cfg, p)
    actor = TanhGaussian(p.obs_size, p.chunk, cfg.nets)
    critics = AbsorbingCritics(p.obs_size + 1, p.action_size, cfg.nets)
    if cfg.standardize_obs and p.obs_statistics is not None:
        for net in (actor, critics):
            net.standardize.set(*p.obs_statistics)
    actor, critics, replay = actor.to(p.device), critics.to(p.device), Replay(p.capacity)
    learner = TD3(actor, critics, Living(p.obs_size), cfg.sac, cfg.td3)
    batch = transitions(shown, 1.0, n_step=1, gamma=cfg.sac.gamma, reward_shift=0.0)
    return gail.Adversarial(
        collector=collector_alone(cfg, p),
        learner=learner,
        explorer=Explorer(Noisy(actor, cfg.td3.exploration_std), cfg.noise_hold),
        replay=replay,
        intake=NStep(1, cfg.sac.gamma),
        data=Endless(replay, judge.rewards),
        monitor=Monitor(),
        policy=Alone(p.base, actor, Takeover()),
        update=update_of(p, learner),
        reward=judge.d,
        shaped=in_an_episode,
        judge=judge,
        demonstrated=judge.pairs(batch),
        every=cfg.discriminator_every,
    )
