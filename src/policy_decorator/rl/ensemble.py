"""What several Q functions are taken to say: (n, B) -> (B,)."""

from typing import Literal

import torch
from torch import Tensor

Value = Literal["min", "mean"]


def smallest(q: Tensor, subset: int | None = None) -> Tensor:
    """The smallest of all, or of `subset` of them drawn at this call (REDQ, arXiv:2101.05982)."""
    if subset is not None:
        q = q[torch.rand(len(q), device=q.device).argsort()[:subset]]  # without a word to the host
    return q.min(dim=0).values


def combined(q: Tensor, how: Value) -> Tensor:
    """The smallest or the mean of all."""
    return q.mean(dim=0) if how == "mean" else smallest(q)
