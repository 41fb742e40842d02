"""What the matrix products alone would take: their number in one update over the fastest this machine multiplies.

2 m k n operations for (m, k) @ (k, n). The gradient of a linear layer needs as many again for its weights, and as many
again for its inputs where a gradient goes on from there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "tf32": torch.float32}


def update_flops(*, obs: int, action: int, width: int, depth: int, critics: int, batch_size: int) -> int:
    """Operations in the matrix products of one `SAC.update`, an actor step included.

    Of the gradient with respect to the critics' inputs all columns are counted, being one product; the actor uses those
    of the action.
    """
    hidden = (width,) * depth
    actor, actor_first = _forward((obs, *hidden, 2 * action), batch_size)
    critic, critic_first = (critics * n for n in _forward((obs + action, *hidden, 1), batch_size))
    critic_step = actor + critic + critic + critic + (critic - critic_first)  # next action, target, Q, weights, inputs
    actor_step = actor + critic + critic + actor + (actor - actor_first)  # action, Q, its inputs, weights, inputs
    return critic_step + actor_step


def _forward(sizes: tuple[int, ...], batch_size: int) -> tuple[int, int]:
    """Operations of a network, and those of its first layer."""
    each = [2 * batch_size * a * b for a, b in pairwise(sizes)]
    return sum(each), each[0]


def product_rate(
    name: str, *, batch_size: int, width: int, critics: int, device: torch.device, seconds: float
) -> float:
    """Operations per second of the fastest product of the update's dominant shape, in the format `name`.

    (rows, width) @ (width, width) with the rows of one batch, of all critics together, and four times as many; for
    float32 both with this process's settings and with PyTorch's default ones.
    """
    dtype, rows = FORMATS[name], (batch_size, critics * batch_size, 4 * critics * batch_size)
    settings = {"float32": {"highest", torch.get_float32_matmul_precision()}, "tf32": {"high"}}.get(name, {"highest"})
    if device.type == "cuda" and name == "float32":
        settings = {"highest"}  # the others round on a GPU: that is the format tf32
    share = seconds / (len(rows) * len(settings))
    best = 0.0
    for precision in sorted(settings):
        with _matmul_precision(precision):
            for m in rows:
                a, b = (torch.randn(n, width, device=device).to(dtype) for n in (m, width))
                best = max(best, 2 * m * width * width / _fastest(a, b, share))
    return best


def _fastest(a: Tensor, b: Tensor, seconds: float) -> float:
    """Seconds of the fastest of many products, ten at a time."""
    out, best = a @ b, float("inf")
    end = time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        wait(a.device)
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b, out=out)
        wait(a.device)
        best = min(best, (time.perf_counter() - start) / 10)
    return best


@contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
