"""The imitation loop: windows against slicing, learning, checkpoint selection, determinism and errors."""

import numpy as np
import pytest
import torch

from policy_decorator import machine
from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.imitate import Evaluate, ImitateConfig, Imitator, imitate
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.base_policies.windows import load_windows, window_bounds, window_rows
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.toy import TASKS
from policy_decorator.errors import UserError

LENGTHS = [5, 3, 1, 8, 4]
EXPERT = np.array([[0.5, -0.2, 0.1], [0.0, 0.3, -0.4]])


def demonstrations(observations: np.ndarray, actions: np.ndarray, lengths: list[int]) -> Demonstrations:
    return Demonstrations(
        task="toy",
        observations=observations.astype(np.float32),
        actions=actions.astype(np.float32),
        success=np.ones(len(actions), dtype=bool),
        lengths=np.array(lengths, dtype=np.int64),
        seeds=np.arange(len(lengths)),
        source="a test",
        details={},
    )


def linear_demonstrations() -> Demonstrations:
    observations = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    return demonstrations(observations, observations @ EXPERT.T, [30] * 10)


def windows(lengths: list[int], context: int, pad_start: bool) -> list[list[int]]:
    bounds = window_bounds(torch.tensor(lengths), context, pad_start)
    return window_rows(*bounds, context).tolist()


@pytest.mark.parametrize("context", [1, 2, 3, 7])
def test_windows_of_the_released_code(context: int) -> None:
    naive, start = [], 0
    for length in LENGTHS:
        rows = list(range(start, start + length))
        naive += [rows[i : i + context] for i in range(length - context)]  # the last full window is left out
        start += length
    assert windows(LENGTHS, context, pad_start=False) == naive


@pytest.mark.parametrize("context", [1, 2, 3, 7])
def test_padded_windows_repeat_the_first_frame(context: int) -> None:
    naive, start = [], 0
    for length in LENGTHS:
        rows = [start] * (context - 1) + list(range(start, start + length))
        naive += [rows[i : i + context] for i in range(length)]
        start += length
    assert windows(LENGTHS, context, pad_start=True) == naive


def test_an_empty_episode_has_no_windows() -> None:
    assert windows([2, 0, 1], 2, pad_start=True) == [[0, 0], [0, 1], [2, 2]]


def test_learns_a_linear_expert() -> None:
    demos = linear_demonstrations()
    torch.manual_seed(0)
    policy = MLPPolicy(MLPConfig(width=32), 3, 2)
    test = torch.rand(500, 1, 3) * 1.6 - 0.8
    target = test[:, 0] @ torch.tensor(EXPERT.T, dtype=torch.float32)

    def error() -> float:
        return ((policy.act(test)[:, 0] - target) ** 2).mean().item()

    assert error() > 0.02
    result = imitate(policy, demos, ImitateConfig(steps=300, batch_size=128, lr=3e-3))
    assert error() < 5e-4
    assert result.policy is policy
    assert (result.best_step, result.best_success) == (300, None)
    assert [row["step"] for row in result.history] == [100, 200, 300]
    assert result.history[-1]["loss"] < 0.05 * result.history[0]["loss"]
    assert not policy.training


def scripted(values: list[float], seen: list[dict[str, torch.Tensor]]) -> Evaluate:
    answers = iter(values)

    def evaluate(policy: Imitator, step: int) -> float:
        seen.append({name: value.clone() for name, value in policy.state_dict().items()})
        return next(answers)

    return evaluate


@pytest.mark.parametrize(("values", "best"), [([0.1, 0.8, 0.3, 0.2], 1), ([0.5, 0.1, 0.5, 0.4], 2), ([0.0] * 4, 3)])
def test_the_best_checkpoint_is_restored_and_the_later_of_equals(values: list[float], best: int) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    policy = MLPPolicy(MLPConfig(width=8), 3, 2)
    rows: list[tuple[int, int, dict[str, float]]] = []
    result = imitate(
        policy,
        linear_demonstrations(),
        ImitateConfig(steps=35, eval_every=10, batch_size=16),
        evaluate=scripted(values, seen),
        progress=lambda *row: rows.append(row),
    )
    steps = [10, 20, 30, 35]  # and after the last step
    assert (result.best_step, result.best_success) == (steps[best], values[best])
    assert [row["success"] for row in result.history] == values
    assert rows == [(int(row["step"]), 35, row) for row in result.history]
    for i, state in enumerate(seen):
        same = all(torch.equal(value, policy.state_dict()[name]) for name, value in state.items())
        assert same is (i == best)


def test_the_same_seed_gives_the_same_policy_however_often_it_is_evaluated() -> None:
    demos = linear_demonstrations()
    small = BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=8)
    torch.manual_seed(0)
    initial = BehaviorTransformer(small, 3, 2).state_dict()

    def train(seed: int, eval_every: int) -> torch.Tensor:
        policy = BehaviorTransformer(small, 3, 2)
        policy.load_state_dict(initial)
        torch.rand(seed + eval_every)  # the caller's random state is nobody's business
        cfg = ImitateConfig(steps=6, batch_size=8, eval_every=eval_every, seed=seed)
        imitate(policy, demos, cfg, evaluate=lambda p, step: float(p.act(torch.zeros(2, 3, 3)).sum() * 0 + step))
        return policy.head.weight.detach().clone()

    first = train(seed=1, eval_every=2)
    assert torch.equal(first, train(seed=1, eval_every=3))
    assert not torch.equal(first, train(seed=2, eval_every=2))


def test_subnormal_numbers_are_zero_in_training_only() -> None:
    torch.set_flush_denormal(False)
    inside: list[bool] = []

    def evaluate(policy: Imitator, step: int) -> float:
        inside.append(machine.flushes_subnormals())
        return 0.0

    imitate(MLPPolicy(MLPConfig(), 3, 2), linear_demonstrations(), ImitateConfig(steps=2), evaluate=evaluate)
    assert inside == [True]
    assert not machine.flushes_subnormals()


def test_every_evaluation_meets_the_same_randomness() -> None:
    drawn: list[float] = []

    def evaluate(policy: Imitator, step: int) -> float:
        drawn.append(torch.rand(()).item())
        return 0.0

    cfg = ImitateConfig(steps=6, eval_every=2, batch_size=4)
    small = BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=8)  # its dropout draws too
    imitate(BehaviorTransformer(small, 3, 2), linear_demonstrations(), cfg, evaluate=evaluate)
    assert len(drawn) == 3
    assert len(set(drawn)) == 1


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small = BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=8)
    policy = BehaviorTransformer(small, 3, 2)
    torch.manual_seed(5)
    imitate(policy, linear_demonstrations(), ImitateConfig(steps=2, batch_size=4))
    assert torch.equal(torch.rand(3), expected)


def test_noise_is_of_the_size_of_what_is_demonstrated_and_only_in_what_is_seen() -> None:
    demos, policy = linear_demonstrations(), MLPPolicy(MLPConfig(), 3, 2)
    drawn = []
    for noise in (0.0, 0.3):
        cfg = ImitateConfig(obs_noise=noise)
        windows = load_windows(policy, demos, cfg, torch.device("cpu"), TASKS["toy/reach"])
        drawn.append(windows.draw(20_000, torch.Generator().manual_seed(0)))
    (clean, actions), (noisy, same) = drawn
    assert torch.equal(actions, same)
    added = (noisy - clean)[:, 0] / torch.from_numpy(demos.observations).std(dim=0)
    torch.testing.assert_close(added.std(dim=0), torch.full((3,), 0.3), rtol=0.03, atol=0)
    torch.testing.assert_close(added.mean(dim=0), torch.zeros(3), rtol=0, atol=0.01)
    assert torch.corrcoef(added.T).fill_diagonal_(0).abs().max() < 0.03


def test_a_batch_may_be_larger_than_the_data() -> None:
    demos = demonstrations(np.random.default_rng(0).normal(size=(4, 3)), np.eye(4)[:, :2], [4])
    result = imitate(MLPPolicy(MLPConfig(width=8), 3, 2), demos, ImitateConfig(steps=2, batch_size=64))
    assert len(result.history) == 1


def test_a_loss_that_is_not_finite() -> None:
    policy = MLPPolicy(MLPConfig(width=8), 3, 2)
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step 50"):
        imitate(policy, linear_demonstrations(), ImitateConfig(steps=50, batch_size=8, lr=1e30))


def test_a_success_rate_that_is_not_finite() -> None:
    policy = MLPPolicy(MLPConfig(width=8), 3, 2)
    with pytest.raises(UserError, match="evaluation success is nan at step 1"):
        imitate(policy, linear_demonstrations(), ImitateConfig(steps=1), evaluate=lambda p, step: float("nan"))


def test_demonstrations_shorter_than_the_context() -> None:
    demos = demonstrations(np.random.default_rng(0).normal(size=(6, 3)), np.zeros((6, 2)), [3, 3])
    policy = MLPPolicy(MLPConfig(width=8, context=3), 3, 2)
    with pytest.raises(UserError, match="longest episode has 3 and needs 4"):
        imitate(policy, demos, ImitateConfig(steps=1, pad_start=False))
    imitate(policy, demos, ImitateConfig(steps=1, batch_size=4, pad_start=True))


def test_demonstrations_of_another_size_or_with_holes() -> None:
    demos = linear_demonstrations()
    with pytest.raises(UserError, match="the policy 4 and 2"):
        imitate(MLPPolicy(MLPConfig(width=8), 4, 2), demos, ImitateConfig(steps=1))
    demos.observations[7, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        imitate(MLPPolicy(MLPConfig(width=8), 3, 2), demos, ImitateConfig(steps=1))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="at least 1"):
        ImitateConfig(steps=0)
    with pytest.raises(UserError, match="positive"):
        ImitateConfig(lr=0.0)
    with pytest.raises(UserError, match="obs_noise must be at least 0"):
        ImitateConfig(obs_noise=-0.1)
