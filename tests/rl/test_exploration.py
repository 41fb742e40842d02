"""Exploration noise that may be held for a few decisions."""

import pytest
import torch

from policy_decorator.rl.exploration import Explorer, uniform_like
from policy_decorator.rl.nets import NetConfig, TanhGaussian


def _noise(actor: TanhGaussian, seen: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
    mean, log_std = actor.gaussian(seen)
    return (raw.flatten(1).atanh() - mean) / log_std.exp()


@pytest.mark.parametrize("hold", [1, 3])
def test_noise_stays_for_as_many_decisions_as_asked(hold: int) -> None:
    actor = TanhGaussian(4, (1, 2), NetConfig(width=8, depth=1, head_gain=1.0, log_std_min=-2, log_std_max=-1)).double()
    explorer = Explorer(actor, hold)
    drawn = []
    for _ in range(4 * hold):
        seen = torch.randn(6, 4, dtype=torch.float64)  # what it sees changes, and the action with it
        drawn.append(_noise(actor, seen, explorer(seen)))
    blocks = torch.stack(drawn).view(4, hold, 6, 2)
    torch.testing.assert_close(blocks, blocks[:, :1].expand_as(blocks))
    assert len(torch.unique((blocks[:, 0] * 1e6).round())) == 4 * 6 * 2  # every row, dimension and block its own


def test_without_holding_it_is_the_actors_own_sample() -> None:
    actor, seen = TanhGaussian(4, (2, 2), NetConfig(width=8, depth=1)), torch.randn(5, 4)
    explorer = Explorer(actor)
    for seed in range(3):
        torch.manual_seed(seed)
        raw = explorer(seen)
        torch.manual_seed(seed)
        assert torch.equal(raw, actor(seen)[0])
    assert raw.shape == (5, 2, 2)


def test_the_warm_ups_noise_is_uniform_and_of_the_actions_shape() -> None:
    action = torch.full((4000, 2, 3), 7.0)
    raw = uniform_like(action)(torch.zeros(4000, 5))
    assert raw.shape == action.shape
    assert -1 <= raw.min() < -0.99
    assert 0.99 < raw.max() <= 1
    assert abs(raw.mean().item()) < 0.02
