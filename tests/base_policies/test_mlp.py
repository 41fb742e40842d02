"""The MLP policy and the standardisation, against numpy."""

import numpy as np
import pytest
import torch

from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy, Standardize
from policy_decorator.errors import UserError


def test_standardize_is_z_score_with_floor_and_clamp() -> None:
    frames = np.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]], dtype=np.float32)
    standardize = Standardize(2)
    standardize.fit(frames)
    std = np.sqrt(8 / 3)
    answer = standardize(torch.tensor([[4.0, 5.0], [2.0, 5.005], [1000.0, -1.0]]))
    expected = [[2 / std, 0.0], [0.0, 0.005 / 1e-3], [10.0, -10.0]]
    torch.testing.assert_close(answer, torch.tensor(expected, dtype=torch.float32), rtol=1e-3, atol=1e-5)


def test_a_constant_far_from_zero_has_the_floor_as_std() -> None:
    standardize = Standardize(1)
    standardize.fit(np.full((100_000, 1), 1234.567, dtype=np.float32))
    assert standardize.std.item() == pytest.approx(1e-3)


def test_loss_is_the_squared_error_of_the_newest_action() -> None:
    policy = MLPPolicy(MLPConfig(width=8, context=2, standardize_obs=False), 3, 2)
    window, actions = torch.randn(5, 2, 3), torch.randn(5, 2, 2)
    hidden = window.flatten(1)  # (5, 6)
    linears = [module for module in policy.net if isinstance(module, torch.nn.Linear)]
    assert [tuple(linear.weight.shape) for linear in linears] == [(8, 6), (8, 8), (2, 8)]
    for linear in linears[:-1]:
        hidden = (hidden @ linear.weight.T + linear.bias).clamp(min=0)
    predicted = hidden @ linears[-1].weight.T + linears[-1].bias
    torch.testing.assert_close(policy.loss(window, actions), ((predicted - actions[:, 1]) ** 2).mean())


def test_weights_decay_and_biases_do_not() -> None:
    policy = MLPPolicy(MLPConfig(width=8), 3, 2)
    decayed, plain = policy.parameter_groups(0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert sum(p.numel() for p in decayed["params"]) == 8 * 3 + 8 * 8 + 2 * 8
    assert sum(p.numel() for p in plain["params"]) == 8 + 8 + 2


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        MLPConfig(depth=0)
