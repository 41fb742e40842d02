"""The ring, and n-step returns against a brute-force sum over every episode."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor

from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.types import Transition

GAMMA = 0.9


def _numbered(first: int, n: int) -> Transition:
    """Rows that carry their number in every field."""
    x = torch.arange(first, first + n).float()
    return Transition(
        x[:, None].repeat(1, 3),
        x.view(-1, 1, 1) + 0.1,
        x.view(-1, 1, 1) + 0.2,
        x,
        x % 2,
        x,
        x[:, None] + 0.5,
        x.view(-1, 1, 1),
    )


def _same(a: Transition | None, b: Transition | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- the ring -------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=12), capacity=st.integers(1, 20))
def test_it_holds_the_newest_rows_whole(sizes: list[int], capacity: int) -> None:
    replay, total = Replay(capacity), 0
    for n in sizes:
        replay.add(_numbered(total, n))
        total += n
        assert replay.size == min(total, capacity)
        assert replay.data is not None
        kept = sorted(int(x) for x in replay.data.reward[: replay.size])
        assert kept == list(range(max(0, total - capacity), total))
    rows = replay.sample(50)
    for i, number in enumerate(rows.reward.tolist()):  # fields of one row belong together
        assert _same(Transition(*(x[i : i + 1] for x in rows)), _numbered(int(number), 1))


def test_sampling_is_uniform_with_replacement() -> None:
    replay = Replay(100)
    replay.add(_numbered(0, 20))
    draws = torch.cat([replay.sample(100).reward for _ in range(200)])
    counts = torch.bincount(draws.long(), minlength=20).float()
    assert len(counts) == 20  # never one of the eighty empty rows
    chi2 = ((counts - 1000) ** 2 / 1000).sum().item()
    assert chi2 < 43.8  # 99.9 % of chi-squared with 19 degrees of freedom
    assert len(replay.sample(64).reward) == 64


def test_it_stores_copies() -> None:
    replay, t = Replay(4), _numbered(3, 1)
    replay.add(t)
    t.reward.fill_(99.0)
    assert replay.sample(1).reward.item() == 3.0


def test_nothing_can_be_sampled_from_nothing() -> None:
    with pytest.raises(ValueError, match="empty"):
        Replay(3).sample(1)


@pytest.mark.parametrize("rows", [0, 3, 8, 13])
def test_a_restored_replay_goes_on_the_same(rows: int) -> None:
    one, two = Replay(8), Replay(8)
    for i in range(rows):
        one.add(_numbered(i, 1))
    two.restore(one.state())
    for replay in (one, two):
        replay.add(_numbered(100, 3))
    assert (one.size, one.head) == (two.size, two.head)
    torch.manual_seed(1)
    a = one.sample(64)
    torch.manual_seed(1)
    assert _same(a, two.sample(64))


def test_what_was_captured_does_not_change_when_the_replay_goes_on() -> None:
    replay = Replay(2)
    replay.add(_numbered(0, 2))
    state = replay.state()
    replay.add(_numbered(7, 2))
    assert state["data"][3].tolist() == [0.0, 1.0]


def test_a_replay_is_restored_to_the_device_of_the_learner() -> None:
    """ "meta" in the place of a GPU: a device with shapes alone."""
    replay, meta = Replay(8), torch.device("meta")
    frames = TensorDict({"state": torch.zeros(2, 3), "rgb": torch.zeros(2, 3, 4, 4).byte()}, [2], device="cpu")
    frames["frame"] = torch.arange(2)
    replay.add(_numbered(0, 2)._replace(obs=frames.clone(), next_obs=frames.clone()))
    other = Replay(8)
    other.restore(replay.state(), meta)
    assert other.data is not None
    assert other.pictures is not None
    known: Any = other.data.obs
    for x in (
        other.data.reward,
        other.data.raw,
        *known.values(),
        *other.pictures.stored.values(),
        other.pictures.newest,
    ):
        assert x.device == meta
    assert len(other.data.reward) == 8


@pytest.mark.parametrize("rows", [5, 8, 11])
def test_a_replay_that_was_full_goes_on_in_a_larger_one(rows: int) -> None:
    small, large = Replay(8), Replay(20)
    for i in range(rows):
        small.add(_numbered(i, 1))
    large.restore(small.state())
    large.add(_numbered(100, 3))
    assert large.data is not None
    assert large.data.reward[: large.size].tolist() == [*range(max(0, rows - 8), rows), 100, 101, 102]


def _seen(first: int, n: int, start: int) -> Transition:
    """Decisions `first`, ..., whose frames are numbered from `start`; the picture says the number."""

    def frames(number: Tensor) -> Any:
        rgb = (number % 251).byte()[:, None, None, None].expand(-1, 3, 2, 2)
        return TensorDict({"state": torch.zeros(len(number), 3), "rgb": rgb, "frame": number}, [len(number)])

    numbers = torch.arange(start, start + n)
    return _numbered(first, n)._replace(obs=frames(numbers), next_obs=frames(numbers + 1))


@pytest.mark.parametrize("gap", [1, 2])
@pytest.mark.parametrize("capacity", [16, 40, 200])
def test_pictures_go_on_in_a_larger_replay(capacity: int, gap: int) -> None:
    """And in a third one. With gap 2, of episodes of one decision, more frames are seen than there is room for."""
    replay = Replay(16)
    for k in range(24):
        if k in (12, 18):
            state, replay = replay.state(), Replay(capacity if k == 12 else capacity + 7)
            replay.restore(state)
        replay.add(_seen(k, 1, gap * k))
    batch: Any = replay.sample(500)
    assert (batch.obs["rgb"][:, 0, 0, 0] == batch.obs["frame"] % 251).all()
    assert (batch.next_obs["rgb"][:, 0, 0, 0] == batch.next_obs["frame"] % 251).all()
    if gap == 1:
        assert len(batch.obs["frame"].unique()) == min(24, capacity + 6)


# ---- n-step returns -------------------------------------------------------------------------------------------

Key = tuple[int, int]  # row, time


class Recording:
    """B rows of random episodes that end in termination or time-out, every decision with unique contents."""

    def __init__(self, ends: np.ndarray) -> None:
        self.ends = ends  # (T, B) 0: goes on, 1: terminated, 2: timed out
        self.steps, self.rows = ends.shape
        self.rewards = np.random.default_rng(int(ends.sum()) + ends.size).normal(size=ends.shape)

    def push_all(self, nstep: NStep, start: int = 0, stop: int | None = None) -> list[Transition | None]:
        return [self.push(nstep, t) for t in range(start, self.steps if stop is None else stop)]

    def push(self, nstep: NStep, t: int) -> Transition | None:
        number = torch.arange(self.rows).float() + 1000 * t  # names the decision
        ends = torch.from_numpy(self.ends[t])
        obs, action = number[:, None], number.view(-1, 1, 1)
        reward = torch.from_numpy(self.rewards[t]).float()
        one = torch.ones(self.rows)
        transition = Transition(obs, action, action + 0.25, reward, (ends == 1).float(), one, obs + 0.5, action + 0.75)
        return nstep.push(transition, ends > 0)

    def expected(self, n: int) -> dict[Key, tuple[float, float, int, int]]:
        """By decision: return, terminated, decisions and time of the last one; complete ones only."""
        out: dict[Key, tuple[float, float, int, int]] = {}
        for b in range(self.rows):
            for t in range(self.steps):
                total, k = 0.0, t
                while True:
                    total += GAMMA ** (k - t) * self.rewards[k, b]
                    if self.ends[k, b] or k - t + 1 == n:
                        out[b, t] = total, float(self.ends[k, b] == 1), k - t + 1, k
                        break
                    k += 1
                    if k == self.steps:
                        break  # still open
        return out


def _by_decision(batches: list[Transition | None]) -> dict[Key, list[list[Any]]]:
    found: dict[Key, list[list[Any]]] = defaultdict(list)
    for batch in batches:
        if batch is None:
            continue
        for i in range(len(batch.reward)):
            number = int(batch.obs[i, 0])
            found[number % 1000, number // 1000].append([x[i] for x in batch])
    return found


recordings = st.tuples(st.integers(1, 4), st.integers(1, 14), st.integers(0, 10**6), st.sampled_from([0.1, 0.4, 0.9]))


def _recording(rows: int, steps: int, seed: int, often: float) -> Recording:
    rng = np.random.default_rng(seed)
    ends = (rng.random((steps, rows)) < often) * rng.integers(1, 3, size=(steps, rows))
    return Recording(ends)


@given(case=recordings, n=st.integers(1, 5))
def test_n_step_returns_are_the_brute_force_sums(case: tuple[int, int, int, float], n: int) -> None:
    recording = _recording(*case)
    found, expected = _by_decision(recording.push_all(NStep(n, GAMMA))), recording.expected(n)
    assert {k: len(v) for k, v in found.items()} == dict.fromkeys(expected, 1)  # every decision exactly once
    for (b, t), (total, terminated, decisions, last) in expected.items():
        obs, raw, base, reward, ends, count, next_obs, next_base = found[b, t][0]
        start, end = 1000 * t + b, 1000 * last + b
        assert reward.item() == pytest.approx(total, abs=1e-5)
        assert (ends.item(), count.item()) == (terminated, decisions)
        assert (obs.item(), raw.item(), base.item()) == (start, start, start + 0.25)  # of the first decision
        assert (next_obs.item(), next_base.item()) == (end + 0.5, end + 0.75)  # of the last, in the same episode


@given(case=recordings, n=st.integers(1, 5), cut=st.integers(0, 14))
def test_a_restored_accumulator_goes_on_the_same(case: tuple[int, int, int, float], n: int, cut: int) -> None:
    recording = _recording(*case)
    cut = min(cut, recording.steps)
    one, two = NStep(n, GAMMA), NStep(n, GAMMA)
    recording.push_all(one, stop=cut)
    two.restore(one.state())
    for a, b in zip(recording.push_all(one, cut), recording.push_all(two, cut), strict=True):
        assert _same(a, b)


def test_one_step_passes_the_transition_through() -> None:
    t = _numbered(0, 3)
    assert NStep(1, GAMMA).push(t, torch.tensor([True, False, True])) is t


def test_the_discount_is_raised_per_decision_also_on_transitions_of_several() -> None:
    nstep = NStep(2, 0.5)
    t = _numbered(0, 1)._replace(decisions=torch.tensor([1.0]))
    done = torch.tensor([False])
    assert nstep.push(t._replace(reward=torch.tensor([1.0])), done) is None
    out = nstep.push(t._replace(reward=torch.tensor([8.0])), done)
    assert isinstance(out, Transition)
    assert _float(out.reward) == 1.0 + 0.5 * 8.0
    assert _float(out.decisions) == 2.0


def _float(x: Tensor) -> float:
    return float(x)
