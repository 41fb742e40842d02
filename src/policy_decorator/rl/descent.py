"""Steps down a loss, and the target that follows."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.adam import Adam, adam
from torch.optim.swa_utils import get_ema_multi_avg_fn


def penalised(loss: Tensor, raw: Tensor, weight: Tensor | None) -> Tensor:
    """loss (B,) + weight * |raw|^2 per row; without a weight nothing is computed."""
    return loss if weight is None else loss + weight * raw.flatten(1).square().sum(-1)


class Descent(Adam):
    """Adam with clipped gradients. Its moments are there from the outset, so that every step is alike."""

    def __init__(self, params: Iterable[nn.Parameter | Tensor], lr: float, max_grad_norm: float) -> None:
        super().__init__([{"params": list(params), "max_grad_norm": max_grad_norm}], lr, fused=True)
        for p in self.param_groups[0]["params"]:
            moments = {"exp_avg": torch.zeros_like(p.detach()), "exp_avg_sq": torch.zeros_like(p.detach())}
            self.state[p] = {"step": torch.zeros((), device=p.device), **moments}

    def down(self, loss: Tensor) -> None:
        """One step. Gradients of this optimiser's parameters only: the actor's step costs no critic gradients."""
        group = self.param_groups[0]
        params = group["params"]
        grads = [grad.contiguous() for grad in torch.autograd.grad(loss, params)]  # the kernel reads them as they lie
        # Differs from the released code: all Q functions are clipped together, being one batched network.
        scale = (group["max_grad_norm"] / (nn.utils.get_total_norm(grads) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)  # pyright: ignore[reportPrivateImportUsage]
        states = [self.state[p] for p in params]
        with torch.no_grad():
            adam(
                params,
                grads,
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],  # by place: PyTorch never compiles it with steps by name on a GPU
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=0.0,
                eps=group["eps"],
                maximize=False,
                # A compiler fuses the steps of an update itself; without one there is a kernel for all of them.
                foreach=False,
                fused=not torch.compiler.is_compiling(),
                capturable=torch.compiler.is_compiling(),
            )


@torch.no_grad()
def follow(target: nn.Module, net: nn.Module, tau: float) -> None:
    """target <- (1 - tau) * target + tau * net."""
    get_ema_multi_avg_fn(1 - tau)(list(target.parameters()), list(net.parameters()), None)
