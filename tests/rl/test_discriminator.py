"""The discriminator against what it should find, and its gradient penalty against a slope that is known."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policy_decorator.rl.discriminator import Discriminator, DiscriminatorConfig


def _discriminator(**changes: Any) -> Discriminator:
    return Discriminator(1, 1, DiscriminatorConfig(**{"d_width": 32, **changes}))


def test_its_logit_becomes_the_log_ratio_of_densities() -> None:
    """Between N(1, 1) and N(-1, 1) that is 2x (the optimum of the loss without a penalty)."""
    torch.manual_seed(0)
    d = _discriminator(gradient_penalty=0.0, d_steps=400, d_lr=1e-3)
    shown, own = torch.randn(20_000, 2), torch.randn(20_000, 2)
    shown[:, 0] += 1
    own[:, 0] -= 1
    metrics = d.learn(shown, own)
    x = torch.linspace(-1.5, 1.5, 7)
    found = d.logit(torch.stack([x, torch.zeros(7)], dim=1)).detach()
    torch.testing.assert_close(found, 2 * x, atol=0.6, rtol=0)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # of all rows, what the sign of x tells apart
    assert metrics["gail/told_apart"].item() == pytest.approx(best, abs=0.02)


def test_the_loss_is_two_softplus_and_a_slope_of_one() -> None:
    d = _discriminator(gradient_penalty=3.0)
    weight = torch.tensor([0.6, 1.1])
    d.logit = lambda pairs: pairs @ weight  # pyright: ignore[reportAttributeAccessIssue]
    shown, own = torch.randn(6, 2), torch.randn(6, 2)
    telling = F.softplus(-(shown @ weight)).mean() + F.softplus(own @ weight).mean()
    penalty = 3.0 * (weight.norm() - 1) ** 2
    torch.testing.assert_close(d.loss(shown, own, torch.rand(6, 1)), telling + penalty)


def test_where_the_slope_is_looked_at() -> None:
    d = _discriminator(gradient_penalty=1.0)
    looked: list[Tensor] = []

    def logit(pairs: Tensor) -> Tensor:
        looked.append(pairs.detach())
        return pairs.sum(dim=-1)

    d.logit = logit  # pyright: ignore[reportAttributeAccessIssue]
    shown, own = torch.ones(2, 2), torch.zeros(2, 2)
    d.loss(shown, own, torch.tensor([[0.25], [1.0]]))
    assert looked[2].tolist() == [[0.25, 0.25], [1, 1]]


@pytest.mark.parametrize("kind", ["airl", "gail"])
def test_rewards_are_those_of_their_formula(kind: Any) -> None:
    d = _discriminator(reward=kind)
    obs, action = torch.randn(9, 1), torch.randn(9, 1, 1)
    p = d.logit(d.pair(obs, action)).detach().sigmoid()
    expected = (p.log() - (1 - p).log()) if kind == "airl" else -(1 - p).log()
    torch.testing.assert_close(d.rewards(obs, action), expected, atol=1e-5, rtol=1e-4)
