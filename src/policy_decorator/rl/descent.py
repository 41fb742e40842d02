"""One step down a loss."""

import torch
from torch import Tensor, nn


def descend(opt: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float) -> None:
    """Gradients of this optimiser's parameters only: the actor's step costs no critic gradients."""
    params = opt.param_groups[0]["params"]
    for p, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
        p.grad = grad.contiguous()  # fused Adam reads memory as it lies
    # Differs from the released code: all Q functions are clipped together, being one batched network.
    nn.utils.clip_grad_norm_(params, max_grad_norm)
    opt.step()
