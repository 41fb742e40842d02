"""Rewards that are computed when a batch is drawn, against direct sums."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from policy_decorator.rl.replay import Replay
from policy_decorator.rl.scored import Scored
from policy_decorator.types import Transition

ENDED = 0.7


def _score(obs: Tensor, raw: Tensor) -> Tensor:
    return obs[:, 0] + 10 * raw[:, 0, 0]


def _run(capacity: int, pushes: int = 23, rows: int = 3) -> tuple[Replay, dict[float, list[dict[str, Any]]]]:
    """Episodes in `rows` environments that end at random, by a termination or not; what each decision is, by its obs.

    The value of each is the decisions of its episode from it on.
    """
    generator = torch.Generator().manual_seed(5)
    replay, number, running, known = Replay(capacity), 0.0, [[] for _ in range(rows)], {}
    obs = torch.arange(rows).float() + 1000  # every observation is a number of its own
    for _ in range(pushes):
        raw = torch.rand(rows, 1, 1, generator=generator)
        terminated, out_of_time = torch.rand(2, rows, generator=generator) < 0.12
        following = obs + 3
        zeros, ones = torch.zeros(rows), torch.ones(rows)
        wrong = torch.full((rows,), math.nan)  # the environment's reward: not to be read
        replay.add(
            Transition(
                obs[:, None], raw, raw, wrong, terminated.float(), ones, following[:, None], zeros[:, None, None]
            )
        )
        for b in range(rows):
            fact = {
                "score": float(obs[b] + 10 * raw[b, 0, 0]),
                "over": bool(terminated[b]),
                "next": float(following[b]),
            }
            running[b].append(fact)
            known[float(obs[b])] = running[b]
            fact["place"] = len(running[b]) - 1
            if terminated[b] or out_of_time[b]:
                running[b] = []
                following[b] += 5000 + number  # the first observation of another episode
                number += 100
        obs = following
    return replay, known


@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("capacity", [1000, 40])
def test_batches_are_the_direct_sums(n: int, capacity: int) -> None:
    replay, known = _run(capacity)
    gamma = 0.9
    batch = Scored(replay, 3, n, gamma, _score, lambda: torch.tensor(ENDED)).sample(400)
    lengths, ends = set(), 0
    newest = {float(x) for x in replay.data.next_obs[:, 0]} if replay.data else set()
    for i in range(400):
        episode = known[float(batch.obs[i, 0])]
        place = next(k for k, fact in enumerate(episode) if fact["score"] == pytest.approx(_first(batch, i), abs=1e-3))
        steps = episode[place : place + n]
        assert batch.decisions[i] == len(steps)
        wanted = sum(gamma**k * fact["score"] for k, fact in enumerate(steps))
        wanted += steps[-1]["over"] * gamma ** len(steps) / (1 - gamma) * ENDED
        assert batch.reward[i].item() == pytest.approx(wanted, rel=1e-4)
        assert batch.terminated[i] == steps[-1]["over"]
        assert batch.next_obs[i, 0] == steps[-1]["next"]
        assert steps[-1]["next"] in newest
        lengths.add(len(steps))
        ends += steps[-1]["over"]
    assert lengths == set(range(1, n + 1))
    assert ends


def _first(batch: Transition, i: int) -> float:
    return float(batch.obs[i, 0] + 10 * batch.raw[i, 0, 0])


def test_rewards_are_those_of_now() -> None:
    replay, _ = _run(1000)
    weight = torch.tensor(1.0)
    source = Scored(replay, 3, 1, 0.9, lambda obs, raw: weight * raw[:, 0, 0], lambda: torch.tensor(0.0))
    torch.manual_seed(3)
    before = source.sample(50).reward
    weight.mul_(2)
    torch.manual_seed(3)
    torch.testing.assert_close(source.sample(50).reward, 2 * before)


def test_an_empty_replay_says_so() -> None:
    with pytest.raises(ValueError, match="empty"):
        Scored(Replay(4), 1, 1, 0.9, _score, lambda: torch.tensor(0.0)).sample(1)
