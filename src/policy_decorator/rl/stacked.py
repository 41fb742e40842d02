"""n ReLU networks evaluated as one batched product per layer."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """(n, B, in) -> (n, B, out): n linear layers side by side, with the default initialisation of one."""

    def __init__(self, n: int, inputs: int, outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(inputs, outputs) for _ in range(n)]
        self.weight = nn.Parameter(torch.stack([m.weight.detach() for m in layers]))  # (n, out, in)
        self.bias = nn.Parameter(torch.stack([m.bias.detach()[None] for m in layers]))  # (n, 1, out)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.baddbmm(bias, x, weight.mT)


class StackedMLP(nn.Module):
    """(B, in) -> (n, B, out), with a small last layer.

    The layers between the first and the last may be computed in another number format (`hidden_dtype`, bfloat16):
    inputs, outputs and the weights that are learned keep all their digits.
    """

    def __init__(
        self,
        n: int,
        sizes: tuple[int, ...],
        head_gain: float,
        *,
        layer_norm: bool = False,
        hidden_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n, self.layer_norm, self.hidden_dtype = n, layer_norm, hidden_dtype
        first, *hidden, head = [StackedLinear(n, a, b) for a, b in pairwise(sizes)]
        for weight in head.weight:
            nn.init.orthogonal_(weight, head_gain)
        nn.init.zeros_(head.bias)
        self.first, self.hidden, self.head = first, nn.ModuleList(hidden), head

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.hidden_dtype or x.dtype
        h = self._activate(self.first(x.expand(self.n, *x.shape))).to(dtype)  # (n, B, width)
        for layer in self.hidden:
            h = self._activate(layer(h))
        return self.head(h.to(x.dtype))

    def _activate(self, x: Tensor) -> Tensor:
        return (nn.functional.layer_norm(x, x.shape[-1:]) if self.layer_norm else x).relu()
