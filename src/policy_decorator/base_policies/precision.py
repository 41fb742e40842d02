"""In which number format a base policy's training computes its loss."""

from typing import Any, Literal

import torch
from torch import nn

from policy_decorator.base_policies.mlp import Standardize
from policy_decorator.errors import UserError

Precision = Literal["auto", "float32", "bfloat16"]


def in_bfloat16(policy: Any, precision: Precision, device: torch.device) -> bool:
    """Whether layers compute in bfloat16. Raises UserError where the policy's cannot on this device."""
    # Differs from the released code, which does not choose: bfloat16 knows a position near 1 m to 4 mm, so a policy
    # that sees observations as they are would be trained on others than it acts on.
    if precision == "auto":
        return device.type == "cuda" and any(isinstance(part, Standardize) for part in policy.modules())
    if precision == "bfloat16" and device.type == "cpu" and any(isinstance(x, nn.RNNBase) for x in policy.modules()):
        _check_recurrent_layers()
    return precision == "bfloat16"


def _check_recurrent_layers() -> None:
    """oneDNN has none in bfloat16 for processors without an own unit for it, and says so during the training."""
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16):
        try:
            nn.LSTM(1, 1)(torch.zeros(1, 1, 1))[0].sum().backward()
        except RuntimeError:
            raise UserError(
                "This CPU cannot train recurrent layers in bfloat16: leave out --precision bfloat16."
            ) from None
