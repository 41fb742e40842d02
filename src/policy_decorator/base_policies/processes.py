"""Training in several processes, one per GPU, that share each batch: by the library Accelerate.

    torchrun --nproc-per-node 2 -m policy_decorator.cli imitate ...
    accelerate launch --multi_gpu --num_processes 2 -m policy_decorator.cli imitate ...

Both launchers say in the environment who is who. All processes draw the same batch and take every n-th window of it,
so the mean of their gradients is that of one process with the whole batch.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from policy_decorator.errors import MissingExtra

PATIENCE = timedelta(days=1)
"""How long processes wait while the first one evaluates in simulators."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Window (B, To, Do), actions (B, Th, Da) -> ()."""


class Processes:
    """This process alone."""

    rank, count = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def share(self) -> slice:
        """Of a batch, the windows of this process."""
        return slice(self.rank, None, self.count)

    def together(self, policy: Any, loss: Loss) -> Loss:
        """The loss whose gradients are the mean of all processes'."""
        del policy
        return loss

    def gather(self, value: Tensor) -> list[Tensor]:
        """One of every process, in their order."""
        return [value]


class Launched(Processes):
    """One of several. Raises MissingExtra where Accelerate is not installed."""

    def __init__(self, device: torch.device) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ModuleNotFoundError:
            raise MissingExtra("accelerate", "several-gpus") from None
        patience = InitProcessGroupKwargs(timeout=PATIENCE)
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[patience])
        super().__init__(self.accelerator.device)
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes

    def together(self, policy: Any, loss: Loss) -> Loss:
        return self.accelerator.prepare_model(_Forward(policy, loss))

    def gather(self, value: Tensor) -> list[Tensor]:
        from accelerate.utils import gather_object

        return gather_object([value])


class _Forward(nn.Module):
    """A loss as the module that distributed training wants, with the policy's parameters."""

    def __init__(self, policy: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.policy, self.loss = policy, loss

    def forward(self, window: Tensor, actions: Tensor) -> Tensor:
        return self.loss(window, actions)


def rank() -> int:
    """Which process this is, 0 being the one that evaluates, writes and answers."""
    return int(os.environ.get("RANK", "0"))


def processes_of(device: torch.device) -> Processes:
    """As the launcher says; of a `cuda` device every process takes its own."""
    return Launched(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Processes(device)
