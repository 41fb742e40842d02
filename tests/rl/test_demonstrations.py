"""Demonstrations as transitions of a residual, row by row against a loop over episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy_decorator.decorator import Residual
from policy_decorator.rl.demonstrations import Demonstrated, Mixed, Share, as_source, transitions, windows_of
from policy_decorator.rl.replay import Replay
from policy_decorator.types import Transition

GAMMA, SHIFT = 0.9, -1.0


def _demonstrated(lengths: list[int], solved: list[bool]) -> Demonstrated:
    """Row k is named by its observation; an episode that is solved is so in its last row."""
    n = sum(lengths)
    success = np.zeros(n, dtype=bool)
    success[np.cumsum(lengths) - 1] = solved
    name = torch.arange(n).float()
    return Demonstrated(
        name[:, None], torch.rand(n, 1, 2) * 2 - 1, torch.rand(n, 1, 2) * 2 - 1, torch.from_numpy(success),
        torch.tensor(lengths),
    )  # fmt: skip


episodes = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=5).filter(
    lambda some: any(length > 1 or solved for length, solved in some)
)


@given(some=episodes, context=st.integers(1, 4))
def test_windows_are_those_that_an_environment_shows(some: list[tuple[int, bool]], context: int) -> None:
    lengths = [length for length, _ in some]
    d, expected = _demonstrated(lengths, [True] * len(lengths)), []
    for episode in d.obs.split(lengths):
        slots = [episode[0]] * context  # at a reset every slot holds the first frame
        for frame in episode:
            slots = [*slots[1:], frame]
            expected.append(torch.stack(slots))
    assert torch.equal(windows_of(d, d.obs, context), torch.stack(expected))


@given(some=episodes, n_step=st.integers(1, 4), bound=st.sampled_from([0.1, 0.5]))
def test_transitions_are_those_of_a_loop(some: list[tuple[int, bool]], n_step: int, bound: float) -> None:
    lengths, solved = ([x[i] for x in some] for i in (0, 1))
    d = _demonstrated(lengths, solved)  # pyright: ignore[reportArgumentType]
    t = transitions(d, bound, n_step=n_step, gamma=GAMMA, reward_shift=SHIFT)
    expected: dict[int, tuple[float, bool, int]] = {}
    start = 0
    for length, ends_well in some:
        for k in range(length):
            count = min(n_step, length - k)
            last = k + count == length
            if last and not ends_well:
                continue  # nobody knows what came next
            rewards = [SHIFT + (ends_well and j == length - 1) for j in range(k, k + count)]
            expected[start + k] = sum(GAMMA**j * r for j, r in enumerate(rewards)), last, count
        start += length
    rows = t.obs[:, 0].long()
    assert rows.tolist() == sorted(expected)
    for i, row in enumerate(rows.tolist()):
        reward, ended, count = expected[row]
        assert t.reward[i].item() == pytest.approx(reward, abs=1e-5)
        assert (bool(t.terminated[i]), int(t.decisions[i])) == (ended, count)
        if not ended:
            assert t.next_obs[i, 0] == row + count
            assert torch.equal(t.next_base[i], d.base[row + count])
        else:
            assert t.next_obs[i, 0] == row + count - 1  # not a frame of the next episode
    torch.testing.assert_close(Residual(bound).execute(t.base, t.raw), d.action[rows])  # exactly what was shown
    assert torch.equal(t.base, d.base[rows])


def test_where_success_ends_no_episode_it_ends_no_value() -> None:
    d = replace(_demonstrated([4, 1], [True, True]), ends_at_success=False)
    d.success[1] = True  # at the goal from the second row on
    t = transitions(d, 0.5, n_step=2, gamma=GAMMA, reward_shift=0.0)
    assert t.obs[:, 0].tolist() == [0, 1]  # what follows the others is not in the demonstrations
    assert t.next_obs[:, 0].tolist() == [2, 3]
    assert t.reward.tolist() == pytest.approx([GAMMA, 1.0])
    assert not t.terminated.any()


@pytest.mark.parametrize(("share", "second"), [(0.25, 16), (0.5, 32), (1.0, 64)])
def test_every_batch_has_the_share(share: float, second: int) -> None:
    shapes = ((1,), (1, 1), (1, 1), (), (), (), (1,), (1, 1))
    one, two = (Transition(*(torch.full((9, *shape), value) for shape in shapes)) for value in (1.0, 2.0))
    replay = Replay(20)
    replay.add(one)
    batch = Mixed(replay, as_source(two), lambda: share).sample(64)
    assert batch.reward.tolist() == [1.0] * (64 - second) + [2.0] * second
    assert all(len(x) == 64 for x in batch)


def test_a_share_goes_in_a_straight_line_and_stays_at_its_end() -> None:
    share = Share(0.5, 0.1, start=100, steps=400)
    assert [share(step) for step in (0, 100, 200, 300)] == pytest.approx([0.5, 0.5, 0.4, 0.3])
    assert [share(step) for step in (500, 10_000)] == pytest.approx([0.1, 0.1])
    assert {Share(0.25, 0.25, 7, steps)(step) for step in (0, 7, 99) for steps in (0, 50)} == {0.25}  # to the last bit
