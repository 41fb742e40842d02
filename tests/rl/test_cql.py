"""The conservative term against a direct sum, its calibration, and the returns it is calibrated with."""

import math
from typing import Any

import pytest
import torch
from batches import (
    DA,
    DO,
    B,
    assert_gradients_are_finite_differences,
    disturb,
    episodes,
    new_batch,
    new_critics,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.cql import (
    ORIGINAL_SPREAD,
    Conservative,
    CQLConfig,
    Hindsight,
    Returning,
    endless,
    references,
    returning,
    sharing,
    spread_of,
)
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.rl.offsets import OffsetActor
from policy_decorator.rl.replay import Replay
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.types import Transition

N = 4
SAC_CONFIG = SACConfig(gamma=0.9, temperature=0.3, entropy_in_backup=False)


def _learner(
    calibrated: bool = True,
    sac: SACConfig = SAC_CONFIG,
    dtype: torch.dtype = torch.float32,
    spread: float = ORIGINAL_SPREAD,
    **cql: Any,
) -> Conservative:
    actor = TanhGaussian(DO, (1, DA), NetConfig(width=5, depth=1, head_gain=1.0, log_std_min=-3.0)).to(dtype)
    settings = CQLConfig(**{"cql_samples": N, "backup_samples": 3} | cql)
    parts, how = (actor, new_critics().to(dtype), Takeover(), DA, sac), {"calibrated": calibrated, "spread": spread}
    learner = Conservative(*parts, cql=settings, **how)
    disturb(learner.target)
    return learner


def _batch(reference: float = -2.0) -> Any:
    return Returning(*new_batch(), reference=torch.full((B,), reference))


@pytest.mark.parametrize(("calibrated", "temperature"), [(False, 1.0), (True, 1.0), (True, 0.5)])
def test_the_gap_is_a_direct_sum(calibrated: bool, temperature: float) -> None:
    learner = _learner(calibrated, cql_temperature=temperature)
    q, proposed, log_density = torch.randn(2, B), torch.randn(2, 3 * N, B), torch.randn(3 * N, B)
    reference = torch.randn(B) if calibrated else None
    gap = learner.gap(q, proposed, log_density, reference)
    for k in range(2):
        for i in range(B):
            total = 0.0
            for j in range(3 * N):
                value = proposed[k, j, i].item()
                if reference is not None and j >= N:  # uniform actions are not calibrated
                    value = max(value, reference[i].item())
                total += math.exp(value / temperature - log_density[j, i].item())
            expected = temperature * math.log(total) - q[k, i].item()
            assert gap[k, i].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_rewards_a_tenth_as_large_have_the_same_balance_at_a_tenth_of_weight_and_temperature() -> None:
    """Q / 10 has squared errors of 1 / 100; the gap at T = 1 / 10 is a tenth, and weighs a tenth."""
    original, ours = _learner(spread=ORIGINAL_SPREAD), _learner(spread=ORIGINAL_SPREAD / 10)
    q, proposed, log_density, reference = torch.randn(2, B), torch.randn(2, 3 * N, B), torch.randn(3 * N, B), None
    scaled = ours.gap_weight * ours.gap(q / 10, proposed / 10, log_density, reference)
    torch.testing.assert_close(scaled, original.gap(q, proposed, log_density, reference) / 100)


@pytest.mark.parametrize("gamma", [0.9, 0.99])
@pytest.mark.parametrize("shift", [0.0, -0.5, -1.0])
@pytest.mark.parametrize("ends", [True, False])
def test_the_spread_is_that_of_all_returns(gamma: float, shift: float, ends: bool) -> None:
    """Of success after t decisions, or never, with what follows written out."""
    after = 0 if ends else 5_000

    def value(t: int) -> float:
        rewards = [shift] * t + [1 + shift] * (1 + after)
        return sum(gamma**k * reward for k, reward in enumerate(rewards))

    values = [value(t) for t in (0, 1, 10, 5_000)]
    assert spread_of(gamma, shift, ends=ends) == pytest.approx(max(values) - min(values), rel=1e-6)


def test_the_originals_spread_on_adroit_is_that_of_its_rewards() -> None:
    """-5 at every step and 5 at the success that ends an episode: ten times those of success - 0.5."""
    assert pytest.approx(10 * spread_of(0.99, -0.5, ends=True)) == ORIGINAL_SPREAD


def test_many_proposals_measure_the_integral_of_exp_q() -> None:
    """log of the mean of exp(Q) / p over draws is log of the integral of exp(Q), whoever drew (CQL, App. F)."""
    learner, b = _learner(False, cql_samples=20_000), new_batch(1)
    learner.actor = TanhGaussian(DO, (1, DA), NetConfig(width=5, depth=1, zero_init=True, initial_std=1.0))
    q = lambda raw: (1.5 * raw[..., 0] - raw[..., 1]).flatten(1)  # noqa: E731
    raw, log_density = learner.proposals(b)
    gap = learner.gap(torch.zeros(1, 1), q(raw)[None], log_density, None)
    integral = (2 * math.sinh(1.5) / 1.5) * (2 * math.sinh(1.0))
    assert gap.item() - math.log(len(raw)) == pytest.approx(math.log(integral), abs=0.1)


def test_densities_are_of_actions_also_where_the_actor_has_those_of_offsets() -> None:
    """The mean of 1 / p over draws is the volume of what can be drawn: of tanh(u) / S, (2 / S)^n."""
    policy = BehaviorTransformer(BeTConfig(1, 1, 1, 1, 4, gpt_output=4, bounded_offset=True, action_scale=0.5), DO, DA)
    learner, b = _learner(False, cql_samples=20_000), new_batch(1)
    learner.actor = OffsetActor(policy, None, NetConfig(log_std_min=-3.0), std=1.0)
    log_density = learner.proposals(b)[1][20_000:]
    assert torch.logsumexp(-log_density, 0).item() - math.log(40_000) == pytest.approx(DA * math.log(4), abs=0.1)


def test_proposals_are_of_three_kinds_with_their_densities() -> None:
    learner, b = _learner(cql_samples=300), new_batch()
    raw, log_density = learner.proposals(b)
    assert raw.shape == (900, B, 1, DA)
    assert log_density.shape == (900, B)
    assert torch.equal(log_density[:300], torch.full((300, B), -DA * math.log(2)))
    assert raw[:300].mean(0).abs().max() < 0.15
    for part, obs in ((slice(300, 600), b.obs), (slice(600, 900), b.next_obs)):
        actor: Any = learner.actor
        mean, log_std = actor.gaussian(obs)
        u = raw[part].flatten(2).clamp(-1 + 1e-6, 1 - 1e-6).atanh()
        normal = torch.distributions.Normal(mean, log_std.exp())
        expected = (normal.log_prob(u) - torch.log1p(-(u.tanh() ** 2))).sum(-1)
        central = u.abs().amax(-1) < 4
        torch.testing.assert_close(log_density[part][central], expected[central], rtol=1e-2, atol=2e-2)


def test_without_its_term_it_is_sac() -> None:
    b, losses, learner = _batch(), [], _learner(cql_weight=0.0, backup_samples=1)
    plain = SAC(learner.actor, learner.critic, Takeover(), DA, SAC_CONFIG)
    plain.target = learner.target
    for one in (plain, learner):
        torch.manual_seed(3)
        losses.append(one.critic_loss(b))
    assert losses[0][0].item() == pytest.approx(losses[1][0].item(), rel=1e-6)
    torch.testing.assert_close(losses[0][1], losses[1][1])


def _exact(calibrated: bool) -> tuple[Conservative, Any]:
    """In float64, with references that bind for some of the policy's actions."""
    torch.manual_seed(1)
    learner = _learner(calibrated, dtype=torch.float64, cql_weight=2.5, cql_temperature=0.5)
    b = Returning(*new_batch(), reference=torch.linspace(-0.6, 0.6, B))
    return learner, Returning(*(x.double() for x in b))


@pytest.mark.parametrize("calibrated", [False, True])
def test_the_critics_loss_is_that_of_a_loop(calibrated: bool) -> None:
    """Goal, proposals, densities and gap are written out here once more."""
    learner, b = _exact(calibrated)
    torch.manual_seed(3)
    found = learner.critic_loss(b)[0].item()
    torch.manual_seed(3)
    following = torch.randn(3, B, DA)
    uniform = torch.rand(N, B, 1, DA) * 2 - 1
    drawn = [(b.obs, torch.randn(N, B, DA)), (b.next_obs, torch.randn(N, B, DA))]
    actor: Any = learner.actor

    def sampled(obs: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        mean, log_std = (x[0] for x in actor.gaussian(obs[None]))
        u = mean + log_std.exp() * noise
        density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - torch.log1p(-(u.tanh() ** 2))
        return u.tanh().view(1, 1, DA), density.sum().exp().item()

    wanted, bound = 0.0, []
    for i in range(B):
        obs, r = b.obs[i : i + 1], b.reference[i].item()
        tried = [sampled(b.next_obs[i], following[j, i])[0] for j in range(3)]
        best = max(learner.target(b.next_obs[i : i + 1], a).min().item() for a in tried)
        goal = b.reward[i].item() + 0.9 ** int(b.decisions[i]) * (1 - b.terminated[i].item()) * best
        policys = [sampled(seen[i], noise[j, i]) for seen, noise in drawn for j in range(N)]
        for k in range(2):
            total = 0.0
            for j in range(N):
                total += math.exp(learner.critic(obs, uniform[j, i][None])[k].item() / 0.5) * 2**DA
            for a, density in policys:
                q = learner.critic(obs, a)[k].item()
                bound.append(calibrated and q < r)
                total += math.exp((r if bound[-1] else q) / 0.5) / density
            q = learner.critic(obs, b.raw[i : i + 1])[k].item()
            wanted += ((q - goal) ** 2 + 2.5 * (0.5 * math.log(total) - q)) / B
    assert found == pytest.approx(wanted, rel=1e-6)
    assert (0 < sum(bound) < len(bound)) is calibrated


@pytest.mark.parametrize("calibrated", [False, True])
def test_gradients_are_those_of_finite_differences(calibrated: bool) -> None:
    learner, b = _exact(calibrated)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return learner.critic_loss(b)[0]

    assert assert_gradients_are_finite_differences(loss, learner.critic.parameters()) >= 10


def test_the_goal_is_the_best_of_several_next_actions() -> None:
    learner, b = _learner(backup_samples=5), _batch()
    torch.manual_seed(3)
    goal = learner.goal(b)
    torch.manual_seed(3)
    raw, _ = learner.actor(b.next_obs.repeat(5, 1))
    raw = raw.view(5, B, 1, DA)
    for i in range(B):
        best = max(learner.target(b.next_obs[i : i + 1], raw[j, i : i + 1]).min().item() for j in range(5))
        expected = b.reward[i].item() + (1 - b.terminated[i].item()) * 0.9 ** int(b.decisions[i]) * best
        assert goal[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("reference", "pushed"), [(1e3, False), (-1e3, True)])
def test_below_the_reference_nothing_of_the_policys_is_pushed_down(reference: float, pushed: bool) -> None:
    learner = _learner()
    proposed = torch.randn(2, 3 * N, B, requires_grad=True)
    gap = learner.gap(torch.zeros(2, B), proposed, torch.zeros(3 * N, B), torch.full((B,), reference))
    (slope,) = torch.autograd.grad(gap.sum(), proposed)
    assert bool((slope[:, N:] > 0).all()) is pushed
    assert bool((slope[:, N:] == 0).all()) is not pushed


def test_a_gap_below_the_least_has_no_gradient() -> None:
    learner = _learner(False, cql_least_gap=-5.0)
    q = torch.tensor([[0.0, 100.0]]).repeat(2, 1).requires_grad_()
    gap = learner.gap(q, torch.zeros(2, 3 * N, 2), torch.zeros(3 * N, 2), None)
    assert gap[:, 1].tolist() == [-5.0, -5.0]
    (slope,) = torch.autograd.grad(gap.sum(), q)
    assert slope[0].tolist() == [-1.0, 0.0]


def test_nothing_of_the_critics_loss_reaches_the_policy() -> None:
    learner = _learner()
    loss, _ = learner.critic_loss(_batch())
    grads = torch.autograd.grad(loss, list(learner.actor.parameters()), allow_unused=True)
    assert all(g is None for g in grads)


def test_sac_goes_on_with_what_was_learned_before() -> None:
    before = _learner()
    after = SAC(before.actor, before.critic, Takeover(), DA, SAC_CONFIG)
    sharing(after, before)
    before.update(_batch())
    assert after.updates == 0
    assert after.temperature == before.temperature != 0.3
    moments = after.critic_opt.state[next(iter(after.critic.parameters()))]["step"]
    assert moments.item() == 1
    after.update(new_batch())
    assert moments.item() == 2
    assert after.target is before.target


# ---- returns --------------------------------------------------------------------------------------------------


some = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=5)


@given(some=some, shift=st.sampled_from([-1.0, -0.5]))
def test_references_are_direct_sums(some: list[tuple[int, bool]], shift: float) -> None:
    d = episodes([length for length, _ in some], [solved for _, solved in some])
    found, row = references(d, 0.9, shift).tolist(), 0
    for length, solved in some:
        for k in range(length):
            rewards = [shift] * (length - k - 1) + [shift + solved]
            expected = sum(0.9**j * r for j, r in enumerate(rewards)) if solved else shift / (1 - 0.9)
            assert found[row + k] == pytest.approx(expected, rel=1e-4)
        row += length


def test_a_goal_that_ends_no_episode_is_paid_for_ever() -> None:
    d = episodes([3], [True], ends_at_success=False)
    assert references(d, 0.5, 0.0).tolist() == pytest.approx([0.5, 1.0, 2.0])


@pytest.mark.parametrize("n_step", [1, 3])
def test_every_transition_has_the_reference_of_its_own_row(n_step: int) -> None:
    d = episodes([4, 3, 5], [True, False, True])
    t = returning(d, n_step=n_step, gamma=0.9, reward_shift=-1.0)
    expected = references(d, 0.9, -1.0)
    assert t.reference.tolist() == [expected[int(name)].item() for name in t.obs[:, 0]]
    assert len(t.reference) == (11 if n_step == 1 else 9)


@given(seed=st.integers(0, 10_000), envs=st.integers(1, 3), steps=st.integers(1, 12))
def test_own_decisions_come_with_the_return_of_their_episode(seed: int, envs: int, steps: int) -> None:
    g = torch.Generator().manual_seed(seed)
    intake, told, expected = Hindsight(0.9), [], {}
    running: list[list[tuple[float, float]]] = [[] for _ in range(envs)]
    for k in range(steps):
        reward = -torch.rand(envs, generator=g)
        done = torch.rand(envs, generator=g) < 0.3
        terminated = (done & (torch.rand(envs, generator=g) < 0.5)).float()
        name = torch.tensor([[100.0 * i + k] for i in range(envs)])
        zeros = torch.zeros(envs, 1, 1)
        out = intake.push(Transition(name, zeros, zeros, reward, terminated, 1 + 0 * reward, name, zeros), done)
        for i in range(envs):
            running[i].append((name[i].item(), reward[i].item()))
            if done[i]:
                value = 0.0 if terminated[i] else running[i][-1][1] / (1 - 0.9)
                for which, r in reversed(running[i]):
                    value = r + 0.9 * value
                    expected[which] = value
                running[i] = []
        if out is not None:
            told += list(zip(out.obs[:, 0].tolist(), out.reference.tolist(), strict=True))
    assert len(told) == len(dict(told))  # each once
    assert dict(told) == pytest.approx(expected, rel=1e-4)


def test_what_is_held_back_is_resumed() -> None:
    def decision(k: float, done: bool) -> tuple[Transition, Tensor]:
        return new_batch(2)._replace(reward=torch.full((2,), k)), torch.tensor([done, False])

    torch.manual_seed(0)
    one, two = Hindsight(0.9), Hindsight(0.9)
    for k in range(3):
        one.push(*decision(float(k), k == 1))
    two.restore(one.state())
    last = decision(3.0, True)
    first, second = one.push(*last), two.push(*last)
    assert first is not None
    assert second is not None
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert len(first.reward) == 2  # of the first environment since its last episode: decisions 2 and 3


def test_a_replay_keeps_references() -> None:
    replay: Any = Replay(10, Returning)  # pyright: ignore[reportArgumentType]
    replay.add(returning(episodes([4], [True]), n_step=1, gamma=0.9, reward_shift=-1.0))
    again: Any = Replay(10, Returning)  # pyright: ignore[reportArgumentType]
    again.restore(replay.state())
    for source in (replay, again):
        batch = source.sample(50)
        expected = references(episodes([4], [True]), 0.9, -1.0)
        assert torch.equal(batch.reference, expected[batch.obs[:, 0].long()])


def test_behind_a_time_out_the_last_reward_goes_on() -> None:
    value = endless(torch.tensor([-1.0, -1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), 0.75)
    assert value.tolist() == [-4.0, -1.0, 0.0]
