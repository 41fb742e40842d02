"""Objects with a memory of one episode, asked about many."""

import threading
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy_decorator import evaluate
from policy_decorator.base_policies.checkpoint import parameter_hash
from policy_decorator.base_policies.copies import Copies
from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.networks import parameters_of
from policy_decorator.envs import get_task
from policy_decorator.errors import UserError
from policy_decorator.memory import session


class Late:
    """Moves to the goal from the fourth step of an episode on, and away from it before; of one numpy row."""

    def __init__(self) -> None:
        self.seen: deque[float] = deque(maxlen=4)

    def reset(self) -> None:
        self.seen.clear()  # in place: copies must not share it

    def act(self, obs: np.ndarray) -> np.ndarray:
        assert isinstance(obs, np.ndarray)
        self.seen.append(float(obs[0]))
        towards = 1 if len(self.seen) == 4 else -1
        return towards * 10 * (obs[2:4] - obs[:2])


class Recurrent(nn.Module):
    """A network with a hidden state, of a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 2)
        self.reset()

    def reset(self) -> None:
        self.hidden = torch.zeros(1, 8)

    def forward(self, obs: Tensor) -> Tensor:
        assert obs.shape == (1, 4)
        self.hidden = self.cell(obs, self.hidden)
        return self.head(self.hidden)


def _play(policy: Any, rows: Tensor, begins: dict[int, list[int]]) -> Tensor:
    """(T, R, Do) -> (T, R, Da); episodes begin at step t in the rows `begins[t]`."""
    played = session(policy)
    answers = []
    for t, obs in enumerate(rows):
        played.reset(torch.tensor(begins.get(t, []), dtype=torch.int64))
        answers.append(played.act(obs[:, None], torch.arange(len(obs)))[:, 0])
    return torch.stack(answers)


@pytest.mark.parametrize("make", [Late, Recurrent])
def test_every_row_remembers_its_own_episode(make: Any) -> None:
    torch.manual_seed(0)
    policy, obs = make(), torch.rand(7, 3, 4)
    adapted: Any = as_policy(policy, 2)
    assert isinstance(adapted, Copies)
    together = _play(adapted, obs, {0: [0, 1, 2], 3: [1], 5: [0, 1]})
    for row, begins in enumerate(([0, 5], [0, 3, 5], [0])):
        for t in range(7):
            if t in begins:
                policy.reset()
            asked = policy.act(obs[t, row].numpy()) if make is Late else policy(obs[t, row : row + 1])[0].detach()
            alone = torch.as_tensor(np.asarray(asked)).clamp(-1, 1)
            torch.testing.assert_close(together[t, row], alone, rtol=0, atol=1e-6)


def test_parameters_are_shared_and_hashed_and_the_memory_is_not() -> None:
    policy = Recurrent()
    adapted: Any = as_policy(policy, 2)
    assert parameters_of(adapted) is not None
    before = policy.hidden.clone()
    adapted.act(torch.rand(3, 1, 4), torch.arange(3))
    copies = [own for own, _ in adapted._rows.values()]
    assert len(copies) == 3
    assert all(own.cell.weight_hh is policy.cell.weight_hh and own is not policy for own in copies)
    assert torch.equal(policy.hidden, before)
    assert not torch.equal(copies[0].hidden, copies[1].hidden)
    assert adapted.queries == 3


def test_it_succeeds_as_often_as_in_a_loop_of_ones_own() -> None:
    """Late gets there in a whole episode if its memory is its own; were it shared by rows, from the first step on."""
    task, policy, successes = get_task("toy/reach-gym"), Late(), []
    env = task.make_env(None)
    for seed in range(500, 520):
        obs, _ = env.reset(seed=seed)
        policy.reset()
        success = False
        for _ in range(task.max_steps):
            obs, _, _, _, info = env.step(np.clip(policy.act(obs), -1, 1))
            success = success or bool(info["success"])
        successes.append(success)
    outcome = evaluate(Late(), "toy/reach-gym", episodes=20, first_seed=500, envs=7)
    assert outcome.success.tolist() == successes
    assert outcome.rate > 0
    assert outcome.env_steps.min() > 4


class WantsArguments(Late):
    def reset(self, rows: Tensor) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]


class CannotBeCopied(Late):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class BeginsAnew(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 2)

    def reset(self) -> None:
        self.reset_parameters()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (WantsArguments, "without arguments"),
        (CannotBeCopied, "cannot be copied"),
        (BeginsAnew, "changes its parameters"),
    ],
)
def test_what_cannot_be_done_is_said(kind: Any, why: str) -> None:
    policy = kind()
    before = parameter_hash(policy) if isinstance(policy, nn.Module) else None
    with pytest.raises(UserError, match=why):
        as_policy(policy, 2)
    assert before is None or parameter_hash(policy) == before


def test_wrong_answers_are_errors() -> None:
    adapted: Any = as_policy(Late(), 3)
    with pytest.raises(UserError, match="3 actions"):
        adapted.act(torch.rand(2, 1, 4), torch.arange(2))
