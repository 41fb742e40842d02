"""What the base policy would have done in the demonstrations: the one place where it is asked about them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_decorator import randomness
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.images import together
from policy_decorator.errors import UserError
from policy_decorator.memory import AnyPolicy, Memoryless, session
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.types import StatefulPolicy


def demonstrate(
    demos: Demonstrations, base: AnyPolicy, device: torch.device, ends_at_success: bool = True
) -> Demonstrated:
    """The demonstrations, each up to its first success if that ends it, with what the base would have done in them.

    Raises:
        UserError: the base answers with action chunks.
    """
    asked = session(base)
    obs, actions, bases, success, lengths = [], [], [], [], []
    for (o, a), start in zip(demos.split(), demos.starts, strict=True):
        reached = np.flatnonzero(demos.success[start : start + len(a)])
        n = int(reached[0]) + 1 if len(reached) and ends_at_success else len(a)
        frames = _frames(o, n, device)  # (n, Do)
        rows = torch.arange(n)[:, None] + torch.arange(1 - base.context, 1)  # (n, To)
        with randomness.forked(), torch.no_grad():
            answer = _answers(asked, frames[rows.clamp(min=0)])  # (n, Ta, Da)
        if answer.shape[1] != 1:
            raise UserError(
                "Demonstrations are learned from action by action, and this base policy answers with chunks: let it be "
                "asked step by step (--decide step), or learn without demonstrations."
            )
        obs.append(frames)
        actions.append(torch.from_numpy(a[:n]).to(device)[:, None])
        bases.append(answer)
        success.append(torch.from_numpy(demos.success[start : start + n]).to(device))
        lengths.append(n)
    seen: Any = torch.cat(obs)
    if not isinstance(seen, Tensor):
        seen["frame"] = torch.arange(len(seen), device=device)
    rows = seen, torch.cat(actions), torch.cat(bases), torch.cat(success)
    return Demonstrated(*rows, torch.tensor(lengths, device=device), ends_at_success, asked.queries)


def _answers(asked: StatefulPolicy, windows: Tensor) -> Tensor:
    """To the windows (n, To, Do) of one episode: all at once where nothing is remembered from one to the next."""
    if isinstance(asked, Memoryless):
        return asked.act(windows, torch.arange(len(windows)))
    asked.reset(row := torch.zeros(1, dtype=torch.int64))
    return torch.cat([asked.act(windows[k : k + 1], row) for k in range(len(windows))])


def _frames(seen: Any, n: int, device: torch.device) -> Tensor:
    """The first n frames of an episode as tensors: (n, Do), or where there are pictures a TensorDict (n,)."""
    if not isinstance(seen, dict):
        return torch.from_numpy(seen[:n]).to(device)
    return together({name: torch.from_numpy(x[:n]).to(device) for name, x in seen.items()}, ndim=1)
