"""What the base policy would have done in the demonstrations: the one place where it is asked about them."""

from typing import Any

import numpy as np
import torch

from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.images import together
from policy_decorator.errors import UserError
from policy_decorator.rl.demonstrations import Demonstrated
from policy_decorator.types import BasePolicy


def demonstrate(demos: Demonstrations, base: BasePolicy, device: torch.device) -> Demonstrated:
    """The demonstrations, each up to its first success, with what the base would have done in them.

    Raises:
        UserError: the base answers with action chunks.
    """
    obs, actions, bases, success, lengths = [], [], [], [], []
    for (o, a), start in zip(demos.split(), demos.starts, strict=True):
        reached = np.flatnonzero(demos.success[start : start + len(a)])
        n = int(reached[0]) + 1 if len(reached) else len(a)
        frames = _frames(o, n, device)  # (n, Do)
        rows = torch.arange(n)[:, None] + torch.arange(1 - base.context, 1)  # (n, To)
        with torch.random.fork_rng(), torch.no_grad():
            answer = base.act(frames[rows.clamp(min=0)])  # (n, Ta, Da)
        if answer.shape[1] != 1:
            raise UserError("demo_share needs a base policy that answers with single actions, not with chunks.")
        obs.append(frames)
        actions.append(torch.from_numpy(a[:n]).to(device)[:, None])
        bases.append(answer)
        success.append(torch.from_numpy(demos.success[start : start + n]).to(device))
        lengths.append(n)
    seen: Any = torch.cat(obs)
    if not isinstance(seen, torch.Tensor):
        seen["frame"] = torch.arange(len(seen), device=device)
    rows = seen, torch.cat(actions), torch.cat(bases), torch.cat(success)
    return Demonstrated(*rows, torch.tensor(lengths, device=device))


def _frames(seen: Any, n: int, device: torch.device) -> torch.Tensor:
    """The first n frames of an episode as tensors: (n, Do), or where there are pictures a TensorDict (n,)."""
    if not isinstance(seen, dict):
        return torch.from_numpy(seen[:n]).to(device)
    return together({name: torch.from_numpy(x[:n]).to(device) for name, x in seen.items()}, ndim=1)
