"""Whole episodes that are rewarded at their end, against n-step returns of the same rewards."""

from typing import Any

import pytest
import torch
from torch import Tensor

from policy_decorator.rl.episodes import WholeEpisodes
from policy_decorator.rl.replay import NStep
from policy_decorator.types import Transition

GAMMA = 0.9


def _score(frames: Tensor) -> Tensor:
    return torch.sin(frames[:, -1])


def _decisions(count: int, rows: int, seed: int = 3) -> list[tuple[Transition, Tensor]]:
    """With windows of two frames (B, 2 * 3); episodes end at random, by a termination or not."""
    generator = torch.Generator().manual_seed(seed)
    out, obs = [], torch.rand(rows, 6, generator=generator)
    for _ in range(count):
        following, raw, base, next_base = (
            torch.rand(rows, *shape, generator=generator) for shape in ((6,), (1, 2), (1, 2), (1, 2))
        )
        terminated, out_of_time = torch.rand(2, rows, generator=generator) < 0.1
        reward = torch.full((rows,), float("nan"))  # the environment's: not to be read
        ones = torch.ones(rows)
        out.append((Transition(obs, raw, base, reward, terminated.float(), ones, following, next_base),
                    terminated | out_of_time))  # fmt: skip
        fresh = torch.rand(rows, 6, generator=generator)
        obs = torch.where(out[-1][1][:, None], fresh, following)
    return out


def _rows(parts: list[Transition | None]) -> list[list[float]]:
    """Every transition as numbers, in an order of their own."""
    found = [part for part in parts if part is not None]
    columns = [torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in part], dim=1) for part in (
        Transition(*(torch.cat(xs) for xs in zip(*found, strict=True))),)]  # fmt: skip
    return sorted(columns[0].double().round(decimals=5).tolist())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_they_are_n_step_returns_of_the_scores(n: int, rows: int) -> None:
    whole, steps = WholeEpisodes(_score, n, GAMMA, 3), NStep(n, GAMMA)
    decisions = _decisions(60, rows)
    got = [whole.push(t, done) for t, done in decisions]
    wanted = [steps.push(t._replace(reward=_score(t.next_obs)), done) for t, done in decisions]
    ended = {tuple(row) for row in _rows(got)}
    running = int(whole.lengths.sum())
    assert len(_rows(got)) == 60 * rows - running
    all_ = _rows(wanted)
    assert ended <= {tuple(row) for row in all_}
    assert len(all_) - len(ended) <= running


def test_nothing_comes_before_the_end_and_then_all_of_it() -> None:
    whole, seen = WholeEpisodes(lambda frames: seen.append(frames) or frames[:, 0], 1, GAMMA, 3), []
    decisions = _decisions(5, 2)
    for t, _ in decisions[:4]:
        assert whole.push(t, torch.tensor([False, False])) is None
    t, _ = decisions[4]
    complete = whole.push(t, torch.tensor([False, True]))
    assert complete is not None
    torch.testing.assert_close(complete.obs, torch.stack([t.obs[1] for t, _ in decisions]))
    newest = torch.stack([decisions[0][0].obs[1], *(t.next_obs[1] for t, _ in decisions)])[:, 3:]
    torch.testing.assert_close(seen[0], newest)  # six frames of five decisions
    torch.testing.assert_close(complete.reward, newest[1:, 0])
    assert whole.lengths.tolist() == [5, 0]
    assert len(whole.held) == 5
    assert whole.push(t, torch.tensor([True, False])) is not None
    assert len(whole.held) == 1  # what nobody will ask for again is forgotten


def test_saved_and_restored_it_goes_on_as_it_would() -> None:
    decisions = _decisions(60, 3)
    one = WholeEpisodes(_score, 3, GAMMA, 3)
    for t, done in decisions[:31]:
        one.push(t, done)
    assert one.lengths.sum() > 0
    state: list[Any] = one.state()
    other = WholeEpisodes(_score, 3, GAMMA, 3)
    other.restore(state)
    rest = decisions[31:]
    assert _rows([one.push(*d) for d in rest]) == _rows([other.push(*d) for d in rest])
