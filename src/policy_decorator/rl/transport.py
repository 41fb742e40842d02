"""Rewards from how cheaply an episode can be carried over to a demonstration (ROT, arXiv:2206.15469; FISH, 2303.01497).

    C_ij = 1 - cos(f(o_i), f(o'_j)),   mu = Sinkhorn(C) between uniform weights,   r_i = -scale * sum_j mu_ij C_ij

Of all demonstrations the one that gives the highest sum counts. The scale makes the first episode's sum -10.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from policy_decorator.errors import MissingExtra
from policy_decorator.rl.demonstrations import Demonstrated

SMOOTHING = 0.01
"""Weight of the plan's entropy (both papers' code)."""
ITERATIONS = 100
FIRST_SUM = 10.0
"""|sum of rewards| of the first episode that is scored (the codes' automatic scale)."""

OTHER_BACKENDS = ("JAX", "CUPY", "TENSORFLOW")
"""Which POT would load where they are installed: JAX takes most of a GPU's memory."""


def needs_pot() -> Any:
    """POT, the library of the transport plans. Raises MissingExtra: it is not installed."""
    for name in OTHER_BACKENDS:
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{name}", "1")
    try:
        import ot
    except ImportError:
        raise MissingExtra("POT", "transport") from None
    return ot


def transport_plan(cost: Tensor) -> Tensor:
    """(T, T') -> the plan (T, T') between uniform weights, as POT's Sinkhorn finds it.

    Raises:
        MissingExtra: POT is not installed.
    """
    ot = needs_pot()
    exact = cost.double()  # exp(-C / 0.01) leaves float32's range
    rows, columns = (exact.new_full((n,), 1 / n) for n in exact.shape)
    plan: Any = ot.sinkhorn(rows, columns, exact, SMOOTHING, numItermax=ITERATIONS, warn=False)
    return plan.to(cost.dtype)


def transport_rewards(features: Tensor, demonstrated: Tensor) -> Tensor:
    """(T, F), (T', F) -> rewards (T,), zero at best."""
    cost = (1 - F.cosine_similarity(features[:, None], demonstrated[None], dim=-1)).clamp(min=0)
    return -(transport_plan(cost) * cost).sum(dim=1)


@dataclass
class TransportReward:
    """Scores whole episodes; its features may change while it is used."""

    demonstrations: Sequence[Tensor]
    """Observations (T', Do) of each."""
    features: Callable[[Tensor], Tensor]
    """(T, Do) -> (T, F)."""
    scale: float | None = None
    """None until the first episode has been scored."""

    @torch.no_grad()
    def __call__(self, episode: Tensor) -> Tensor:
        """Observations (T, Do), the first before any decision -> rewards (T,)."""
        seen = self.features(episode)
        tried = [transport_rewards(seen, self.features(demonstration)) for demonstration in self.demonstrations]
        best = max(tried, key=lambda rewards: rewards.sum().item())
        if self.scale is None:
            self.scale = FIRST_SUM / max(best.sum().abs().item(), 1e-8)
        return self.scale * best

    def state(self) -> dict[str, Any]:
        """Its scale; the features are kept by whom they belong to."""
        return {"scale": self.scale}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.scale = state["scale"]


def episodes_of(d: Demonstrated, most: int) -> list[Tensor]:
    """Observations (T', Do) of the first `most` demonstrations that succeed, or of the first where none does."""
    parts, success = d.obs.split(d.lengths.tolist()), d.success.split(d.lengths.tolist())
    good = [obs for obs, reached in zip(parts, success, strict=True) if reached.any()]
    return list(good or parts)[:most]


def of_windows(look: Callable[[Tensor], Tensor], context: int) -> Callable[[Tensor], Tensor]:
    """Features of the frames (T, Do) of an episode -> (T, F), by one who looks at windows (T, To, Do)."""

    def features(frames: Tensor) -> Tensor:
        back = torch.arange(1 - context, 1, device=frames.device)
        rows = torch.arange(len(frames), device=frames.device)[:, None] + back  # (T, To)
        return look(frames[rows.clamp(min=0)])  # the first frame in every slot, as at a reset

    return features
