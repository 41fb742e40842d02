"""Optimal-transport rewards against plans that are known."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from policy_decorator.errors import MissingExtra
from policy_decorator.rl.transport import FIRST_SUM, TransportReward, transport_plan, transport_rewards

pytestmark = pytest.mark.usefixtures("pot")


@pytest.mark.parametrize("other", ["jax", "cupy", "tensorflow"])
def test_the_gpu_is_not_given_to_other_libraries(other: str, tmp_path: Path) -> None:
    (tmp_path / f"{other}.py").write_text("raise SystemExit('it would take most of the memory of a GPU')")
    code = "from policy_decorator.rl.transport import needs_pot; print(needs_pot().__version__)"
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    for name in ("JAX", "CUPY", "TENSORFLOW"):
        where.pop(f"POT_BACKEND_DISABLE_{name}", None)
    subprocess.run([sys.executable, "-c", code], env=where, check=True)


def test_a_plan_that_can_be_seen() -> None:
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    plan = transport_plan(cost)
    torch.testing.assert_close(plan, torch.tensor([[1 / 3, 0], [0, 1 / 3], [1 / 6, 1 / 6]]), atol=1e-5, rtol=0)
    torch.testing.assert_close((plan * cost).sum(1), torch.tensor([0, 0, 1 / 6]), atol=1e-5, rtol=0)


def test_with_little_smoothing_it_is_the_best_assignment() -> None:
    cost = torch.rand(7, 7, generator=torch.Generator().manual_seed(3))
    rows, columns = linear_sum_assignment(cost.numpy())
    least = cost.numpy()[rows, columns].mean()
    assert (transport_plan(cost) * cost).sum().item() == pytest.approx(least, abs=0.02)
    assert (transport_plan(cost) * cost).sum().item() >= least - 1e-4


def test_a_plan_is_uniform_on_both_sides_and_a_long_episode_is_no_problem() -> None:
    seen, shown = torch.randn(200, 6), torch.randn(150, 6)
    plan = transport_plan(1 - torch.nn.functional.cosine_similarity(seen[:, None], shown[None], dim=-1))
    assert plan.isfinite().all()
    np.testing.assert_allclose(plan.sum(1), np.full(200, 1 / 200), rtol=1e-3)  # the side that was scaled last
    np.testing.assert_allclose(plan.sum(0), np.full(150, 1 / 150), rtol=0.1)  # a hundred iterations come this near


def test_rewards_tell_what_was_shown_from_what_was_not() -> None:
    shown = torch.randn(30, 5)
    rewards = transport_rewards(torch.cat([shown, -shown]), shown)
    assert rewards[:30].mean() > 0.1 * rewards[30:].mean()  # both negative: the first are nearly free
    assert (rewards <= 0).all()
    assert transport_rewards(shown, shown).sum().item() == pytest.approx(0, abs=0.02)


def test_the_nearest_demonstration_counts_and_the_first_episode_sets_the_scale() -> None:
    one, two = torch.randn(20, 4), torch.randn(20, 4)
    score = TransportReward([one, two], lambda obs: 2 * obs)
    noisy = two + 0.3 * torch.randn(20, 4)
    first = score(noisy)
    assert first.sum().item() == pytest.approx(-FIRST_SUM, rel=1e-4)
    torch.testing.assert_close(first, score.scale * transport_rewards(noisy, two))
    assert score(two).sum() > -2  # better than the first, in the same units
    assert score(torch.randn(20, 4)).sum() < -FIRST_SUM


def test_without_pot_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(MissingExtra, match=r"policy-decorator\[transport\]"):
        transport_plan(torch.rand(2, 2))
