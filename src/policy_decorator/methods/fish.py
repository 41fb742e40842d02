"""FISH (arXiv:2303.01497; paper App. B.5.2): an offset on a base policy, rewarded by optimal transport.

    action = base + bound * offset         as Residual RL, from the first decision after the warm-up
    reward = how cheaply the episode can be carried over to a demonstration      (`rl/transport.py`)

Success is measured, never rewarded. The base is VINN in FISH and in the paper (`pidec imitate vinn`); any other will
do. Where the base says what it makes of a window (`features(window)`: VINN, BeT, the FiLM layer of a Diffusion Policy
whose network is a U-Net), distances are measured there.

The paper does not say: how large the offset may be (here FISH's 0.2), with how many demonstrations an episode is
compared, how the offset learns (here as Policy Decorator's residual), and which layer a "FiLM encoder" is (here what
modulates the U-Net's first block at the last denoising step).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from policy_decorator.chunks import unqueued
from policy_decorator.errors import UserError
from policy_decorator.methods import policy_decorator
from policy_decorator.methods.alone import refuse_pictures
from policy_decorator.methods.off_policy import DEMO_SHARE, with_share
from policy_decorator.methods.policy_decorator import ResidualConfig
from policy_decorator.methods.problem import Problem, Run
from policy_decorator.rl.demonstrations import as_source, transitions
from policy_decorator.rl.episodes import WholeEpisodes
from policy_decorator.rl.transport import TransportReward, episodes_of, needs_pot, of_windows


@dataclass(frozen=True)
class Config(ResidualConfig):
    """Settings of FISH. `reward_shift` is of success, which is not rewarded."""

    OWN = ("actor_sees", "critic_sees", "bound", "success_ends_value", *DEMO_SHARE)

    actor_sees: Literal["obs", "obs+base"] = "obs+base"
    """Input of the offset; FISH shows it the base's action."""
    critic_sees: Literal["sum", "concat", "residual"] = "concat"
    """Action input of the critic; FISH shows it the base's action and the offset."""
    bound: float | Literal["auto"] = 0.2
    """Largest offset in every action dimension (FISH's code); auto: from the demonstrations."""
    compared: int = 10
    """Demonstrations that an episode is compared with, the first that succeed; the nearest counts (FISH: 1)."""
    distances: Literal["auto", "features", "standardized", "obs"] = "auto"
    """Where they are measured: in the base's features, on standardised or on raw observations; auto: features where
    the base has them, else standardised observations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compared < 1:
            raise UserError("compared must be at least 1: an episode is compared with demonstrations.")
        if self.learner == "ppo":
            raise UserError("fish learns with sac or td3: leave out learner = ppo, and the preset ppo.")
        if self.success_ends_value:
            raise UserError("fish learns from whole episodes: leave out success_ends_value.")

    @classmethod
    def taking(cls, **common: Any) -> Self:
        """Without a penalty on the offset: FISH has none, and its rewards are of another size."""
        made = super().taking(**common)
        return replace(made, sac=replace(made.sac, residual_penalty=0.0))

    @property
    def uses_demonstrations(self) -> bool:
        return True

    @property
    def asks_about_demonstrations(self) -> bool:
        """Only corrections are of the base's actions: that takes as long as an episode for every demonstration."""
        return self.demo_share > 0 or self.bound == "auto"


def build(cfg: Config, p: Problem) -> Run:
    """Raises UserError: no demonstrations, a task with pictures, a base without the features asked for."""
    refuse_pictures("fish", p)
    shown = p.demonstrations_for("fish")
    needs_pot()
    reward = TransportReward(episodes_of(shown, cfg.compared), _features(cfg, p))
    common = {f.name: getattr(cfg, f.name) for f in fields(ResidualConfig)}
    without = {"demo_share": 0.0, "demo_share_end": None, "demo_share_steps": None}
    run = policy_decorator.build(policy_decorator.Config(**common | without, bound=cfg.bound, horizon=0), p)
    bound: Any = getattr(run.collector.composition, "bound", None)
    gamma = cfg.sac.gamma
    batch = transitions(shown, bound, n_step=cfg.n_step, gamma=gamma, reward_shift=0.0)
    theirs = as_source(batch._replace(reward=torch.zeros_like(batch.reward)))  # nothing is to be carried over
    data = with_share(cfg, p, run.replay, theirs, run.collector)
    intake = WholeEpisodes(reward, cfg.n_step, gamma, p.obs_size)
    return replace(run, intake=intake, data=data, reward=reward)


def _features(cfg: Config, p: Problem) -> Callable[[Tensor], Tensor]:
    """(T, Do) -> (T, F)."""
    if cfg.distances in ("auto", "features"):
        base: Any = unqueued(p.base)
        try:
            return of_windows(_looking(base, p), base.context)
        except UserError:
            if cfg.distances == "features":
                raise
    if cfg.distances == "obs" or p.obs_statistics is None:
        return lambda obs: obs
    mean, std = (x.to(p.device) for x in p.obs_statistics)
    return lambda obs: (obs - mean) / (std + 1e-3)


def _looking(base: Any, p: Problem) -> Callable[[Tensor], Tensor]:
    """The base's features of windows, tried once: a network may have none. Raises UserError."""
    if not hasattr(base, "features"):
        raise UserError("This base policy has no features: take distances = standardized, or VINN or BeT as the base.")
    base.features(torch.zeros(1, base.context, p.obs_size, device=p.device))
    return base.features
