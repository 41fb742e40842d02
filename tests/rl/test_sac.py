"""The three losses against closed forms, their gradients against finite differences, and one update by hand."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from batches import assert_gradients_are_finite_differences
from torch import Tensor

from policy_decorator.decorator import Residual
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.types import Transition

B, DO, DA = 6, 3, 2
NETS = NetConfig(width=5, depth=1, head_gain=1.0, log_std_min=-3.0)


def _batch(dtype: torch.dtype = torch.float32) -> Transition:
    terminated = torch.tensor([0.0, 1, 0, 0, 1, 0])
    decisions = torch.tensor([1.0, 1, 3, 2, 2, 1])
    raw, base, next_base = (torch.rand(B, 1, DA) * 2 - 1 for _ in range(3))
    t = Transition(torch.randn(B, DO), raw, base, -torch.rand(B), terminated, decisions, torch.randn(B, DO), next_base)
    return Transition(*(x.to(dtype) for x in t))


def _sac(cfg: SACConfig | None = None, sees: Any = "sum", dtype: torch.dtype = torch.float32, critics: int = 2) -> SAC:
    scored = 2 * DA if sees == "concat" else DA
    nets = replace(NETS, critics=critics)
    actor, critic = TanhGaussian(DO, (1, DA), nets).to(dtype), Critics(DO, scored, nets).to(dtype)
    learner = SAC(actor, critic, Residual(0.4, critic_sees=sees), DA, cfg or SACConfig(temperature=0.3))
    with torch.no_grad():  # a target unlike the critic, or the wrong one would go unnoticed
        for p in learner.target.parameters():
            p.add_(0.3 * torch.randn_like(p))
    if dtype != torch.float32:  # for the losses alone: its optimiser would go on with the old one
        learner.log_temperature = learner.log_temperature.detach().to(dtype).requires_grad_()
    return learner


def _same_noise(learner: SAC, obs: Tensor) -> tuple[Tensor, Tensor]:
    """The sample and log-probability that the loss will see after `torch.manual_seed(5)`."""
    torch.manual_seed(5)
    sample = learner.actor(obs)
    torch.manual_seed(5)
    return sample


def _scored(sees: str, base: Tensor, raw: Tensor) -> Tensor:
    return {"sum": base + 0.4 * raw, "residual": raw, "concat": torch.cat([raw, base], dim=-1)}[sees]


@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize("sees", ["sum", "concat", "residual"])
def test_critic_loss(sees: str, entropy: bool) -> None:
    learner, b = _sac(SACConfig(gamma=0.9, temperature=0.3, entropy_in_backup=entropy), sees), _batch()
    raw, log_prob = _same_noise(learner, b.next_obs)
    loss, q = learner.critic_loss(b)
    value = learner.target(b.next_obs, _scored(sees, b.next_base, raw))
    current = learner.critic(b.obs, _scored(sees, b.base, b.raw))
    expected = 0.0
    for i in range(B):
        goal = float(b.reward[i])
        if not b.terminated[i]:
            goal += 0.9 ** int(b.decisions[i]) * (value[:, i].min().item() - entropy * 0.3 * log_prob[i].item())
        expected += sum((current[k, i].item() - goal) ** 2 for k in range(2)) / B
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(q, current)
    assert not q.requires_grad


@pytest.mark.parametrize("sees", ["sum", "concat", "residual"])
def test_actor_loss(sees: str) -> None:
    learner, b = _sac(sees=sees), _batch()
    raw, log_prob = _same_noise(learner, b.obs)
    loss, answered = learner.actor_loss(b)
    q = learner.critic(b.obs, _scored(sees, b.base, raw)).min(dim=0).values
    assert loss.item() == pytest.approx((0.3 * log_prob - q).mean().item(), rel=1e-5)
    torch.testing.assert_close(answered, log_prob)
    assert not answered.requires_grad  # the temperature's loss must not reach the actor


def test_the_target_believes_the_smallest_of_a_subset_and_the_actor_climbs_the_mean() -> None:
    cfg = SACConfig(gamma=0.9, temperature=0.3, critic_subset=2, actor_value="mean")
    learner, b = _sac(cfg, critics=5), _batch()
    raw, log_prob = _same_noise(learner, b.next_obs)
    loss, _ = learner.critic_loss(b)
    torch.manual_seed(5)
    learner.actor.fresh_noise(b.next_obs)  # pyright: ignore[reportCallIssue]
    drawn = torch.rand(5).argsort()[:2]
    value = learner.target(b.next_obs, _scored("sum", b.next_base, raw))[drawn].min(dim=0).values - 0.3 * log_prob
    goal = b.reward + 0.9**b.decisions * (1 - b.terminated) * value
    current = learner.critic(b.obs, _scored("sum", b.base, b.raw))
    assert loss.item() == pytest.approx((current - goal).square().mean(dim=1).sum().item(), rel=1e-5)

    raw, log_prob = _same_noise(learner, b.obs)
    q = learner.critic(b.obs, _scored("sum", b.base, raw)).mean(dim=0)
    assert learner.actor_loss(b)[0].item() == pytest.approx((0.3 * log_prob - q).mean().item(), rel=1e-5)


def test_the_residual_penalty_pulls_the_actor_to_the_base() -> None:
    plain, b = _sac(SACConfig(temperature=0.3)), _batch()
    held = _sac(SACConfig(temperature=0.3, residual_penalty=0.5))
    for name in ("actor", "critic", "target"):
        getattr(held, name).load_state_dict(getattr(plain, name).state_dict())
    losses = []
    for learner in (plain, held):
        torch.manual_seed(3)
        losses.append(learner.actor_loss(b)[0].item())
    torch.manual_seed(3)
    raw, _ = plain.actor(b.obs)
    assert losses[1] - losses[0] == pytest.approx(0.5 * (raw**2).sum().item() / len(raw), rel=1e-4)
    for learner in (plain, held):
        for _ in range(30):
            learner.update(b)
    assert held.actor.mode(b.obs).norm() < plain.actor.mode(b.obs).norm()


@pytest.mark.parametrize("target_entropy", [-1.0, -0.25])
def test_temperature_loss(target_entropy: float) -> None:
    learner = _sac(SACConfig(temperature=0.3, target_entropy=target_entropy))
    log_prob = torch.tensor([0.5, -2.0, 4.0])
    loss = learner.temperature_loss(log_prob)
    expected = -math.log(0.3) * (2.5 / 3 + target_entropy * DA)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, learner.log_temperature)
    assert gradient.item() == pytest.approx(-(2.5 / 3 + target_entropy * DA), rel=1e-5)


# ---- gradients ------------------------------------------------------------------------------------------------


ENSEMBLE = SACConfig(temperature=0.3, critic_subset=2, actor_value="mean")


@pytest.mark.parametrize(
    ("which", "cfg"),
    [("critic", None), ("actor", None), ("temperature", None), ("critic", ENSEMBLE), ("actor", ENSEMBLE)],
)
def test_gradients_are_those_of_finite_differences(which: str, cfg: SACConfig | None) -> None:
    learner, b = _sac(cfg, dtype=torch.float64, critics=2 if cfg is None else 4), _batch(torch.float64)

    def loss() -> Tensor:
        torch.manual_seed(3)
        match which:
            case "critic":
                return learner.critic_loss(b)[0]
            case "actor":
                return learner.actor_loss(b)[0]
            case _:
                return learner.temperature_loss(torch.linspace(-3, 1, 7, dtype=torch.float64))

    nets = {"critic": learner.critic.parameters(), "actor": learner.actor.parameters()}
    params = list(nets.get(which, [learner.log_temperature]))
    checked = assert_gradients_are_finite_differences(loss, params)
    assert checked >= min(10, len(params))


def test_the_critic_is_not_regressed_through_its_target() -> None:
    learner, b = _sac(), _batch()
    loss, _ = learner.critic_loss(b)
    loss.backward()
    assert all(p.grad is None for p in (*learner.actor.parameters(), *learner.target.parameters()))
    assert learner.log_temperature.grad is None
    assert all(p.grad is not None for p in learner.critic.parameters())


# ---- one update -----------------------------------------------------------------------------------------------


def _adam_first_step(p: Tensor, grad: Tensor, lr: float) -> Tensor:
    return p - lr * grad / (grad.abs() + 1e-8)  # the first step of Adam with its default settings


def test_an_update_by_hand() -> None:
    """Critic, then actor against the new critic, then temperature, then target: each one Adam step."""
    cfg = SACConfig(gamma=0.9, tau=0.2, lr=0.01, temperature=0.3, target_entropy=-0.5)
    learner, b = _sac(cfg), _batch()
    hand = copy.deepcopy(learner)
    torch.manual_seed(8)
    metrics = learner.update(b)

    torch.manual_seed(8)
    loss, q = hand.critic_loss(b)
    grads = torch.autograd.grad(loss, list(hand.critic.parameters()))
    with torch.no_grad():
        for p, grad in zip(hand.critic.parameters(), grads, strict=True):
            p.copy_(_adam_first_step(p, grad, 0.01))
    actor_loss, log_prob = hand.actor_loss(b)
    grads = torch.autograd.grad(actor_loss, list(hand.actor.parameters()))
    with torch.no_grad():
        for p, grad in zip(hand.actor.parameters(), grads, strict=True):
            p.copy_(_adam_first_step(p, grad, 0.01))
        sign = torch.sign(-(log_prob + -0.5 * DA).mean())
        temperature = math.exp(math.log(0.3) - 0.01 * sign.item())
        for p, c in zip(hand.target.parameters(), hand.critic.parameters(), strict=True):
            p.copy_(0.8 * p + 0.2 * c)

    for name in ("critic", "actor", "target"):
        for p, expected in zip(getattr(learner, name).parameters(), getattr(hand, name).parameters(), strict=True):
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=2e-6)
    assert learner.temperature.item() == pytest.approx(temperature, rel=1e-5)
    assert learner.updates == 1
    assert metrics["loss/critic"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["loss/actor"].item() == pytest.approx(actor_loss.item(), rel=1e-4)
    assert metrics["sac/entropy"].item() == pytest.approx(-log_prob.mean().item(), rel=1e-4)
    assert metrics["q/mean"].item() == pytest.approx(q.mean().item(), rel=1e-5)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_actors_step_leaves_the_critic_alone() -> None:
    b = _batch()
    both, critic_only = _sac(), _sac()
    critic_only.cfg = replace(critic_only.cfg, actor_every=10)
    for name in ("actor", "critic", "target"):
        getattr(critic_only, name).load_state_dict(getattr(both, name).state_dict())
    for learner in (both, critic_only):
        torch.manual_seed(2)
        learner.update(b)
    for p, q in zip(both.critic.parameters(), critic_only.critic.parameters(), strict=True):
        assert torch.equal(p, q)
    assert any(
        not torch.equal(p, q) for p, q in zip(both.actor.parameters(), critic_only.actor.parameters(), strict=True)
    )


def test_actor_and_temperature_move_at_every_kth_update_only() -> None:
    learner, b = _sac(SACConfig(temperature=0.3, actor_every=3)), _batch()
    for k in range(1, 8):
        before = [p.clone() for p in learner.actor.parameters()], learner.temperature
        metrics = learner.update(b)
        moved = any(not torch.equal(p, q) for p, q in zip(before[0], learner.actor.parameters(), strict=True))
        assert moved == (k % 3 == 0) == ("loss/actor" in metrics) == (learner.temperature != before[1]).item()


def test_the_temperature_may_learn_at_a_rate_of_its_own() -> None:
    for own in (None, 0.02):
        cfg = SACConfig(temperature=0.3, lr=1e-3, temperature_lr=own)
        learner, b = _sac(cfg), _batch()
        learner.update(b)  # Adam's first step is as long as the learning rate
        moved = (learner.log_temperature - math.log(0.3)).abs().item()
        assert moved == pytest.approx(cfg.lr if own is None else own, rel=1e-3)


def test_the_gradient_of_each_network_is_clipped_by_its_own_norm() -> None:
    learner, b = _sac(SACConfig(temperature=0.3, max_grad_norm=0.01)), _batch()
    free = copy.deepcopy(learner)
    loss, _ = free.critic_loss(b)
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(free.critic.parameters()))]).norm()
    assert norm > 0.01
    learner.update(b)
    for opt in (learner.actor_opt, learner.critic_opt):
        total = torch.cat([state["exp_avg"].flatten() for state in opt.state.values()]).norm()
        assert total.item() == pytest.approx(0.1 * 0.01, rel=1e-3)  # Adam's first moment: a tenth of its first gradient


def test_the_target_follows_the_critic_by_tau() -> None:
    learner, b = _sac(SACConfig(tau=0.05, temperature=0.3)), _batch()
    for _ in range(3):
        before = [p.clone() for p in learner.target.parameters()]
        learner.update(b)
        for new, old, critic in zip(learner.target.parameters(), before, learner.critic.parameters(), strict=True):
            torch.testing.assert_close(new, old + 0.05 * (critic - old), rtol=1e-5, atol=1e-7)


def test_a_new_target_equals_the_critic_and_is_no_alias() -> None:
    critic = Critics(DO, DA, NETS)
    learner = SAC(TanhGaussian(DO, (1, DA), NETS), critic, Residual(0.4), DA)
    for p, q in zip(learner.target.parameters(), critic.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.data_ptr() != q.data_ptr()
        assert not p.requires_grad


@pytest.mark.parametrize(("log_std", "falls"), [(0.0, True), (-4.0, False)])
def test_the_temperature_falls_when_there_is_more_entropy_than_aimed_at(log_std: float, falls: bool) -> None:
    """-DA nats are aimed at: a standard deviation of 1 has more, one of e^-4 has less."""
    actor = TanhGaussian(DO, (1, DA), replace(NETS, log_std_min=log_std - 0.01, log_std_max=log_std + 0.01))
    learner = SAC(actor, Critics(DO, DA, NETS), Residual(0.4), DA, SACConfig(lr=0.01, temperature=0.5))
    for _ in range(5):
        entropy = learner.update(_batch())["sac/entropy"].item()
        assert (entropy > -DA) == falls
    assert (learner.temperature.item() < 0.5) == falls


def test_defaults_are_the_papers() -> None:
    cfg = SACConfig()
    assert (cfg.gamma, cfg.tau, cfg.lr, cfg.batch_size) == (0.97, 0.01, 1e-4, 1024)  # Table 9
    assert cfg.target_entropy * 4 == -4  # minus the action size, of the unscaled residual
    assert (cfg.critic_subset, cfg.actor_value) == (None, "min")


def test_the_critic_learns_a_known_value() -> None:
    """One state that goes on for ever at reward -1, without entropy: Q = -1 / (1 - gamma)."""
    critic = Critics(1, 1, replace(NETS, width=16))
    cfg = SACConfig(gamma=0.5, tau=0.1, lr=5e-3, temperature=1e-8)
    learner = SAC(TanhGaussian(1, (1, 1), NETS), critic, Residual(0.1), 1, cfg)
    one, none = torch.ones(16), torch.zeros(16, 1, 1)
    b = Transition(one[:, None], torch.rand(16, 1, 1), none, -one, 0 * one, one, one[:, None], none)
    for _ in range(500):
        learner.update(b)
    q = critic(one[:, None], none)
    torch.testing.assert_close(q, torch.full_like(q, -2.0), atol=0.1, rtol=0)
