"""Base policies with eyes: any policy of this package behind a CNN, trained as one.

policy(window of [state, PlainConv(rgb / 255, depth in metres)])       (paper Sec. 5.1: the CNN base is this, with an
                                                                        MLP of 2 x 256 behind it and squared errors)
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.mlp import MLPConfig, Standardize
from policy_decorator.encoders import Encoder, EncoderConfig, Shapes

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations


@dataclass(frozen=True)
class CNNConfig(MLPConfig):
    """Behaviour cloning from pictures: a CNN in front of a multi-layer perceptron."""


class BehindEncoder(nn.Module):
    """What a policy with eyes does with what its encoder says of frames: windows of that are (B, To, Do + F)."""

    def __init__(self, policy: Imitator, standardize: nn.Module, state_size: int) -> None:
        super().__init__()
        self.policy, self.standardize, self.state_size = policy, standardize, state_size

    @property
    def cfg(self) -> Any:
        return self.policy.cfg

    @property
    def context(self) -> int:
        return self.policy.context

    @property
    def chunk(self) -> int:
        return self.policy.chunk

    @property
    def lora_layers(self) -> tuple[str, ...]:
        """Of the policy, where it has some."""
        return getattr(self.policy, "lora_layers", ())

    def means(self, window: Tensor, actions: Tensor | None = None) -> Tensor:
        """The policy's, where it has them, with gradients: (B, To, Do + F) -> (B, T, Da)."""
        return cast(Any, self.policy).means(_standardized(window, self.standardize, self.state_size), actions)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do + F) -> (B, Ta, Da) in [-1, 1]."""
        return self.policy.act(_standardized(window, self.standardize, self.state_size))


def _standardized(seen: Tensor, standardize: nn.Module, state_size: int) -> Tensor:
    """(*, Do + F), of which the state is standardised."""
    state, features = seen.split([state_size, seen.shape[-1] - state_size], dim=-1)
    return torch.cat([standardize(state), features], dim=-1)


class SeeingPolicy(nn.Module):
    """`policy` on what an encoder says of each frame; windows are TensorDicts (B, To) of state and pictures."""

    def __init__(
        self,
        cfg: Any,
        obs_size: int,
        action_size: int,
        make: Callable[[Any, int, int], Imitator],
        shapes: Shapes,
        eyes: EncoderConfig,
    ) -> None:
        """`make` a policy of the config `cfg`; `obs_size` is that of the state beside the pictures."""
        super().__init__()
        self.cfg, self.obs_size, self.action_size = cfg, obs_size, action_size
        self.encoder = Encoder(eyes, shapes, obs_size)
        own = getattr(cfg, "standardize_obs", False)  # of the state alone: what features will be is not known yet
        self.standardize = Standardize(obs_size) if own else nn.Identity()
        behind = dataclasses.replace(cfg, standardize_obs=False) if own else cfg
        self.policy = make(behind, self.encoder.size, action_size)

    @property
    def shapes(self) -> Shapes:
        """(C, H, W) of the pictures that it looks at."""
        return self.encoder.shapes

    @property
    def eyes(self) -> EncoderConfig:
        """How it looks at them."""
        return self.encoder.cfg

    @property
    def context(self) -> int:
        """To: frames it looks at."""
        return self.policy.context

    @property
    def chunk(self) -> int:
        """Ta: actions it answers with."""
        return self.policy.chunk

    @property
    def horizon(self) -> int:
        """Th: actions it is trained on per window."""
        return getattr(self.policy, "horizon", self.context)

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """As the policy behind the encoder, and the standardisation of the state."""
        self.policy.fit_statistics(demos, seed)
        if isinstance(self.standardize, Standardize):
            self.standardize.fit(demos.observations)

    @property
    def behind(self) -> BehindEncoder:
        """What it does with what `embed` says: of the same parts."""
        return BehindEncoder(self.policy, self.standardize, self.obs_size)

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """What it makes of frames (*): state and features (*, Do + F). Who learns may see that instead of pictures."""
        return self.encoder(frames)

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """That of the policy behind the encoder, on pictures shifted at random, each frame's by its own distance."""
        return self.policy.loss(self._seen(window, shifted=True), actions)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To) -> (B, Ta, Da) in [-1, 1]."""
        return self.policy.act(self._seen(window, shifted=False))

    def _seen(self, window: Tensor, *, shifted: bool) -> Tensor:
        """(B, To) -> (B, To, Do + F)."""
        return _standardized(self.encoder(window, shifted=shifted), self.standardize, self.obs_size)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Those of the policy behind the encoder; of the encoder weights decay, biases do not."""
        weights = [parameter for parameter in self.encoder.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in self.encoder.parameters() if parameter.ndim == 1]
        own = [{"params": weights, "weight_decay": weight_decay}, {"params": biases, "weight_decay": 0.0}]
        return [*self.policy.parameter_groups(weight_decay), *own]
