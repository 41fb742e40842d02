"""What is checked of every answer of somebody else's policy: its shape, its numbers, the length of its chunk."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policy_decorator.errors import UserError

FAR_OUT = 1.5
"""Answers up to here are an overshoot; beyond it is said that they are clamped."""


class WrongShape(Exception):
    """An answer that is none; the message goes on after "The policy"."""


def tensor_of(answer: Any) -> Tensor:
    """A tensor, an array or nested lists as a tensor without a gradient."""
    return answer.detach() if isinstance(answer, Tensor) else torch.from_numpy(np.array(answer, dtype=np.float32))


def shaped(answer: Any, rows: tuple[int, ...], chunk: int | None, action_size: int) -> Tensor:
    """(*rows, Da) or (*rows, T, Da) -> (*rows, Ta, Da); of more actions than `chunk` the first are taken.

    `rows` is (B,) or (); `chunk` None: a single action, and longer chunks are refused, as nobody said how many of their
    actions are to be executed. Raises WrongShape.
    """
    given = tensor_of(answer)
    own, wanted = tuple(given.shape[len(rows) :]), chunk or 1
    single = {(action_size,)} | ({()} if action_size == 1 and not rows else set())
    if tuple(given.shape[: len(rows)]) == rows:
        if wanted == 1 and own in single:
            return given.reshape(*rows, 1, action_size)
        if len(own) == 2 and own[1] == action_size and own[0] > 0:
            if own[0] < wanted:
                raise WrongShape(
                    f"answered with a chunk of {own[0]} actions, {wanted} are to be executed: lower chunk."
                )
            if chunk is None and own[0] > 1:
                raise WrongShape(
                    f"answered with a chunk of {own[0]} actions: say how many of them are executed before it is asked "
                    f"again, as CallablePolicy(fn, {action_size}, chunk={own[0]}), or ?chunk={own[0]} behind a file or "
                    "address."
                )
            return given[..., :wanted, :]
    shapes = [str((*rows, wanted, action_size))] + [str((*rows, *s)) for s in sorted(single) if wanted == 1]
    raise WrongShape(f"answered with shape {tuple(given.shape)} instead of {' or '.join(shapes)}.")


def checked(actions: Tensor, whose: str = "The policy's action") -> Tensor:
    """(K, Ta, Da) clamped to [-1, 1], as the environment would do with it. Raises UserError where it is not finite."""
    bad = ~actions.isfinite().flatten(1).all(dim=1)  # (K,)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(
            f"{whose} in row {row} of {len(actions)} is not finite: {actions[row].flatten().tolist()[:8]}. "
            "Look at what it does with this observation."
        )
    if (most := actions.abs().max().item() if len(actions) else 0.0) > FAR_OUT:
        warnings.warn(
            f"{whose} is as large as {most:.3g}, and clamped to [-1, 1]: actions lie there, not in the environment's "
            "own units.",
            stacklevel=2,
        )
    return actions.clamp(-1.0, 1.0)


STATISTICS = ("mean", "std", "min", "max", "running_mean", "running_var", "q01", "q10", "q90", "q99")
"""Names of tensors in which infinity is no number either; elsewhere it may be a mask."""


def check_numbers(module: nn.Module, whose: str = "the policy") -> None:
    """Refuses networks with parameters or statistics of observations that are not numbers. Raises UserError."""
    check_values([*module.named_parameters(), *module.named_buffers()], whose)


def check_values(named: Iterable[tuple[str, Tensor]], whose: str) -> None:
    """The same of tensors with names."""
    for name, value in named:
        statistic = name.rsplit(".", 1)[-1] in STATISTICS
        if value.is_floating_point() and (value.isnan().any() or (statistic and not value.isfinite().all())):
            raise UserError(
                f"{name} of {whose} is not finite: load its weights, and look at the data its statistics are from."
            )


def device_of(policy: Any) -> torch.device | None:
    """Where a network's parameters or buffers are; None where there are none."""
    if not isinstance(policy, nn.Module):
        return None
    return next((x.device for x in (*policy.parameters(), *policy.buffers())), None)
