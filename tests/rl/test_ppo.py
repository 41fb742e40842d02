"""PPO: advantages against a direct sum, its loss against formulas, and what it learns."""

import math
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policy_decorator.decorator import Residual
from policy_decorator.envs.toy import Reach
from policy_decorator.errors import UserError
from policy_decorator.methods import METHODS, Problem, Run
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.ppo import PPO, PPOConfig, Rollouts, advantages
from policy_decorator.rl.sac import SACConfig
from policy_decorator.train import TrainConfig, train
from policy_decorator.types import Transition

NETS = NetConfig(width=32, depth=2, critics=1, initial_std=0.5, log_std_min=-5.0)


def _ppo(obs: int = 3, action: int = 2, gamma: float = 0.9, lr: float = 3e-4, **changes: Any) -> PPO:
    actor, value = TanhGaussian(obs, (1, action), NETS), Critics(obs, 0, NETS)
    return PPO(actor, value, Residual(1.0), SACConfig(gamma=gamma, lr=lr, max_grad_norm=0.5), PPOConfig(**changes))


def _decisions(t: int, b: int, obs: int = 3, action: int = 2) -> tuple[Transition, Tensor]:
    shape, raw = (t, b), torch.rand(t, b, 1, action) * 1.8 - 0.9
    one, base = torch.ones(shape), torch.zeros(t, b, 1, action)
    o = torch.randn(t + 1, b, obs)
    terminated = (torch.rand(shape) < 0.2).float()
    done = torch.maximum(terminated, (torch.rand(shape) < 0.2).float())
    return Transition(o[:-1], raw, base, torch.randn(shape), terminated, one, o[1:], base), done


def _summed(
    reward: Tensor, value: Tensor, following: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Advantages (T, B), each as a sum of its own: an end of whatever kind breaks it off, a termination is worth 0."""
    found = torch.zeros_like(value)
    steps, rows = value.shape
    for row in range(rows):
        for start in range(steps):
            weight = 1.0
            for k in range(start, steps):
                ahead = 0.0 if terminated[k, row] else following[k, row].item()
                found[start, row] += weight * (reward[k, row].item() + gamma * ahead - value[k, row].item())
                if done[k, row]:
                    break
                weight *= gamma * lam
    return found


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_advantages_are_a_direct_sum(lam: float) -> None:
    gamma, t, b = 0.9, 9, 4
    (reward, value, following), done = torch.randn(3, t, b), (torch.rand(t, b) < 0.3).float()
    terminated = done * (torch.rand(t, b) < 0.5)
    given = reward, value, following, terminated, done, gamma, lam
    torch.testing.assert_close(advantages(*given), _summed(*given), rtol=0, atol=1e-5)


def test_ratios_are_those_of_tanh_gaussians() -> None:
    """torch.distributions' own, tanh included, before and after the actor has moved."""
    ppo, seen = _ppo(), torch.randn(50, 3)
    with torch.no_grad():
        raw = ppo.actor(seen)[0]

    def reference() -> Tensor:
        mean, log_std = ppo.actor.gaussian(seen)
        squash = torch.distributions.TransformedDistribution(
            torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform()
        )
        return squash.log_prob(raw.flatten(1)).sum(-1)

    before, reference_before = ppo.log_density(seen, raw)[0], reference()
    with torch.no_grad():
        for p in ppo.actor.parameters():
            p.add_(0.05 * torch.randn_like(p))
    ratio = (ppo.log_density(seen, raw)[0] - before).exp()
    torch.testing.assert_close(ratio, (reference() - reference_before).exp(), rtol=1e-3, atol=1e-4)
    assert ratio.std() > 0.1


def test_an_action_at_the_edge_is_no_infinity() -> None:
    density, _ = _ppo().log_density(torch.randn(4, 3), torch.ones(4, 1, 2))
    assert density.isfinite().all()


def test_a_first_step_is_the_policy_gradient() -> None:
    """At ratio 1 nothing is clipped: the gradient is that of -A log pi, and of the squared error of the value.

    Behind a time-out there is a value, behind a termination none.
    """
    ppo = _ppo(epochs=1, minibatches=1, target_kl=None)
    t, done = _decisions(8, 4)
    assert (done > t.terminated).any()
    seen, raw = t.obs.flatten(0, 1), t.raw.flatten(0, 1)
    with torch.no_grad():
        value, following = (ppo.critic(x.flatten(0, 1), x.new_zeros(32, 0))[0].view(8, 4) for x in (t.obs, t.next_obs))
        advantage = _summed(0.1 * t.reward, value, following, t.terminated, done, 0.9, 0.95).flatten()
        goal = advantage + value.flatten()
    normal = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    density, _ = ppo.log_density(seen, raw)
    losses = -(normal * density).mean(), ((ppo.values(seen) - goal) ** 2).mean()
    taken = list[tuple[Tensor, ...]]()
    expected = list[tuple[Tensor, ...]]()
    for loss, optimizer in zip(reversed(losses), (ppo.critic_optimizer, ppo.actor_optimizer), strict=True):
        params = optimizer.param_groups[0]["params"]
        expected.append(torch.autograd.grad(loss, params))
        optimizer.down = lambda loss, of=params: taken.append(torch.autograd.grad(loss, of))  # pyright: ignore
    ppo.learn(t, done)
    assert len(taken) == 2
    for one, two in zip(chain(*taken), chain(*expected), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_ratios_beyond_the_clip_do_not_pull() -> None:
    ppo = _ppo()
    seen, raw = torch.randn(6, 3), torch.rand(6, 1, 2) - 0.5
    now, _ = ppo.log_density(seen, raw)
    moved = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1, 0.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # zero mean and unit spread already
    taken: list[Tensor] = []
    ppo.actor_optimizer.down = lambda loss: taken.append(loss.detach())  # pyright: ignore
    ppo._descend_actor(seen, raw, (now - moved).detach(), advantage)
    gains = [
        min(math.exp(m) * a, min(max(math.exp(m), 0.8), 1.2) * a)
        for m, a in zip(moved.tolist(), advantage.tolist(), strict=True)
    ]
    assert taken[0].item() == pytest.approx(-sum(gains) / 6, abs=1e-5)


@pytest.mark.parametrize("why", ["the base acted alone", "nothing was rewarded"])
def test_the_actor_rests_and_the_value_learns_where(why: str) -> None:
    """Also once the actor has moved: a step without a gradient would go on as the last ones."""
    ppo = _ppo()
    ppo.learn(*_decisions(8, 4))
    before = [p.clone() for p in ppo.actor.parameters()], [p.clone() for p in ppo.critic.parameters()]
    t, done = _decisions(8, 4)
    zero = ("raw",) if why == "the base acted alone" else ("reward", "terminated")
    ppo.learn(t._replace(**{name: torch.zeros_like(getattr(t, name)) for name in zero}), done)
    assert all(torch.equal(p, q) for p, q in zip(before[0], ppo.actor.parameters(), strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(before[1], ppo.critic.parameters(), strict=True))


def test_the_actor_learns_from_its_own_decisions_only_and_as_often_as_there_are_some() -> None:
    """Of 32 decisions 5 were its own: one step per pass, on their advantages, normalised among themselves."""
    ppo = _ppo(epochs=2, minibatches=4, target_kl=None)
    t, done = _decisions(8, 4)
    own = torch.zeros(8, 4, dtype=torch.bool)
    own.flatten()[torch.tensor([3, 7, 8, 20, 30])] = True
    t = t._replace(raw=t.raw * own[..., None, None])
    advantage = ppo._prepare(t, done)[3].view(8, 4)[own]
    normal = (advantage - advantage.mean()) / advantage.std(correction=0)
    steps, made = list[Tensor](), ppo._descend_actor
    ppo._descend_actor = lambda *x: (steps.append(x[3]), made(*x))[1]  # pyright: ignore
    ppo.learn(t, done)
    assert ppo.updates == 8
    assert [len(x) for x in steps] == [5, 5]
    torch.testing.assert_close(steps[0].sort()[0], normal.sort()[0])


def test_a_policy_that_has_moved_far_enough_is_left_alone() -> None:
    t, done = _decisions(16, 8)
    rounds = []
    for target in (None, 1e-6):
        torch.manual_seed(0)
        ppo = _ppo(epochs=5, minibatches=2, target_kl=target)
        ppo.learn(t, done)
        rounds.append(ppo.updates)
    assert rounds == [10, 2]


def test_rollouts_keep_their_order() -> None:
    rollouts = Rollouts(3)
    for k in range(3):
        assert not rollouts.full
        t, done = _decisions(1, 2)
        rollouts.push(Transition(*(x[0] for x in t))._replace(reward=torch.full((2,), float(k))), done[0] > 0)
    again = Rollouts(3)
    again.restore(rollouts.state())
    assert again.full
    t, done = again.take()
    assert t.reward.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert (t.obs.shape, done.shape, again.decisions) == ((3, 2, 3), (3, 2), [])


# ---- learning -------------------------------------------------------------------------------------------------


def test_the_identity_environment_is_solved() -> None:
    """Reward 1 - |action - sign of the observation|, one decision per episode: nothing but a policy gradient helps."""
    torch.manual_seed(0)
    ppo = _ppo(obs=1, action=1, gamma=0.9, lr=1e-3)

    def error() -> float:
        seen = torch.linspace(-1, 1, 40)[:, None]
        return (ppo.actor.mode(seen)[:, 0, 0] - seen[:, 0].sign()).abs().mean().item()

    assert error() > 0.9
    for _ in range(60):
        obs = torch.rand(512, 1) * 2 - 1
        with torch.no_grad():
            raw = ppo.actor(obs)[0]
        reward, ones = 1 - (raw[:, 0, 0] - obs[:, 0].sign()).abs(), torch.ones(512)
        base = torch.zeros_like(raw)
        ppo.update(Transition(obs, raw, base, reward, ones, ones, obs, base))
    assert error() < 0.2


CONFIG = Config(
    bound=0.5,
    horizon=0,
    learner="ppo",
    nets=NetConfig(width=32, depth=2, log_std_min=-5.0),
    sac=SACConfig(gamma=0.95, lr=1e-3, max_grad_norm=0.5),
    ppo=PPOConfig(rollout=32, epochs=6, minibatches=4),
)


def _run(cfg: Config, base: Any, **options: Any) -> Run:
    torch.manual_seed(3)
    given = {"obs_size": 4, "chunk": (1, 2), "capacity": 1, "warmup_steps": 0} | options
    return METHODS["policy-decorator"].build(cfg, Problem(Reach(16), base, **given))


@pytest.mark.slow
@pytest.mark.parametrize(("horizon", "sees"), [(0, "obs"), (4_000, "obs+base")])
def test_a_residual_is_learned(horizon: int, sees: Any, steady: nn.Module) -> None:
    """The base reaches a quarter of the goals."""
    run = _run(replace(CONFIG, horizon=horizon, actor_sees=sees), steady)
    rhythm = TrainConfig(total_steps=30_000, warmup_steps=0)
    train(rhythm, run, lambda metrics: None, lambda: None, lambda: None)
    assert run.learner.updates > 500
    assert run.monitor.read()["train/success"] > 0.8


def test_only_its_own_actions_teach_it(steady: nn.Module) -> None:
    with pytest.raises(UserError, match="warmup-steps 0"):
        _run(CONFIG, steady, warmup_steps=100)
    assert _run(replace(CONFIG, base_only_warmup=True), steady, warmup_steps=100).learner.updates == 0
    with pytest.raises(UserError, match=r"leave out demo_share, n_step"):
        replace(CONFIG, demo_share=0.2, n_step=3)
