"""Critics of an actor that looks at windows, which replays hold flattened, (B, To * Do), oldest frame first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from policy_decorator.rl.nets import Critics, NetConfig


def unflattened(seen: Tensor, obs_size: int) -> Tensor:
    """(B, To * Do) -> (B, To, Do)."""
    return seen.unflatten(-1, (-1, obs_size))


class Backbone(Protocol):
    """What makes features of windows."""

    def features(self, window: Tensor) -> Tensor: ...  # (B, To, Do) -> (B, F), with gradients


class NewestCritics(Critics):
    """Critics that see the newest frame only."""

    def __init__(self, obs_size: int, action_size: int, cfg: NetConfig | None = None) -> None:
        super().__init__(obs_size, action_size, cfg)
        self.obs_size = obs_size

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, To * Do), (B, Ta, Da) -> (n, B)."""
        return super().forward(obs[:, -self.obs_size :], action)


class BackboneCritics(nn.Module):
    """Q functions that look at the window, each through a backbone of its own, which learns with it (App. F.5.1).

    The paper does not say how an action enters a GPT's value: here an MLP sees it beside the features.
    """

    def __init__(
        self, backbones: Sequence[nn.Module], features: int, obs_size: int, action_size: int, cfg: NetConfig
    ) -> None:
        super().__init__()
        self.obs_size, self.backbones = obs_size, nn.ModuleList(backbones)
        self.heads = nn.ModuleList(Critics(features, action_size, replace(cfg, critics=1)) for _ in backbones)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B, To * Do), (B, Ta, Da) -> (n, B)."""
        window = unflattened(obs, self.obs_size)
        pairs = zip(self.backbones, self.heads, strict=True)
        return torch.cat([head(cast(Backbone, backbone).features(window), action) for backbone, head in pairs])
