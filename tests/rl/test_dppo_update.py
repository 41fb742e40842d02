"""DPPO's update: its loss against a direct sum, its advantages, clip ranges, early stop, first rounds, reward scale."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.errors import UserError
from policy_decorator.rl.denoising import Denoising
from policy_decorator.rl.dppo import DPPO, Chains, DPPOConfig
from policy_decorator.rl.nets import Critics, NetConfig
from policy_decorator.rl.ppo import PPOConfig, advantages
from policy_decorator.rl.rewards import RewardScale
from policy_decorator.rl.sac import SACConfig
from policy_decorator.types import Transition

pytest.importorskip("diffusers")

SMALL = DiffusionConfig(context=2, horizon=8, chunk=3, widths=(8, 16), step_size=8, diffusion_steps=20, ddim_steps=4)
PPO = {"epochs": 1, "minibatches": 1, "clip": 0.01, "target_kl": None}


def _dppo(
    ppo: dict[str, Any] | None = None, gamma: float = 0.9, policy: DiffusionConfig = SMALL, **changes: Any
) -> DPPO:
    given: dict[str, Any] = {"tuned_steps": 3, "critic_rounds": 0, "clip_smallest": 0.001} | changes
    config = DPPOConfig(**given)
    denoising = Denoising(DiffusionPolicy(policy, 3, 2).tunable(config.tuned_steps), 3, config)
    critic = Critics(3, 0, NetConfig(width=16, depth=2, critics=1, head_gain=1.0))
    sac = SACConfig(gamma=gamma, lr=1e-3)
    return DPPO(denoising, critic, sac, PPOConfig(**(PPO | (ppo or {}))), config)


def _round(dppo: DPPO, t: int = 4, b: int = 5) -> tuple[Transition, Tensor]:
    """Decisions (T, B) of the policy as it is, with random rewards and ends."""
    chains, seen = Chains(t, dppo.denoising), torch.randn(t + 1, b, 6)
    for k in range(t):
        raw, _ = dppo.denoising(seen[k], dppo.denoising.fresh_noise(seen[k]))
        terminated, zero = (torch.rand(b) < 0.2).float(), torch.zeros_like(raw)
        done = (terminated > 0) | (torch.rand(b) < 0.2)
        chains.push(Transition(seen[k], raw, zero, torch.rand(b), terminated, terminated, seen[k + 1], zero), done)
    assert chains.full
    return chains.take()


def _same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _tuned(dppo: DPPO) -> list[Any]:
    return [p for p in dppo.actor.parameters() if p.requires_grad]


def _copy(module: Any) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_chains_are_kept_in_the_place_of_actions() -> None:
    dppo = _dppo()
    t, done = _round(dppo)
    assert t.raw.shape == (4, 5, 4, 8, 2)
    assert torch.equal(t.raw[-1], dppo.denoising.chain)
    chains = Chains(4, dppo.denoising)
    for k in range(3):
        chains.push(Transition(*(x[k] for x in t)), done[k] > 0)
    again = Chains(4, dppo.denoising)
    again.restore(chains.state())
    assert not again.full
    assert _same(again.take()[0], chains.take()[0])


def test_a_loss_is_the_direct_sum_over_decisions_and_steps() -> None:
    """Ratios moved far enough that both clips and the discount of every step count."""
    dppo = _dppo(gamma_denoise=0.7)
    t, done = _round(dppo)
    flat = Transition(*(x.flatten(0, 1) for x in t))
    x, following, which = dppo.denoising.pairs(flat.raw)
    seen = flat.obs.repeat_interleave(3, 0)
    with torch.no_grad():
        old = dppo.denoising.log_density(seen, x, following, which)
        for p in _tuned(dppo):
            p.add_(1e-3 * torch.randn_like(p))
        new = dppo.denoising.log_density(seen, x, following, which)
    advantage = dppo._advantages(flat, t, done)[0].repeat_interleave(3)
    normal = (advantage - advantage.mean()) / advantage.std(correction=0)
    total, clips = 0.0, [0.001, 0.001 + 0.009 * math.expm1(1.5) / math.expm1(3), 0.01]
    clipped = 0
    for a, one, two, k in zip(normal.tolist(), new.tolist(), old.tolist(), which.tolist(), strict=True):
        ratio, discounted = math.exp(one - two), a * 0.7 ** (2 - k)
        inside = min(max(ratio, 1 - clips[k]), 1 + clips[k])
        clipped += inside != ratio
        total -= min(ratio * discounted, inside * discounted) / 60
    assert 10 < clipped < 50
    taken: list[Tensor] = []
    dppo.actor_optimizer.down = lambda loss: taken.append(loss.detach())  # pyright: ignore
    facts = dppo._descend_actor(new - old, advantage, which)
    assert taken[0].item() == pytest.approx(total, abs=1e-5)
    assert facts["ppo/clipped"].item() == pytest.approx(clipped / 60)


def test_a_first_step_is_the_policy_gradient_of_the_denoising_steps() -> None:
    dppo = _dppo(gamma_denoise=0.7)
    t, done = _round(dppo)
    flat = Transition(*(x.flatten(0, 1) for x in t))
    scale = RewardScale(0.99, 10.0)
    with torch.no_grad():
        value, ahead = dppo.values(flat.obs[:, -3:]).view(4, 5), dppo.values(flat.next_obs[:, -3:]).view(4, 5)
    found = advantages(scale(t.reward, done), value, ahead, t.terminated, done, 0.9, 0.95)
    x, following, which = dppo.denoising.pairs(flat.raw)
    density = dppo.denoising.log_density(flat.obs.repeat_interleave(3, 0), x, following, which).view(20, 3)
    normal = (found - found.mean()) / found.std(correction=0)
    loss = -(density * normal.flatten()[:, None] * torch.tensor([0.49, 0.7, 1.0])).mean()
    params = _tuned(dppo)
    expected, taken = torch.autograd.grad(loss, params), list[Tensor]()
    dppo.actor_optimizer.down = lambda loss: taken.extend(torch.autograd.grad(loss, params))  # pyright: ignore
    before = _copy(dppo.critic)
    dppo.learn(t, done)
    assert max(x.abs().max().item() for x in expected) > 1e-3
    for one, two in zip(taken, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    assert not _same(before, dppo.critic.parameters())


def test_the_value_is_fitted_to_the_returns() -> None:
    dppo = _dppo({"gae_lambda": 1.0}, critic_lr=1e-2, critic_rounds=1)
    t, done = _round(dppo)
    _, goal = dppo._advantages(Transition(*(x.flatten(0, 1) for x in t)), t, done)
    obs = t.obs.flatten(0, 1)[:, -3:]
    errors = [dppo._descend_critic(obs, goal)["loss/critic"] for _ in range(300)]
    assert errors[-1] < 0.02 * errors[0]


def test_in_the_first_rounds_the_value_learns_alone() -> None:
    dppo = _dppo(critic_rounds=2)
    moved = []
    for _ in range(3):
        before, values = _copy(dppo.actor), _copy(dppo.critic)
        dppo.learn(*_round(dppo))
        moved.append(not _same(before, dppo.actor.parameters()))
        assert not _same(values, dppo.critic.parameters())
    assert moved == [False, False, True]


def test_the_policy_rests_where_nothing_was_rewarded() -> None:
    """Also once it has moved: a step without a gradient would go on as the last ones."""
    dppo = _dppo()
    dppo.learn(*_round(dppo))
    before, values = _copy(dppo.actor), _copy(dppo.critic)
    t, done = _round(dppo)
    dppo.learn(t._replace(reward=torch.zeros_like(t.reward), terminated=torch.zeros_like(t.terminated)), done)
    assert _same(before, dppo.actor.parameters())
    assert not _same(values, dppo.critic.parameters())


def test_the_frozen_copy_stays_as_it_was() -> None:
    dppo = _dppo()
    first, last = (dppo.denoising.policy.network(k) for k in (0, 1))
    before = _copy(first)
    dppo.learn(*_round(dppo))
    assert _same(before, first.parameters())
    assert not _same(before, last.parameters())


def test_a_round_ends_where_the_policy_has_moved_far_enough() -> None:
    made = []
    for target in (None, 1e-9):
        torch.manual_seed(0)
        dppo = _dppo({"epochs": 5, "minibatches": 3, "target_kl": target})
        dppo.learn(*_round(dppo))
        made.append(dppo.updates)
    assert made[0] == 15
    assert made[1] < 4  # the first of all moves from ratio 1


def test_what_is_likelier_after_a_round_is_what_was_better() -> None:
    dppo = _dppo({"epochs": 20, "clip": 0.1}, clip_smallest=0.1)
    t, done = _round(dppo, 8, 20)
    flat = Transition(*(x.flatten(0, 1) for x in t))
    advantage, _ = dppo._advantages(flat, t, done)
    dppo.scale = RewardScale(0.99, 10.0)

    def density() -> Tensor:
        with torch.no_grad():
            pairs = dppo.denoising.pairs(flat.raw)
            return dppo.denoising.log_density(flat.obs.repeat_interleave(3, 0), *pairs).view(160, 3).mean(1)

    before = density()
    dppo.learn(t, done)
    assert np.corrcoef((density() - before).numpy(), advantage.numpy())[0, 1] > 0.5


@pytest.mark.parametrize("counted", [True, False])
def test_rounds_move_actions_where_they_are_rewarded_by_the_densities_of_denoising_steps(counted: bool) -> None:
    """The reward is the mean number executed: by 0.66 to 1.05 (seeds 0 to 4) it rises, by nothing without densities."""
    ppo, policy = {"epochs": 4, "minibatches": 1, "clip": 0.1}, replace(SMALL, network="mlp", mlp_width=16)
    dppo = _dppo(ppo, policy=policy, clip_smallest=0.1, sampling_std=0.2, density_std=0.2)
    dppo.actor_optimizer.param_groups[0]["lr"] = 1e-2
    density = dppo.denoising.log_density
    dppo.denoising.log_density = lambda *given: density(*given) * counted
    seen, noise = torch.randn(64, 6), dppo.denoising.fresh_noise(torch.zeros(64, 6))
    before = dppo.denoising(seen, noise)[0].mean()
    for _ in range(8):
        chains, obs, ones = Chains(1, dppo.denoising), torch.randn(64, 6), torch.ones(64)
        raw, _ = dppo.denoising(obs, dppo.denoising.fresh_noise(obs))
        chains.push(Transition(obs, raw, raw, raw.mean((1, 2)), ones, ones, obs, raw), ones > 0)
        dppo.learn(*chains.take())
    gain = dppo.denoising(seen, noise)[0].mean() - before
    assert (gain > 0.4) if counted else (gain == 0)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_rewards_are_divided_by_the_deviation_of_the_running_return(gamma: float) -> None:
    scale, running, returns = RewardScale(gamma, 10.0), [0.0] * 3, list[float]()
    reward = done = torch.zeros(0)
    for _ in range(4):  # rounds of 50 decisions: episodes go on from one to the next
        reward, done = torch.rand(50, 3) * 4, (torch.rand(50, 3) < 0.1).float()
        scaled = scale(reward, done)
        for t in range(50):
            for row in range(3):
                running[row] = reward[t, row].item() + gamma * running[row]
                returns.append(running[row])
                running[row] *= 1 - done[t, row].item()
        torch.testing.assert_close(scaled, reward / float(np.std(returns)), rtol=1e-3, atol=1e-4)
    again = RewardScale(gamma, 10.0)
    again.load_state_dict(scale.state_dict())
    assert torch.equal(again(reward, done), scale(reward, done))


def test_scaled_rewards_have_a_limit() -> None:
    scale = RewardScale(0.0, 2.0)
    reward = torch.zeros(100, 1)
    reward[0], reward[1] = 1.0, -1.0
    assert scale(reward, torch.zeros(100, 1))[:3].flatten().tolist() == [2.0, -2.0, 0.0]


@pytest.mark.parametrize(
    "changes", [{"gamma_denoise": 0.0}, {"scale_gamma": 1.5}, {"clip_smallest": 0.0}, {"critic_rounds": -1}]
)
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        DPPOConfig(**changes)
