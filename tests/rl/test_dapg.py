"""The natural gradient against a dense Fisher matrix, the sum it follows against a loop, and its step's size."""

import math
from typing import Any

import pytest
import torch
from batches import DA, DO, B, new_actor, new_batch, new_critics
from torch import Tensor, nn

from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.dapg import DAPG, Cloning, DAPGConfig
from policy_decorator.rl.nets import Critics
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.types import Transition


def _learner(shown: Transition | None, **changes: Any) -> DAPG:
    cfg = DAPGConfig(**{"value_epochs": 1, "value_batch": 4} | changes)
    value: Critics = new_critics(1, 0)
    return DAPG(
        new_actor(clamps=False), value, Takeover(), SACConfig(gamma=0.9, lr=1e-3), PPOConfig(), shown=shown, dapg=cfg
    )


def _flat(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def _rollout(steps: int = 12, envs: int = 4) -> tuple[Transition, Tensor]:
    rows = new_batch(steps * envs)._replace(decisions=torch.ones(steps * envs))
    return Transition(*(x.unflatten(0, (steps, envs)) for x in rows)), (torch.rand(steps, envs) < 0.2).float()


def test_the_sum_is_a_loops() -> None:
    shown = new_batch(4)
    learner, b, advantage = _learner(shown, demo_weight=0.3), new_batch(), torch.randn(B)
    own = [a * learner.log_density(b.obs[i : i + 1], b.raw[i : i + 1])[0].item() for i, a in enumerate(advantage)]
    theirs = [0.3 * learner.log_density(shown.obs[i : i + 1], shown.raw[i : i + 1])[0].item() for i in range(4)]
    expected = float(sum(own) + sum(theirs)) / (B + 4)
    assert learner.surrogate(b.obs, b.raw, advantage).item() == pytest.approx(expected, rel=1e-4)
    alone = _learner(None)
    alone.actor.load_state_dict(learner.actor.state_dict())
    assert alone.surrogate(b.obs, b.raw, advantage).item() == pytest.approx(float(sum(own)) / B, rel=1e-4)


def test_the_natural_gradient_solves_with_the_dense_fisher_matrix() -> None:
    """The Fisher matrix as the mean of outer products of scores, from many samples of every state's action."""
    learner, obs = _learner(None, damping=1e-2, conjugate_gradients=500), torch.randn(3, DO)
    params = list(learner.actor.parameters())
    scores = []
    mean, log_std = learner.actor.gaussian(obs)
    spread = torch.tensor([-(3**0.5), 0.0, 3**0.5])  # Gauss-Hermite: exact for the scores' products
    share = torch.tensor([1 / 6, 2 / 3, 1 / 6])
    for i in range(3):
        for x, p in zip(spread, share, strict=True):
            for y, q in zip(spread, share, strict=True):
                noise = torch.stack([x, y])
                raw = (mean[i].tanh() + log_std[i].exp() * noise).detach().view(1, 1, DA)
                density = learner.log_density(obs[i : i + 1], raw)[0].sum()
                score = torch.cat([g.flatten() for g in torch.autograd.grad(density, params, retain_graph=True)])
                scores.append((p * q / 3).sqrt() * score)
    fisher = torch.stack(scores).T @ torch.stack(scores)
    gradient = torch.randn(len(fisher))
    expected = torch.linalg.solve(fisher.double() + 1e-2 * torch.eye(len(fisher)), gradient.double())
    found = learner.natural(gradient, obs).double()
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_round_moves_the_policy_by_the_given_divergence() -> None:
    for step in (1e-4, 2e-5):
        torch.manual_seed(1)
        learner = _learner(None, normalized_step=step, damping=1e-6, conjugate_gradients=100)
        facts = learner.learn(*_rollout())
        assert facts["dapg/kl"].item() == pytest.approx(step / 2, rel=0.1)


def test_demonstrations_count_less_from_round_to_round() -> None:
    learner = _learner(new_batch(4), demo_weight=0.4, demo_decay=0.5)
    told = [learner.learn(*_rollout())["dapg/demo_weight"].item() for _ in range(3)]
    assert told == pytest.approx([0.4, 0.2, 0.1])
    assert learner.updates == 3


def test_a_round_without_differences_imitates_only() -> None:
    """All rewards are zero: what is left of the gradient makes the demonstrated actions likelier."""
    t, done = _rollout()
    t = t._replace(reward=0 * t.reward)
    shown = new_batch(8)
    likelihoods = []
    for given in (shown, None):
        torch.manual_seed(2)
        learner = _learner(given, demo_weight=1.0)
        with torch.no_grad():
            for p in learner.critic.parameters():
                p.zero_()
        before, was = _flat(learner.actor), learner.log_density(shown.obs, shown.raw)[0].mean().item()
        learner.learn(t, done)
        assert learner.actor.gaussian(shown.obs)[0].isfinite().all()
        assert torch.equal(before, _flat(learner.actor)) is (given is None)
        likelihoods.append(learner.log_density(shown.obs, shown.raw)[0].mean().item() - was)
    assert likelihoods[0] > 0.01
    assert likelihoods[1] == 0.0


def test_cloning_learns_the_mean_and_leaves_the_spread() -> None:
    shown = new_batch(4)
    learner = _learner(shown, cloning_lr=1e-2)
    spread = learner.actor.net.head.bias[0, :, DA:].detach().clone()
    weights = learner.actor.net.head.weight[0, DA:].detach().clone()
    cloning = Cloning(learner)
    losses = [cloning.update(shown)["loss/cloning"].item() for _ in range(400)]
    assert losses[-1] < 0.2 * losses[0]
    assert (cloning.updates, learner.updates) == (400, 0)
    assert torch.equal(spread, learner.actor.net.head.bias[0, :, DA:])
    assert torch.equal(weights, learner.actor.net.head.weight[0, DA:])


def test_the_divergence_between_two_policies_is_the_gaussians() -> None:
    """Sum over dimensions of log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, around tanh of the means."""
    learner, obs = _learner(None), torch.randn(5, DO)
    before = tuple(x.detach() for x in learner.actor.gaussian(obs))
    assert learner.divergence(obs).item() == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        for p in learner.actor.parameters():
            p += 0.1 * torch.randn_like(p)
    after = tuple(x.detach() for x in learner.actor.gaussian(obs))
    (m1, l1), (m2, l2) = before, after
    total = 0.0
    for i in range(5):
        for k in range(DA):
            s1, s2 = math.exp(l1[i, k].item()), math.exp(l2[i, k].item())
            away = math.tanh(m1[i, k].item()) - math.tanh(m2[i, k].item())
            total += (math.log(s2 / s1) + (s1**2 + away**2) / (2 * s2**2) - 0.5) / 5
    assert learner._moved((before[0], before[1]), obs).item() == pytest.approx(total, rel=1e-3)


def test_the_value_function_learns_its_goals() -> None:
    learner = _learner(None, value_epochs=300, value_batch=16)
    seen = torch.randn(32, DO)
    goal = 2 * seen[:, 0]
    error = lambda: ((learner.values(seen) - goal) ** 2).mean().item()  # noqa: E731
    first = error()
    learner._fit(seen, goal)
    assert error() < 0.3 * first
    one = _learner(None, value_epochs=1, value_batch=64)
    expected = sum((one.values(seen[i : i + 1]).item() - goal[i].item()) ** 2 for i in range(32)) / 32
    assert one._fit(seen, goal)["loss/critic"].item() == pytest.approx(expected, rel=1e-4)


def test_cloning_is_a_mean_square() -> None:
    learner, shown = _learner(None), new_batch(4)
    modes = [torch.tanh(learner.actor.gaussian(shown.obs[i : i + 1])[0])[0].tolist() for i in range(4)]
    raw = shown.raw.flatten(1).tolist()
    expected = sum((m - a) ** 2 for x, y in zip(modes, raw, strict=True) for m, a in zip(x, y, strict=True)) / (4 * DA)
    assert learner.clone(shown)["loss/cloning"].item() == pytest.approx(expected, rel=1e-4)
