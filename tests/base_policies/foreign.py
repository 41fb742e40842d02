"""What holds for every adapter of somebody else's policy, and small policies to try it on."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from policy_decorator.memory import AnyPolicy, has_memory, session

OBS, ACTION = 6, 2
STEPS, ROWS = 12, 3


def real(module: str) -> Any:
    """A library, or a skipped test where it is not installed or cannot be imported here."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        pytest.skip(f"{module} cannot be imported here: {error}")


def episode(steps: int = STEPS, seed: int = 0, obs_size: int = OBS) -> Tensor:
    """(steps, Do) observations of an episode."""
    return torch.rand(steps, obs_size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def played(policy: AnyPolicy, obs: Tensor, row: int = 0) -> Tensor:
    """(T, Do) -> (T, Ta, Da): one episode, alone, in this row of a session of its own."""
    torch.manual_seed(0)
    asked = session(policy)
    asked.reset(torch.tensor([row]))
    return torch.cat([asked.act(_window(asked.context, obs, t), torch.tensor([row])) for t in range(len(obs))])


def _window(context: int, obs: Tensor, t: int) -> Tensor:
    """(1, To, Do); the first frame is repeated before the episode."""
    return obs[torch.arange(t - context + 1, t + 1).clamp(min=0)][None]


def check_contract(
    policy: AnyPolicy, *, random: bool = False, asked_per_episode: int = STEPS, close: float = 1e-5
) -> None:
    """Shapes, bounds, no gradient; a memory for every row, begun anew by its reset alone; sessions; honest counts."""
    obs = [episode(seed=k) for k in range(ROWS)]
    alone = [played(policy, o, row=k) for k, o in enumerate(obs)]
    chunk = int(getattr(policy, "chunk", 1))
    assert alone[0].shape == (STEPS, chunk, ACTION)
    assert alone[0].dtype == torch.float32
    assert not alone[0].requires_grad
    assert alone[0].isfinite().all()
    assert alone[0].abs().max() <= 1
    asked = session(policy)
    rows = torch.arange(ROWS)
    asked.reset(rows)
    torch.manual_seed(0)
    together = []
    for t in range(STEPS):
        if t == 5:  # in the middle of it, another session plays
            played(policy, obs[1])
            torch.manual_seed(5)
        together.append(asked.act(torch.cat([_window(asked.context, o, t) for o in obs]), rows))
    assert asked.queries == ROWS * asked_per_episode
    if random:
        check_reset_of_one_that_draws(policy, obs, alone[0], STEPS // asked_per_episode, close)
        return
    torch.testing.assert_close(torch.stack(together), torch.stack(alone, dim=1), atol=close, rtol=0)
    torch.testing.assert_close(played(policy, obs[0]), alone[0], atol=close, rtol=0)  # the same again
    if has_memory(policy):
        check_reset_of_one_row(policy, obs, alone, close)


def check_reset_of_one_that_draws(
    policy: AnyPolicy, obs: list[Tensor], alone: Tensor, every: int, close: float
) -> None:
    """With the numbers that it drew before, an episode is played as before: behind a reset, with others in between.

    `every`: steps of a row from one question to its network to the next.
    """
    asked, rows = session(policy), torch.arange(2)
    asked.reset(rows)
    for t in range(begin := every + 1):  # row 1 goes on with this episode, row 0 gives it up
        asked.act(torch.cat([_window(asked.context, o, t) for o in obs[:2]]), rows)
    asked.reset(rows[:1])
    torch.manual_seed(0)
    answers = []
    for t in range(STEPS):
        answers.append(asked.act(_window(asked.context, obs[0], t), rows[:1]))
        with torch.random.fork_rng():
            played(policy, obs[2][:1])
            if begin + t < STEPS:
                asked.act(_window(asked.context, obs[1], begin + t), rows[1:])
    torch.testing.assert_close(torch.cat(answers), alone, atol=close, rtol=0)
    assert asked.queries == -(-begin // every) + 2 * (STEPS // every)


def check_reset_of_one_row(policy: AnyPolicy, obs: list[Tensor], alone: list[Tensor], close: float) -> None:
    """Row 1 begins anew after four steps; the other rows, asked in another order, do not notice."""
    asked = session(policy)
    asked.reset(torch.arange(ROWS))
    begin = 4
    for t in range(STEPS):
        if t == begin:
            asked.reset(torch.tensor([1]))
        at = [t, t - begin if t >= begin else t, t]
        order = torch.tensor([2, 0, 1]) if t % 2 else torch.arange(ROWS)
        windows = torch.cat([_window(asked.context, obs[k], at[k]) for k in order.tolist()])
        answer = asked.act(windows, order)
        wanted = torch.stack([alone[k][at[k]] for k in order.tolist()])
        torch.testing.assert_close(answer, wanted, atol=close, rtol=0)


def remembers(policy: AnyPolicy) -> bool:
    """Whether what it did before matters: the last action of an episode, and the same observation asked alone."""
    obs = episode()
    return not torch.allclose(played(policy, obs)[-1:], played(policy, obs[-1:]), atol=1e-6)


Maker = Callable[[], AnyPolicy]
