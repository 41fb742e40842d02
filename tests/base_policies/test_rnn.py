"""BC-RNN: its loss by hand, its memory row by row, and that it can use one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from policy_decorator.base_policies.imitate import ImitateConfig, imitate
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.base_policies.rnn import NARROW, RecurrentPolicy, RNNConfig
from policy_decorator.base_policies.windows import sequence_bounds, window_rows
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError
from policy_decorator.memory import session

OBS, ACTION = 5, 3
SMALL = RNNConfig(width=16, layers=2, sequence=4)


def _policy(cfg: RNNConfig = SMALL, **changes: object) -> RecurrentPolicy:
    torch.manual_seed(1)
    policy = RecurrentPolicy(replace(cfg, **changes), OBS, ACTION)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():  # untrained heads say next to nothing
        policy.head.weight.mul_(20)
    return policy


def test_sizes_of_robomimic() -> None:
    policy = RecurrentPolicy(RNNConfig(), 23, 7)
    lstm = 4 * 400 * (23 + 400 + 2) + 4 * 400 * (400 + 400 + 2)
    head = (400 + 1) * (5 * (7 + 7 + 1))
    assert sum(p.numel() for p in policy.parameters()) == lstm + head == 1_993_275
    assert (policy.context, policy.sequence, policy.chunk) == (1, 10, 1)


def test_the_loss_is_the_mixtures_negative_log_likelihood() -> None:
    policy = _policy()
    frames, actions = torch.randn(6, 4, OBS), torch.rand(6, 4, ACTION) * 2 - 1
    features = policy.lstm(frames)[0].double()
    out = features @ policy.head.weight.double().T + policy.head.bias.double()
    modes = SMALL.modes
    means = out[..., : modes * ACTION].tanh().reshape(6, 4, modes, ACTION)
    stds = (1 + out[..., modes * ACTION : 2 * modes * ACTION].exp()).log().reshape(6, 4, modes, ACTION) + 1e-4
    logits = out[..., 2 * modes * ACTION :]
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    errors = (actions.double().unsqueeze(2) - means) / stds
    density = (-0.5 * errors**2).exp() / (stds * math.sqrt(2 * math.pi))
    expected = -(weights * density.prod(-1)).sum(-1).log().mean()
    assert policy.loss(frames, actions).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_other_head_is_a_squared_error() -> None:
    policy = _policy(head="mse")
    frames, actions = torch.randn(6, 4, OBS), torch.rand(6, 4, ACTION)
    means = policy.head(policy.lstm(frames)[0]).tanh()
    assert policy.loss(frames, actions).item() == pytest.approx(((means - actions) ** 2).mean().item())


def _play(policy: RecurrentPolicy, frames: Tensor) -> Tensor:
    """(T, Do) -> (T, Da), one row from its reset on."""
    row, opened = torch.zeros(1, dtype=torch.int64), session(policy)
    opened.reset(row)
    return torch.cat([opened.act(frame[None, None], row)[:, 0] for frame in frames])


def test_acting_is_what_was_trained_and_begins_anew_with_every_sequence() -> None:
    policy = _policy(head="mse")
    frames = torch.randn(11, OBS)
    played = _play(policy, frames)
    with torch.no_grad():
        for start in (0, 4, 8):
            expected = policy.head(policy.lstm(frames[None, start : start + 4])[0]).tanh()[0]
            torch.testing.assert_close(played[start : start + 4], expected)
    assert (played[3] - _play(policy, frames[3:])[0]).abs().max() > 1e-2  # the frames before matter


def test_rows_reset_at_different_times_are_as_rows_alone() -> None:
    policy = _policy(head="mse")
    frames = torch.randn(3, 12, OBS)
    ends = {0: [5], 1: [2, 9], 2: []}  # before these steps an episode of the row begins
    opened = session(policy)
    opened.reset(torch.arange(3))
    answers = []
    for t in range(12):
        opened.reset(torch.tensor([row for row, starts in ends.items() if t in starts], dtype=torch.int64))
        order = torch.tensor([2, 0, 1])  # rows may come in any order
        answers.append(opened.act(frames[order, t, None], order)[:, 0][order.argsort()])
    together = torch.stack(answers, dim=1)  # (3, 12, Da)
    for row, starts in ends.items():
        parts = np.split(np.arange(12), starts)
        alone = torch.cat([_play(policy, frames[row, torch.as_tensor(part)]) for part in parts])
        torch.testing.assert_close(together[row], alone)
    assert opened.queries == 36


def test_a_row_that_is_not_asked_keeps_its_state() -> None:
    policy = _policy(head="mse")
    frames = torch.randn(6, OBS)
    opened = session(policy)
    one, both = torch.tensor([1]), torch.tensor([0, 1])
    opened.reset(both)
    answers = [opened.act(frames[0].expand(2, 1, OBS), both)[1]]
    opened.act(torch.randn(1, 1, OBS), torch.tensor([0]))
    answers += [opened.act(frame[None, None], one)[0] for frame in frames[1:]]
    torch.testing.assert_close(torch.cat(answers), _play(policy, frames))


@pytest.mark.parametrize("low_noise", [True, False])
def test_while_acting_the_gaussian_is_drawn_by_its_weight(low_noise: bool) -> None:
    policy = _policy(low_noise=low_noise, min_std=0.05)
    frame, n = torch.randn(1, 1, OBS), 4000
    mixture = policy.mixture(policy.lstm(frame)[0][0, 0])
    means: Tensor = mixture.component_distribution.mean.detach()  # (modes, Da)
    actions = policy.act(frame.expand(n, 1, OBS))[:, 0]
    assert actions.abs().max() <= 1
    distance, nearest = torch.cdist(actions, means.clamp(-1, 1)).min(dim=1)
    if not low_noise:
        assert distance.mean() > 0.03
        return
    assert distance.max() < 8 * NARROW
    weights = mixture.mixture_distribution.probs.detach()
    shares = nearest.bincount(minlength=len(weights)) / n
    assert weights.max() < 0.95
    torch.testing.assert_close(shares, weights, atol=0.03, rtol=0)


def test_memory_can_be_saved_and_is_not_shared() -> None:
    policy = _policy(head="mse")
    frames = torch.randn(3, 1, OBS)
    opened, rows = policy.session(), torch.arange(3)
    opened.act(frames, rows)
    saved, other = opened.state(), opened.session()
    expected = opened.act(frames, rows)
    assert not torch.equal(other.act(frames, rows), expected)
    other.restore(saved)
    assert torch.equal(other.act(frames, rows), expected)


def test_sequences_begin_at_every_frame_and_repeat_the_last() -> None:
    first, newest = sequence_bounds(torch.tensor([4, 0, 2]), 3)
    last = torch.tensor([3, 3, 3, 3, 5, 5])
    rows = window_rows(first, newest, 3).minimum(last[:, None])
    assert rows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3], [4, 5, 5], [5, 5, 5]]


def _delayed(delay: int) -> Demonstrations:
    """The action is what was observed `delay` steps ago, zero before: nothing for a policy without a memory."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-0.8, 0.8, (60, 12, 1)).astype(np.float32)
    actions = np.concatenate([np.zeros((60, delay, 1)), observations[:, :-delay]], axis=1).astype(np.float32)
    lengths = np.full(60, 12, dtype=np.int64)
    flat = observations.reshape(-1, 1), actions.reshape(-1, 1), np.ones(720, dtype=bool)
    return Demonstrations("toy", *flat, lengths, np.arange(60), "a test", {})


def test_it_learns_what_only_a_memory_can_know() -> None:
    demos = _delayed(2)
    cfg = RNNConfig(width=32, layers=1, sequence=12, head="mse")
    torch.manual_seed(0)
    rnn, mlp = RecurrentPolicy(cfg, 1, 1), MLPPolicy(MLPConfig(width=32), 1, 1)
    training = ImitateConfig(steps=300, batch_size=64, lr=1e-2)
    _, mlp_loss = (imitate(policy, demos, training).history[-1]["loss"] for policy in (rnn, mlp))
    frames, rows = torch.from_numpy(demos.observations).view(60, 12, 1), torch.arange(60)
    opened = session(rnn)
    played = torch.stack([opened.act(frames[:, t, None], rows)[:, 0] for t in range(12)], dim=1)
    error = (played[:, 2:] - frames[:, :-2]).square().mean()
    assert error < 0.3 * mlp_loss  # the variance of what is to be known: nothing less without a memory


def test_senseless_settings_are_refused() -> None:
    for wrong in ({"layers": 0}, {"head": "x"}, {"min_std": 0.0}):
        with pytest.raises(UserError):
            RNNConfig(**wrong)  # pyright: ignore[reportArgumentType]
