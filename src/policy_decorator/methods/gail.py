"""GAIL with a small network (arXiv:1606.03476; paper App. D.4): rewarded is what cannot be told from a demonstration.

    D   learns to tell demonstrated (o, a) from its own          a round every `discriminator_every` updates
    actor and critics   learn by r = (1 - gamma) (log d - log(1 - d)), d = sigmoid(D), computed anew for every batch

(1 - gamma) makes values as large as D: without it critics that can move by 0.04 in an update would be asked for a
hundred times as much.

The policy acts alone. Behind a termination lies an absorbing state, which D judges like any other: without it the
policy would hover for ever beside the goal, where the demonstrations were last seen.

The paper does not say how the policy is learned. Differs from the paper: here by SAC from a replay and with absorbing
states, which is DAC (arXiv:1809.02925), not by TRPO or PPO as in GAIL itself.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from policy_decorator.errors import UserError
from policy_decorator.methods.alone import from_scratch, refuse_pictures
from policy_decorator.methods.off_policy import DEMO_SHARE, OffPolicyConfig, with_share
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.demonstrations import as_source, transitions
from policy_decorator.rl.discriminator import Discriminator, DiscriminatorConfig
from policy_decorator.rl.scored import Scored
from policy_decorator.types import Transition


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Settings of GAIL; the paper names none. `reward_shift` is of success, which is not looked at."""

    OWN = ("success_ends_value", "discriminator", "discriminator_every", *DEMO_SHARE)

    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """Settings of D."""
    discriminator_every: int = 16
    """Updates of actor and critics per round of `d_steps` gradient steps of D."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discriminator_every < 1:
            raise UserError("discriminator_every must be at least 1.")
        if self.learner == "ppo":
            raise UserError("gail learns with sac or td3: leave out learner = ppo, and the preset ppo.")
        if self.sac.gamma >= 1:
            raise UserError(
                "A discriminator's reward needs a gamma below 1: behind the end of an episode it goes on for ever."
            )

    @property
    def uses_demonstrations(self) -> bool:
        return True


@dataclass(frozen=True)
class Judge:
    """The discriminator, told by one more number whether an episode is over; its rewards are `unit` times D's."""

    d: Discriminator
    unit: float

    def pairs(self, t: Transition) -> Tensor:
        """Decisions (B, ...) and the absorbing states behind them, as `Discriminator.pair` has them: (B + ends, *)."""
        over = torch.zeros(int(t.terminated.sum()), self.d.obs_size, device=t.obs.device)
        over[:, -1] = 1
        obs, raw = (
            torch.cat([F.pad(t.obs, (0, 1)), over]),
            torch.cat([t.raw, t.raw.new_zeros(len(over), *t.raw.shape[1:])]),
        )
        return self.d.pair(obs, raw)

    def score(self, obs: Tensor, raw: Tensor) -> Tensor:
        """(N, Do), (N, Ta, Da) -> (N,)."""
        return self.rewards(F.pad(obs, (0, 1)), raw)

    def ended(self) -> Tensor:
        """The reward () of a decision behind the end."""
        over = torch.zeros(1, self.d.obs_size, device=self.d.device)
        over[:, -1] = 1
        return self.rewards(over, over.new_zeros(1, self.d.action_size))[0]

    def rewards(self, obs: Tensor, raw: Tensor) -> Tensor:
        """(N, Do + 1), (N, Ta, Da) -> (N,)."""
        return self.unit * self.d.rewards(obs, raw)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Run):
    """The policy and the discriminator learn in turn."""

    judge: Judge
    demonstrated: Tensor
    """(N, *) of `Judge.pairs`."""
    every: int

    def learn(self, updates: int) -> None:
        """Gradient steps of the policy until `updates` have been made; in front of every `every`th D's round."""
        while self.replay.size and self.learner.updates < updates:
            done = self.learner.updates
            if done % self.every == 0:
                self.monitor.learning |= self._tell_apart()
            super().learn(min(updates, done - done % self.every + self.every))

    def _tell_apart(self) -> dict[str, Tensor]:
        """On all of its own decisions alike, old and new (DAC)."""
        d = self.judge.d
        own = self.replay.sample(d.cfg.d_batch * d.cfg.d_steps)
        rewards = self.judge.score(own.obs, own.raw).mean()  # before D has learned from them
        return d.learn(self.demonstrated, self.judge.pairs(own)) | {
            "gail/reward": rewards,
            "gail/ended": self.judge.ended(),
        }


def judge_of(cfg: Config, p: Problem) -> Judge:
    """The discriminator of a problem, untrained."""
    judge = Judge(Discriminator(p.obs_size + 1, p.action_size, cfg.discriminator, p.device), 1 - cfg.sac.gamma)
    if p.obs_statistics is not None:
        judge.d.standardize.set(*p.obs_statistics)
    return judge


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures."""
    refuse_pictures("gail", p)
    shown = p.demonstrations_for("gail")
    judge = judge_of(cfg, p)
    single = replace(cfg, n_step=1, demo_share=0.0, demo_share_end=None, demo_share_steps=None)
    run = from_scratch("gail", single, p)
    own = replace(shown, base=torch.zeros_like(shown.base))  # not a correction of the base's action
    batch = transitions(own, 1.0, n_step=1, gamma=cfg.sac.gamma, reward_shift=0.0)
    scoring = cfg.n_step, cfg.sac.gamma, judge.score, judge.ended
    theirs = Scored(as_source(batch), 1, *scoring)
    ours = Scored(run.replay, len(run.collector.window), *scoring)
    parts = vars(run) | {"data": with_share(cfg, p, ours, theirs, run.collector), "reward": judge.d}
    return Adversarial(**parts, judge=judge, demonstrated=judge.pairs(batch), every=cfg.discriminator_every)
