"""PPO of a Gaussian around a policy: densities against torch.distributions, and what has gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.base_policies.mlp import MLPConfig, MLPPolicy
from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.gaussian import GaussianActor, GaussianPPO
from policy_decorator.rl.nets import Critics, NetConfig
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.types import Transition


def _mlp() -> MLPPolicy:
    return MLPPolicy(MLPConfig(width=16, depth=1, context=2), 3, 2)


def _bet() -> BehaviorTransformer:
    bet = BehaviorTransformer(BeTConfig(context=2, clusters=3, layers=1, heads=2, width=8, gpt_output=8), 3, 2)
    bet.centres.copy_(torch.rand(3, 2) * 2 - 1)
    return bet


def _ppo(policy: Any, **changes: Any) -> GaussianPPO:
    actor = GaussianActor(policy.deterministic(), (1, 2), 3, 0.3)
    value = Critics(3, 0, NetConfig(width=16, depth=2, critics=1))
    ppo = PPOConfig(epochs=2, minibatches=2, target_kl=None)
    return GaussianPPO(actor, value, Takeover(), SACConfig(gamma=0.9, lr=1e-3), ppo, **changes)


def _decisions(t: int = 8, b: int = 4) -> tuple[Transition, Tensor]:
    seen, raw, one = torch.randn(t + 1, b, 6), torch.randn(t, b, 1, 2), torch.ones(t, b)
    done = (torch.rand(t, b) < 0.2).float()
    return Transition(seen[:-1], raw, torch.zeros_like(raw), torch.rand(t, b), done, one, seen[1:], raw), done


@pytest.mark.parametrize("policy", [_mlp, _bet])
def test_its_mean_is_what_the_policy_does(policy: Any) -> None:
    """Clipped, as `act` is; a base with dropout is tuned and saved without."""
    ppo, window = _ppo(policy()), torch.randn(20, 2, 3)
    mean = ppo.actor.mode(window.flatten(1))
    torch.testing.assert_close(mean.clamp(-1, 1), ppo.actor.act(window))
    torch.testing.assert_close(ppo.actor.merged().act(window), ppo.actor.act(window))  # pyright: ignore
    assert ppo.actor.merged() is not ppo.actor.policy


def test_a_bin_is_the_likeliest_and_its_offset_is_added() -> None:
    bet, window = _bet(), torch.randn(20, 2, 3)
    logits, offsets = (x[:, -1] for x in bet.logits_and_offsets(window))
    for row, k in enumerate(logits.argmax(-1).tolist()):
        torch.testing.assert_close(
            bet.deterministic().means(window, newest_only=True)[row, 0], bet.centres[k] + offsets[row, k]
        )


@pytest.mark.parametrize("policy", [_mlp, _bet])
def test_densities_are_those_of_torch_distributions(policy: Any) -> None:
    ppo, seen, raw = _ppo(policy()), torch.randn(20, 6), torch.randn(20, 1, 2)
    normal = Normal(ppo.actor.mode(seen)[:, 0], 0.3)
    found, entropy = ppo.log_density(seen, raw)
    torch.testing.assert_close(found, normal.log_prob(raw[:, 0]).sum(-1))
    torch.testing.assert_close(entropy, normal.entropy().sum(-1))
    noise = torch.randn(20, 2)
    sample, density = ppo.actor(seen, noise)
    torch.testing.assert_close(sample[:, 0], normal.mean + 0.3 * noise)
    torch.testing.assert_close(density, normal.log_prob(sample[:, 0]).sum(-1))


@pytest.mark.parametrize("policy", [_mlp, _bet])
def test_every_parameter_of_the_policy_learns_and_centres_stay(policy: Any) -> None:
    base = policy()
    ppo = _ppo(base)
    before = {name: x.clone() for name, x in ppo.actor.state_dict().items()}
    ppo.learn(*_decisions())
    moved = {name for name, x in ppo.actor.state_dict().items() if not torch.equal(x, before[name])}
    buffers = {name for name, _ in ppo.actor.named_buffers()}
    assert moved == set(before) - buffers
    assert all(torch.equal(x, before[f"policy.{name}"]) for name, x in base.state_dict().items())


def test_in_the_first_rounds_the_value_learns_alone() -> None:
    ppo, moved = _ppo(_mlp(), critic_rounds=2), []
    for _ in range(3):
        before = [[p.clone() for p in net.parameters()] for net in (ppo.actor, ppo.critic)]
        ppo.learn(*_decisions())
        pairs = zip((ppo.actor, ppo.critic), before, strict=True)
        moved.append([any(not torch.equal(*x) for x in zip(net.parameters(), old, strict=True)) for net, old in pairs])
    assert moved == [[False, True], [False, True], [True, True]]


def test_the_value_sees_the_newest_frame_only() -> None:
    ppo, seen = _ppo(_mlp()), torch.randn(5, 6)
    other = torch.cat([torch.randn(5, 3), seen[:, 3:]], dim=1)
    assert torch.equal(ppo.values(seen), ppo.values(other))
    assert not torch.equal(ppo.values(seen), ppo.values(other + 1))
