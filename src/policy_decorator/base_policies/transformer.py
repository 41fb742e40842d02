"""A block of a causal transformer, and the size its weights begin with."""

import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02  # of every weight inside the transformer


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): causal, normalised before each branch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def residual_projections(self) -> list[nn.Linear]:
        """The two layers whose outputs are added to the stream."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        return [self.attention_out, last]

    def forward(self, x: Tensor, dropout: float, newest_only: bool = False) -> Tensor:
        """(B, T, E) -> (B, T, E), or (B, 1, E) of the newest frame, which sees all the others."""
        joint = self.attention_in(self.attention_norm(x))  # (B, T, 3 E)
        split = joint.unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, E/H)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B, H, T, E/H) each
        if newest_only:
            query, x = query[:, :, -1:], x[:, -1:]
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=not newest_only)
        x = x + drop(self.attention_out(seen.transpose(1, 2).flatten(2)), dropout)  # (B, T, E)
        return x + drop(self.mlp(self.mlp_norm(x)), dropout)


def drop(x: Tensor, dropout: float) -> Tensor:
    """Zeroes that share of the numbers."""
    return F.dropout(x, dropout) if dropout > 0 else x
