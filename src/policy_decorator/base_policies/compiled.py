"""A base policy's loss, compiled where that pays."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from policy_decorator.base_policies.processes import Loss

if TYPE_CHECKING:
    from policy_decorator.base_policies.imitate import ImitateConfig

WORTH_COMPILING = 10_000  # steps


def compiles(cfg: "ImitateConfig", device: torch.device) -> bool:
    """`cfg.compile`, "auto" being on where it pays."""
    return cfg.compile == "on" or (cfg.compile == "auto" and device.type == "cuda" and cfg.steps >= WORTH_COMPILING)


def compiled(loss: Loss) -> Loss:
    """The same, compiled, with the same noise; where that fails it warns and goes on without."""
    graph, works = torch.compile(loss, dynamic=False, options={"fallback_random": True}), True

    def call(window: Tensor, actions: Tensor) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.exc import InductorError

        nonlocal works
        try:
            return graph(window, actions) if works else loss(window, actions)
        except (TorchDynamoException, InductorError) as error:
            works, reason = False, str(error).strip().split("\n")[0]
            warnings.warn(f"torch.compile failed, so training takes longer: {reason}", stacklevel=2)
            return loss(window, actions)

    return call
