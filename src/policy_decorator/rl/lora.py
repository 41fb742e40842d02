"""Low-rank adaptation (LoRA, arXiv:2106.09685) of a policy, by the library PEFT.

    y = W x + (alpha / r) B A x        W frozen; A random, B = 0 at first, so that the policy begins as it was

The paper (App. B.4) adapts a Behavior Transformer's attention layers and head, and all layers of a Diffusion Policy. It
names neither r nor alpha.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from policy_decorator.errors import MissingExtra, UserError


@dataclass(frozen=True)
class LoRAConfig:
    """The paper names none of these."""

    lora_rank: int = 8
    """r."""
    lora_alpha: int = 16
    """alpha; the correction is weighed by alpha / r."""

    def __post_init__(self) -> None:
        if min(self.lora_rank, self.lora_alpha) < 1:
            raise UserError("lora_rank and lora_alpha must be at least 1.")


class Whole(nn.Module):
    """Stands where PEFT's tuner does, without corrections."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def merge_and_unload(self) -> nn.Module:
        return self.model


class Adapted(nn.Module):
    """A copy of a policy of which only corrections of linear and convolutional `layers` learn (names, or their ends).

    Without settings of LoRA all of the copy learns.

    Raises:
        MissingExtra: PEFT is not installed.
    """

    def __init__(self, policy: nn.Module, layers: Sequence[str], cfg: LoRAConfig | None) -> None:
        super().__init__()
        self._served: tuple[list[Tensor], Any] | None = None
        if cfg is None:
            self.tuner = Whole(copy.deepcopy(policy).requires_grad_(True))
            return
        try:
            from peft import LoraConfig
            from peft.tuners.lora import LoraModel
        except ImportError:
            raise MissingExtra("PEFT", "lora") from None
        config = LoraConfig(r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, target_modules=list(layers))
        self.tuner = LoraModel(copy.deepcopy(policy).requires_grad_(False), cast(Any, config), "default")

    @property
    def policy(self) -> Any:
        """With its corrections beside its layers."""
        return self.tuner.model

    @property
    def learned(self) -> list[nn.Parameter]:
        """All parameters that learn."""
        return [p for p in self.parameters() if p.requires_grad]

    def merged(self) -> nn.Module:
        """A copy of the policy with its corrections inside its layers: one as it was before."""
        merged = cast(Any, copy.deepcopy(self.tuner)).merge_and_unload()
        return merged.requires_grad_(False)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        """(B, To, Do) -> (B, Ta, Da), what `merged` answers: sums are rounded otherwise than beside the layers."""
        if isinstance(self.tuner, Whole):
            return self.policy.act(window)
        now = self.learned
        if self._served is None or not all(map(torch.equal, self._served[0], now)):
            self._served = [p.detach().clone() for p in now], self.merged()
        return self._served[1].act(window)
