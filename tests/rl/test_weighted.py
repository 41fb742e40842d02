"""IQL, AWAC and the likelihood they share, against closed forms, loops and finite differences."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from batches import DA, DO, B, disturb, new_actor, new_batch, new_critics
from scipy.stats import expectile, norm
from torch import Tensor

from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.awac import AWAC, AWACConfig
from policy_decorator.rl.iql import IQL, IQLConfig, expectile_loss
from policy_decorator.rl.nets import TanhGaussian
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.weighted import entropy, weighted_likelihood, weights
from policy_decorator.types import Transition

SAC_CONFIG = SACConfig(gamma=0.9, lr=1e-3)


def _iql(**changes: Any) -> IQL:
    learner = IQL(new_actor(), new_critics(), new_critics(1, 0), Takeover(), SAC_CONFIG, IQLConfig(**changes))
    disturb(learner.target)
    return learner


def _awac(**changes: Any) -> AWAC:
    learner = AWAC(new_actor(), new_critics(), Takeover(), SAC_CONFIG, AWACConfig(**changes))
    disturb(learner.target)
    return learner


# ---- likelihood -----------------------------------------------------------------------------------------------


def test_density_is_that_of_a_gaussian_around_tanh() -> None:
    actor, b = new_actor(), new_batch()
    mean, log_std = (x.detach().numpy() for x in actor.gaussian(b.obs))
    expected = norm.logpdf(b.raw.flatten(1).numpy(), np.tanh(mean), np.exp(log_std)).sum(-1)
    np.testing.assert_allclose(actor.log_density(b.obs, b.raw).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_samples_have_the_log_probability_of_their_density() -> None:
    actor, obs = new_actor(clamps=False), torch.randn(50, DO)
    raw, log_prob = actor(obs)
    torch.testing.assert_close(log_prob, actor.log_density(obs, raw), rtol=1e-4, atol=1e-4)
    clamped, _ = new_actor()(100 * obs, torch.full((50, DA), 9.0))
    assert clamped.abs().max() == 1


def test_it_acts_as_a_tanh_gaussian_with_the_same_parameters() -> None:
    actor, obs = new_actor(), torch.randn(7, DO)
    other = TanhGaussian(DO, (1, DA), actor.cfg)
    other.load_state_dict(actor.state_dict())
    assert torch.equal(actor.mode(obs), other.mode(obs))


def test_entropy_is_the_gaussians() -> None:
    actor, obs = new_actor(), torch.randn(7, DO)
    std = actor.gaussian(obs)[1].exp()
    expected = torch.distributions.Normal(0 * std, std).entropy().sum(-1).mean()
    assert entropy(actor, obs).item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_are_exponential_up_to_the_largest() -> None:
    advantage = torch.tensor([-1.0, 0.0, 0.5, 1e9], requires_grad=True)
    found = weights(advantage, 3.0, 100.0)
    assert found.tolist() == pytest.approx([math.exp(-3), 1.0, math.exp(1.5), 100.0], rel=1e-5)
    assert not found.requires_grad
    assert weights(advantage, 0.0, 100.0).tolist() == [1.0] * 4  # behaviour cloning


def test_likelihood_is_weighted_row_by_row() -> None:
    actor, b, weight = new_actor(), new_batch(), torch.rand(B)
    one = [actor.log_density(b.obs[i : i + 1], b.raw[i : i + 1]).item() for i in range(B)]
    expected = -sum(w * x for w, x in zip(weight.tolist(), one, strict=True)) / B
    assert weighted_likelihood(actor, b.obs, b.raw, weight).item() == pytest.approx(expected, rel=1e-4)


# ---- IQL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9])
def test_the_minimum_of_the_loss_is_scipys_expectile(tau: float) -> None:
    sample = torch.randn(200, dtype=torch.float64) ** 3
    value = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([value], max_iter=200, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expectile_loss(sample - value, tau).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert value.item() == pytest.approx(float(expectile(sample.numpy(), alpha=tau)), abs=1e-6)


def test_the_losses_of_iql_are_those_of_a_loop() -> None:
    learner, b = _iql(expectile=0.7, advantage_sharpness=2.0, most_weight=1.1), new_batch()
    value, critic, actor, weight = 0.0, 0.0, 0.0, []
    for i in range(B):
        row = type(b)(*(x[i : i + 1] for x in b))
        v, v_next = learner.v(row.obs).item(), learner.v(row.next_obs).item()
        u = learner.target(row.obs, row.raw).min().item() - v
        value += (0.7 if u > 0 else 0.3) * u**2 / B
        goal = b.reward[i].item() + 0.9 ** int(b.decisions[i]) * (1 - b.terminated[i].item()) * v_next
        critic += sum((q.item() - goal) ** 2 for q in learner.critic(row.obs, row.raw)) / B
        weight.append(min(math.exp(2 * u), 1.1))
        actor -= weight[-1] * learner.actor.log_density(row.obs, row.raw).item() / B
    assert learner.value_loss(b).item() == pytest.approx(value, rel=1e-4)
    assert learner.critic_loss(b)[0].item() == pytest.approx(critic, rel=1e-4)
    loss, used = learner.actor_loss(b)
    assert loss.item() == pytest.approx(actor, rel=1e-4)
    assert used.tolist() == pytest.approx(weight, rel=1e-4)
    assert 1.1 in [round(x, 6) for x in used.tolist()]  # the largest weight binds somewhere
    assert len({round(x, 6) for x in used.tolist()}) > 2


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_values_are_as_optimistic_as_the_expectile_says(tau: float) -> None:
    """Rewards are half above and half below 0: V is 0, their mean, or with 0.9 half as large as the largest."""
    learner, zeros, ones = _iql(expectile=tau), torch.zeros(64, DO), torch.ones(64)
    learner.cfg = SACConfig(tau=0.2, actor_every=1_000)
    for optimizer in (learner.critic_opt, learner.value_opt):
        optimizer.param_groups[0]["lr"] = 0.04
    raw = torch.zeros(64, 1, DA)
    raw[:, 0, 0] = reward = torch.linspace(-1, 1, 64)
    for _ in range(100):
        learner.update(Transition(zeros, raw, 0 * raw, reward, ones, ones, zeros, 0 * raw))
    assert learner.v(zeros[:1]).item() == pytest.approx(float(expectile(reward.numpy(), alpha=tau)), abs=0.1)


def test_iql_asks_its_policy_for_no_action() -> None:
    learner, b = _iql(), new_batch()

    def forward(*_: Any) -> Any:
        raise AssertionError("asked")

    learner.actor.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    learner.update(b)


# ---- AWAC -----------------------------------------------------------------------------------------------------


def test_the_losses_of_awac_are_those_of_a_loop() -> None:
    learner, b = _awac(advantage_temperature=0.5, most_weight=1.2), new_batch()
    torch.manual_seed(5)
    loss, weight = learner.actor_loss(b)
    torch.manual_seed(5)
    raw, _ = learner.actor(b.obs)
    expected = []
    for i in range(B):
        done, would = (learner.critic(b.obs[i : i + 1], x[i : i + 1]).min().item() for x in (b.raw, raw))
        expected.append(min(math.exp((done - would) / 0.5), 1.2))
    assert weight.tolist() == pytest.approx(expected, rel=1e-3)
    assert len({round(x, 6) for x in expected}) > 2
    likelihood = learner.actor.log_density(b.obs, b.raw)
    assert loss.item() == pytest.approx(-(torch.tensor(expected) * likelihood).mean().item(), rel=1e-3)

    torch.manual_seed(5)
    critic_loss, _ = learner.critic_loss(b)
    torch.manual_seed(5)
    raw, _ = learner.actor(b.next_obs)
    total = 0.0
    for i in range(B):
        value = learner.target(b.next_obs[i : i + 1], raw[i : i + 1]).min().item()
        goal = b.reward[i].item() + 0.9 ** int(b.decisions[i]) * (1 - b.terminated[i].item()) * value
        total += sum((q.item() - goal) ** 2 for q in learner.critic(b.obs[i : i + 1], b.raw[i : i + 1])) / B
    assert critic_loss.item() == pytest.approx(total, rel=1e-4)


# ---- both -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [_iql, _awac])
def test_gradients_of_the_policys_loss_are_finite_differences(make: Any) -> None:
    learner, b = make(), new_batch()
    actor = learner.actor.double()
    b = type(b)(*(x.double() for x in b))
    learner.critic, learner.target = learner.critic.double(), learner.target.double()
    if isinstance(learner, IQL):
        learner.value = learner.value.double()

    def loss() -> Tensor:
        torch.manual_seed(5)
        return learner.actor_loss(b)[0]

    fixed = loss()
    parameter = actor.net.head.weight
    (slope,) = torch.autograd.grad(fixed, parameter)
    torch.manual_seed(5)
    weight = learner.actor_loss(b)[1].detach()
    for index in ((0, 0, 0), (0, 1, 2), (0, 2, 1)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[index] += sign * 1e-5
                values.append(weighted_likelihood(actor, b.obs, b.raw, weight).item())
                parameter[index] -= sign * 1e-5
        assert slope[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("make", "loss", "learns"),
    [
        (_iql, "value_loss", "value"),
        (_iql, "critic_loss", "critic"),
        (_iql, "actor_loss", "actor"),
        (_awac, "critic_loss", "critic"),
        (_awac, "actor_loss", "actor"),
    ],
)
def test_a_loss_reaches_the_network_that_it_is_of_and_no_other(make: Any, loss: str, learns: str) -> None:
    learner, b = make(), new_batch()
    learner.target.requires_grad_(True)
    found = getattr(learner, loss)(b)
    value = found if loss == "value_loss" else found[0]
    for name in ("actor", "critic", "value", "target"):
        if hasattr(learner, name):
            params = list(getattr(learner, name).parameters())
            grads = torch.autograd.grad(value, params, allow_unused=True, retain_graph=True)
            assert any(g is not None for g in grads) is (name == learns), name


def _double(learner: Any, b: Any) -> Any:
    """Both in double precision, in place; the batch."""
    for name in ("actor", "critic", "value", "target"):
        if hasattr(learner, name):
            getattr(learner, name).double()
    return type(b)(*(x.double() for x in b))


@pytest.mark.parametrize(
    ("make", "loss", "learns"),
    [(_iql, "value_loss", "value"), (_iql, "critic_loss", "critic"), (_awac, "critic_loss", "critic")],
)
def test_gradients_of_values_are_finite_differences(make: Any, loss: str, learns: str) -> None:
    learner = make()
    b = _double(learner, new_batch())

    def value() -> Tensor:
        torch.manual_seed(5)  # AWAC draws next actions
        found = getattr(learner, loss)(b)
        return found if loss == "value_loss" else found[0]

    parameter = getattr(learner, learns).net.first.weight
    (slope,) = torch.autograd.grad(value(), parameter)
    largest = slope.abs().flatten().topk(3).indices
    flat = parameter.data.view(-1)
    for k in largest.tolist():
        values = []
        for sign in (1, -2):
            flat[k] += sign * 1e-6
            values.append(value().item())
        flat[k] += 1e-6
        assert slope.flatten()[k].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("make", [_iql, _awac])
def test_an_update_moves_every_network_and_the_target_follows(make: Any) -> None:
    learner, b = make(), new_batch()
    names = [name for name in ("actor", "critic", "value", "target") if hasattr(learner, name)]
    before = {name: copy.deepcopy(getattr(learner, name).state_dict()) for name in names}
    metrics = learner.update(b)
    assert learner.updates == 1
    assert all(x.isfinite() for x in metrics.values())
    for name in names:
        after = getattr(learner, name).state_dict()
        assert any(not torch.equal(x, after[key]) for key, x in before[name].items())
    tau = learner.cfg.tau
    for key, old in before["target"].items():
        goal = (1 - tau) * old + tau * learner.critic.state_dict()[key]
        torch.testing.assert_close(learner.target.state_dict()[key], goal)
