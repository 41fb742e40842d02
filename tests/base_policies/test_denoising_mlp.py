"""The residual MLP of a Diffusion Policy: its sizes, what it computes, and that it can be trained and saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from policy_decorator.base_policies.checkpoint import load_policy, save_policy
from policy_decorator.base_policies.denoising_mlp import DenoisingMLP
from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.errors import UserError

SQUARE = DiffusionConfig(
    context=1, horizon=4, chunk=4, network="mlp", step_size=32, mlp_seeing=(512, 64), diffusion_steps=20, ddim_steps=20
)


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_its_parameters_are_those_of_dppos_networks() -> None:
    """Counted by hand: Square sees 23 numbers and has chunks of 4 x 7, Transport 59 and 8 x 14."""
    step = 32 * 64 + 64 + 64 * 32 + 32
    block = 2 * (1024 * 1024 + 1024)
    seeing = 23 * 512 + 512 + 512 * 64 + 64
    square = step + seeing + (28 + 32 + 64 + 1) * 1024 + block + 1025 * 28
    transport = step + (112 + 32 + 59 + 1) * 1024 + block + 1025 * 112
    assert _count(DiffusionPolicy(SQUARE, 23, 7)) == square
    assert _count(DenoisingMLP((8, 14), 59, 1024, 32)) == transport


def test_it_computes_its_formula() -> None:
    net, mish = DenoisingMLP((3, 2), 4, 8, 6, (7, 5)), nn.functional.mish
    noisy, step, seen = torch.randn(9, 3, 2), torch.randint(20, (9,)), torch.randn(9, 4)
    layers: Any = [net.see[0], net.see[2], net.block[1], net.block[3]]
    condition = layers[1](mish(layers[0](seen)))
    h = net.first(torch.cat([noisy.reshape(9, 6), net.embed(step), condition], 1))
    h = h + layers[3](mish(layers[2](mish(h))))
    torch.testing.assert_close(net(noisy, step, seen), net.last(h).reshape(9, 3, 2))
    plain = DenoisingMLP((3, 2), 4, 8, 6)
    raw = plain.first(torch.cat([noisy.reshape(9, 6), plain.embed(step), seen], 1))
    torch.testing.assert_close(plain(noisy, step, seen), plain.last(raw + plain.block(raw)).reshape(9, 3, 2))


def test_a_policy_with_it_learns_and_is_saved(tmp_path: Path) -> None:
    """Any horizon will do; the action is told by the observation."""
    cfg = DiffusionConfig(
        context=1, horizon=3, chunk=3, network="mlp", mlp_width=64, step_size=16, diffusion_steps=20, ddim_steps=4
    )
    policy = DiffusionPolicy(cfg, 2, 2)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(600):
        obs = torch.rand(128, 1, 2) * 2 - 1
        optimizer.zero_grad()
        policy.loss(obs, obs.expand(-1, 3, -1) * 0.8).backward()
        optimizer.step()
    obs = torch.rand(200, 1, 2) * 2 - 1
    error = (policy.act(obs) - obs * 0.8).abs().median()
    assert error < 0.15  # untrained: 0.8
    save_policy(policy, tmp_path, details={})
    torch.manual_seed(3)
    acted = policy.act(obs)
    torch.manual_seed(3)
    assert torch.equal(load_policy(tmp_path).act(obs), acted)


@pytest.mark.parametrize("changes", [{"network": "transformer"}, {"mlp_width": 0}, {"mlp_seeing": (8, 0)}])
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        DiffusionConfig(**changes)
