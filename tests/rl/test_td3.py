"""Both losses against closed forms and finite differences, one update by hand, and the noise."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from batches import finite_difference
from torch import Tensor

from policy_decorator.decorator import Residual
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.td3 import TD3, Noisy, TD3Config
from policy_decorator.types import Transition

B, DO, DA = 6, 3, 2
NETS = NetConfig(width=5, depth=1, head_gain=1.0)
LOUD = TD3Config(smoothing_std=0.8, smoothing_limit=0.6)  # both limits are met


def _batch(dtype: torch.dtype = torch.float32) -> Transition:
    terminated = torch.tensor([0.0, 1, 0, 0, 1, 0])
    decisions = torch.tensor([1.0, 1, 3, 2, 2, 1])
    raw, base, next_base = (torch.rand(B, 1, DA) * 2 - 1 for _ in range(3))
    t = Transition(torch.randn(B, DO), raw, base, -torch.rand(B), terminated, decisions, torch.randn(B, DO), next_base)
    return Transition(*(x.to(dtype) for x in t))


def _td3(cfg: SACConfig | None = None, dtype: torch.dtype = torch.float32, critics: int = 2) -> TD3:
    nets = replace(NETS, critics=critics)
    actor, critic = TanhGaussian(DO, (1, DA), nets).to(dtype), Critics(DO, DA, nets).to(dtype)
    learner = TD3(actor, critic, Residual(0.4), cfg or SACConfig(), LOUD)
    with torch.no_grad():  # targets unlike what they follow, or the wrong ones would go unnoticed
        for p in (*learner.target.parameters(), *learner.target_actor.parameters()):
            p.add_(0.3 * torch.randn_like(p))
    return learner


@pytest.mark.parametrize(("subset", "how"), [(None, "min"), (2, "mean")])
def test_losses_by_hand(subset: int | None, how: str) -> None:
    cfg = SACConfig(gamma=0.9, critic_subset=subset, actor_value=how, residual_penalty=0.7)  # pyright: ignore[reportArgumentType]
    learner, b = _td3(cfg, critics=4), _batch()
    torch.manual_seed(5)
    loss, q = learner.critic_loss(b)
    torch.manual_seed(5)
    noise = (0.8 * torch.randn(B, 1, DA)).clamp(-0.6, 0.6)
    drawn = [0, 1, 2, 3] if subset is None else torch.rand(4).argsort()[:2].tolist()
    unclipped = learner.target_actor.mode(b.next_obs) + noise
    assert (noise.abs() == 0.6).any()
    assert (unclipped.abs() > 1).any()
    value = learner.target(b.next_obs, b.next_base + 0.4 * unclipped.clamp(-1, 1))
    current = learner.critic(b.obs, b.base + 0.4 * b.raw)
    expected = 0.0
    for i in range(B):
        goal = float(b.reward[i])
        if not b.terminated[i]:
            goal += 0.9 ** int(b.decisions[i]) * value[drawn, i].min().item()
        expected += sum((current[k, i].item() - goal) ** 2 for k in range(4)) / B
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(q, current)
    assert not q.requires_grad

    raw = learner.actor.mode(b.obs)
    q = learner.critic(b.obs, b.base + 0.4 * raw)
    wanted = (q.min(dim=0).values if how == "min" else q.mean(dim=0)) - 0.7 * raw.square().sum(dim=(1, 2))
    assert learner.actor_loss(b).item() == pytest.approx(-wanted.mean().item(), rel=1e-5)


@pytest.mark.parametrize("which", ["critic", "actor"])
def test_gradients_are_those_of_finite_differences(which: str) -> None:
    learner, b = _td3(dtype=torch.float64), _batch(torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return learner.critic_loss(b)[0] if which == "critic" else learner.actor_loss(b)

    params = list((learner.critic if which == "critic" else learner.actor).parameters())
    checked = 0
    for p, grad in zip(params, torch.autograd.grad(loss(), params), strict=True):
        for k in range(p.numel()):
            assert grad.reshape(-1)[k].item() == pytest.approx(finite_difference(loss, p, k), rel=1e-5, abs=1e-8)
            checked += bool(grad.reshape(-1)[k])
    assert checked >= 20


def test_an_update_by_hand() -> None:
    """Critic, then actor against the new critic, each one Adam step; then both targets."""
    learner, b = _td3(SACConfig(gamma=0.9, tau=0.2, lr=0.01)), _batch()
    hand = copy.deepcopy(learner)
    torch.manual_seed(8)
    metrics = learner.update(b)
    torch.manual_seed(8)
    loss, q = hand.critic_loss(b)
    losses: list[tuple[Callable[[], Tensor], str, str]] = [
        (lambda: loss, "critic", "target"),
        (lambda: hand.actor_loss(b), "actor", "target_actor"),
    ]
    for of, name, target in losses:
        net, follower = getattr(hand, name), getattr(hand, target)
        grads = torch.autograd.grad(of(), list(net.parameters()))
        with torch.no_grad():
            for p, grad, t in zip(net.parameters(), grads, follower.parameters(), strict=True):
                p.sub_(0.01 * grad / (grad.abs() + 1e-8))  # the first step of Adam
                t.copy_(0.8 * t + 0.2 * p)
    for name in ("critic", "actor", "target", "target_actor"):
        for p, expected in zip(getattr(learner, name).parameters(), getattr(hand, name).parameters(), strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=2e-6)
    assert learner.updates == 1
    assert metrics["loss/critic"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["q/mean"].item() == pytest.approx(q.mean().item(), rel=1e-5)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_actor_moves_at_every_kth_update_only_and_never_its_deviation() -> None:
    learner, b = _td3(SACConfig(actor_every=3, lr=0.01)), _batch()
    begin = learner.actor.net.head.weight.clone()
    for k in range(1, 8):
        before = [p.clone() for p in learner.actor.parameters()]
        metrics = learner.update(b)
        moved = any(not torch.equal(p, q) for p, q in zip(before, learner.actor.parameters(), strict=True))
        assert moved == (k % 3 == 0) == ("loss/actor" in metrics)
    assert torch.equal(learner.actor.net.head.weight[:, DA:], begin[:, DA:])
    assert not torch.equal(learner.actor.net.head.weight[:, :DA], begin[:, :DA])


def test_new_targets_equal_what_they_follow_and_are_no_aliases() -> None:
    learner = TD3(TanhGaussian(DO, (1, DA), NETS), Critics(DO, DA, NETS), Residual(0.4))
    for target, net in ((learner.target, learner.critic), (learner.target_actor, learner.actor)):
        for p, q in zip(target.parameters(), net.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.data_ptr() != q.data_ptr()
            assert not p.requires_grad


def test_the_noise_has_the_size_it_is_given_and_stays_in_bounds() -> None:
    actor = TanhGaussian(DO, (2, DA), NETS)
    noisy, seen = Noisy(actor, 0.1), torch.randn(1, DO).expand(20_000, DO)
    mean = actor.mode(seen)
    difference = noisy(seen, noisy.fresh_noise(seen))[0] - mean
    inside = mean[0].abs() < 0.5  # the others are clipped
    assert inside.any()
    torch.testing.assert_close(difference.std(0)[inside], torch.full((int(inside.sum()),), 0.1), rtol=0.03, atol=0)
    torch.testing.assert_close(difference.mean(0)[inside], torch.zeros(int(inside.sum())), rtol=0, atol=4e-3)
    raw, log_prob = Noisy(actor, 5.0)(seen, noisy.fresh_noise(seen))
    assert raw.shape == (20_000, 2, DA)
    assert raw.abs().max() == 1
    assert log_prob.shape == (20_000,)


def test_the_critic_learns_a_known_value() -> None:
    """One state that goes on for ever at reward -1: Q = -1 / (1 - gamma)."""
    critic = Critics(1, 1, replace(NETS, width=16))
    learner = TD3(TanhGaussian(1, (1, 1), NETS), critic, Residual(0.1), SACConfig(gamma=0.5, tau=0.1, lr=5e-3))
    one, none = torch.ones(16), torch.zeros(16, 1, 1)
    b = Transition(one[:, None], torch.rand(16, 1, 1), none, -one, 0 * one, one, one[:, None], none)
    for _ in range(500):
        learner.update(b)
    q = critic(one[:, None], none)
    torch.testing.assert_close(q, torch.full_like(q, -2.0), atol=0.1, rtol=0)


def test_defaults_are_td3s() -> None:
    assert TD3Config() == TD3Config(exploration_std=0.1, smoothing_std=0.2, smoothing_limit=0.5)
