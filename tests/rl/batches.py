"""Batches and networks for losses that are looked at by themselves."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.rl.nets import Critics, NetConfig
from policy_decorator.rl.weighted import BoundedGaussian
from policy_decorator.types import Transition

B, DO, DA = 6, 3, 2
NETS = NetConfig(width=5, depth=1, head_gain=1.0, log_std_min=-3.0, initial_std=0.4)


def new_batch(n: int = B, gamma_columns: bool = True) -> Transition:
    terminated = (torch.arange(n) % 3 == 1).float()
    decisions = 1 + torch.arange(n) % 3 * float(gamma_columns)
    raw = torch.rand(n, 1, DA) * 2 - 1
    zeros = torch.zeros(n, 1, DA)
    return Transition(torch.randn(n, DO), raw, zeros, -torch.rand(n), terminated, decisions, torch.randn(n, DO), zeros)


def new_critics(critics: int = 2, action_size: int = DA) -> Critics:
    return Critics(DO, action_size, NetConfig(width=5, depth=1, head_gain=1.0, critics=critics))


def new_actor(clamps: bool = True) -> BoundedGaussian:
    return BoundedGaussian(DO, (1, DA), NETS, clamps=clamps)


def disturb(net: nn.Module) -> None:
    """A target unlike the critic, or the wrong one would go unnoticed."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))


def episodes(lengths: list[int], solved: list[bool], **changes: Any) -> Demonstrated:
    """Row k is named by its observation; an episode that is solved is so in its last row."""
    n = sum(lengths)
    success = torch.zeros(n, dtype=torch.bool)
    success[torch.tensor(lengths).cumsum(0) - 1] = torch.tensor(solved)
    obs = torch.arange(n).float()[:, None].repeat(1, DO)
    action = torch.rand(n, 1, DA) * 2 - 1
    return Demonstrated(obs, action, torch.zeros(n, 1, DA), success, torch.tensor(lengths), **changes)


def finite_difference(loss: Callable[[], Tensor], p: Tensor, k: int, eps: float = 1e-6) -> float:
    """The slope of `loss` along the k-th number of `p`."""
    flat, values = p.data.view(-1), []
    for sign in (1, -1):
        flat[k] += sign * eps
        values.append(loss().item())
        flat[k] -= sign * eps
    return (values[0] - values[1]) / (2 * eps)


def assert_gradients_are_finite_differences(
    loss: Callable[[], Tensor], params: Iterable[Tensor], every: int = 3
) -> int:
    """Of every third number of each, or so; returns how many are not 0. `loss` draws the same noise at every call."""
    params, checked = list(params), 0
    for p, grad in zip(params, torch.autograd.grad(loss(), params), strict=True):
        for k in range(0, p.numel(), every):
            slope = grad.reshape(-1)[k].item()
            assert slope == pytest.approx(finite_difference(loss, p, k), rel=1e-5, abs=1e-8)
            checked += bool(slope)
    return checked
