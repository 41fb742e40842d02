"""VINN that sees: distances are measured in the state and in what the CNN of a trained policy says of the pictures.

As FISH's base policy for pictures the paper takes the CNN of its Diffusion Policy (App. D.4, Table 14).
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.mlp import Standardize
from policy_decorator.base_policies.seeing import SeeingPolicy
from policy_decorator.base_policies.vinn import VINNConfig
from policy_decorator.encoders import EncoderConfig, Shapes
from policy_decorator.envs.images import together
from policy_decorator.errors import UserError

if TYPE_CHECKING:
    from policy_decorator.demos.dataset import Demonstrations

AT_ONCE = 256  # frames that are looked at together


class SeeingVINN(SeeingPolicy):
    """VINN behind the CNN of another policy, which stays as it is: there is nothing to train."""

    learns = False

    def __init__(
        self,
        cfg: VINNConfig,
        obs_size: int,
        action_size: int,
        make: Callable[[Any, int, int], Imitator],
        shapes: Shapes,
        eyes: EncoderConfig,
    ) -> None:
        """`eyes` are those of the encoder's folder where one is named.

        Raises:
            UserError: another representation than eyes; a queue; a folder whose policy sees nothing, or other things.
        """
        if cfg.representation != "eyes" or cfg.queue:
            raise UserError(
                "On pictures VINN needs --representation eyes --encoder FOLDER of a policy that sees, and no queue."
            )
        trained = None if cfg.encoder is None else _seeing(cfg.encoder, obs_size, shapes)
        cfg = dataclasses.replace(cfg, encoder=None)
        behind = dataclasses.replace(cfg, representation="obs")
        eyes = eyes if trained is None else trained.eyes
        super().__init__(cfg, obs_size, action_size, lambda _, *sizes: make(behind, *sizes), shapes, eyes)
        self.standardize = Standardize(obs_size)
        if trained is not None:
            self.encoder.load_state_dict(trained.encoder.state_dict())
        self.encoder.requires_grad_(False)
        self._can_see = trained is not None

    def fit_statistics(self, demos: "Demonstrations", seed: int = 0) -> None:
        """Look at all frames of the demonstrations and keep what was seen.

        Raises:
            UserError: nobody's eyes were given; fewer frames than neighbours.
        """
        if not self._can_see:
            raise UserError("VINN sees through the eyes of a trained policy: name its folder (--encoder FOLDER).")
        assert isinstance(self.standardize, Standardize)
        self.standardize.fit(demos.observations)
        device = next(self.encoder.parameters()).device
        frames = together({name: torch.from_numpy(x) for name, x in demos.frames().items()}, ndim=1)  # (N,)
        with torch.no_grad():
            seen = torch.cat([self._seen(part.to(device), shifted=False).cpu() for part in frames.split(AT_ONCE)])
        self.policy.fit_statistics(dataclasses.replace(demos, observations=seen.numpy(), pictures={}), seed)

    def loss(self, window: Tensor, actions: Tensor) -> Tensor:
        """Zero."""
        return actions.new_zeros((), requires_grad=True)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """One without parameters."""
        return [{"params": [], "weight_decay": 0.0}]


def _seeing(folder: str, obs_size: int, shapes: Shapes) -> SeeingPolicy:
    """The policy in the folder. Raises UserError where it does not see these pictures."""
    from policy_decorator.base_policies.checkpoint import load_policy  # knows this policy too

    policy = load_policy(folder)
    if not isinstance(policy, SeeingPolicy):
        raise UserError(f"The encoder {folder} sees no pictures: train a policy that does (pidec imitate cnn).")
    if policy.obs_size != obs_size or dict(policy.shapes) != dict(shapes):
        raise UserError(
            f"The encoder {folder} sees {policy.obs_size} numbers and {dict(policy.shapes)}, the task shows {obs_size} "
            f"and {dict(shapes)}: take one that was trained on this task."
        )
    return policy
