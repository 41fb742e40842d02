"""One step down a loss, and the target that follows."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def penalised(loss: Tensor, raw: Tensor, weight: float) -> Tensor:
    """loss (B,) + weight * |raw|^2 per row; without a weight nothing is computed."""
    return loss + weight * raw.flatten(1).square().sum(-1) if weight else loss


def descend(opt: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> None:
    """Gradients of this optimiser's parameters only: the actor's step costs no critic gradients."""
    params = opt.param_groups[0]["params"]
    for p, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = grad.contiguous()  # fused Adam reads memory as it lies
    # Differs from the released code: all Q functions are clipped together, being one batched network.
    nn.utils.clip_grad_norm_(params, max_grad_norm)
    opt.step()


@torch.no_grad()
def follow(target: nn.Module, net: nn.Module, tau: float) -> None:
    """target <- (1 - tau) * target + tau * net."""
    get_ema_multi_avg_fn(1 - tau)(list(target.parameters()), list(net.parameters()), None)
