"""One decision: who is asked what and when, and what the transition says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.rl.replay import NStep
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rollout import Collector
from policy_decorator.stepping import returns_end
from policy_decorator.types import Step, Transition


class Scripted:
    """Rows whose episodes succeed, fail for good or time out by their seed; the observation is (seed, t).

    Episode `s` lasts 2 + s % 3 decisions and ends in success (s % 3 == 0), failure (1) or time-out (2).
    Every decision takes two environment steps.
    """

    def __init__(self, n: int) -> None:
        self.n, self.actions = n, list[Tensor]()

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.seeds, self.next_seed = seed + torch.arange(self.n), seed + self.n
        self.t = torch.zeros(self.n)
        return self._window()

    def step(self, action: Tensor) -> Step:
        self.actions.append(action.clone())
        self.t = self.t + 1
        kind, episode = self.seeds % 3, self.seeds.clone()
        done, final = self.t >= 2 + kind, self._window()
        for i in done.nonzero()[:, 0]:
            self.seeds[i], self.t[i] = self.next_seed, 0
            self.next_seed += 1
        ends = done & (kind != 2)
        return Step(self._window(), final, done & (kind == 0), ends, done, torch.full((self.n,), 2), episode)

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError

    restore: Any = state

    def close(self) -> None: ...

    def _window(self) -> Tensor:
        return torch.stack([self.seeds.float(), self.t], dim=-1)[:, None]  # (B, 1, 2)


class Tickets:
    """A base that answers every question with a new number, and remembers about which observation it was."""

    context = 1

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def act(self, window: Tensor) -> Tensor:
        first = len(self.asked)
        self.asked += [(float(s), float(t)) for s, t in window[:, -1]]
        return torch.arange(first, len(self.asked)).float()[:, None, None]  # (B, 1, 1)

    def about(self, answer: Tensor) -> list[tuple[float, float]]:
        return [self.asked[int(a)] for a in answer.flatten()]


def _half(seen: Tensor) -> Tensor:
    return torch.full((len(seen), 1, 1), 0.5)


def _collector(n: int = 5, gate: Any = None, **options: Any) -> tuple[Collector, Scripted, Tickets]:
    env, base = Scripted(n), Tickets()
    return Collector(env, base, Residual(0.2), gate or ProgressiveExploration(0), **options), env, base


def test_the_answer_stored_is_the_answer_executed_next_unless_an_episode_ended() -> None:
    collector, env, base = _collector()
    previous: Transition | None = None
    ended = torch.ones(5, dtype=torch.bool)
    seen = torch.zeros(3, dtype=torch.long)
    for _ in range(40):
        t, step = collector.decide(_half)
        torch.testing.assert_close(env.actions[-1], t.base + 0.2 * t.raw)
        assert base.about(t.base) == [tuple(o) for o in t.obs.tolist()]  # asked about this very observation
        if previous is not None:
            assert torch.equal(t.base[~ended], previous.next_base[~ended])
            timed_out = ended & (previous.terminated == 0)
            assert (t.base[timed_out] != previous.next_base[timed_out]).all()  # a fresh answer
            gone = ended & (previous.terminated == 1)  # the one answer is about the new episode
            assert torch.equal(t.base[gone], previous.next_base[gone])
        about = base.about(t.next_base)
        for i in range(5):
            seed, length = int(t.obs[i, 0]), 2 + int(t.obs[i, 0]) % 3
            assert t.next_obs[i].tolist() == [seed, t.obs[i, 1] + 1]  # never the new episode's first observation
            if not t.terminated[i]:
                assert about[i] == (seed, t.obs[i, 1] + 1)
            assert bool(step.done[i]) == (t.obs[i, 1] + 1 == length)
        previous, ended = t, step.done
        seen += torch.stack([(step.done & (step.episode % 3 == k)).sum() for k in range(3)])
    assert (seen > 5).all()  # successes, failures and time-outs all happened


def test_reward_and_termination_by_hand() -> None:
    collector, *_ = _collector(3)  # seeds 0: succeeds after 2, 1: fails after 3, 2: times out after 4
    rewards, ends = torch.empty(4, 3), torch.empty(4, 3)
    for k in range(4):
        t, _ = collector.decide(_half)
        rewards[k], ends[k] = t.reward, t.terminated
        assert t.decisions.tolist() == [1, 1, 1]
    assert rewards[:, 0].tolist()[:2] == [-1, 0]
    assert ends[:, 0].tolist()[:2] == [0, 1]
    assert rewards[:, 1].tolist()[:3] == [-1, -1, -1]
    assert ends[:, 1].tolist()[:3] == [0, 0, 1]
    assert rewards[:, 2].tolist() == [-1, -1, -1, -1]
    assert ends[:, 2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("shift", [-1.0, 0.0, -0.1])
def test_reward_shift(shift: float) -> None:
    collector, *_ = _collector(3, reward_shift=shift)
    rewards = torch.stack([collector.decide(_half)[0].reward for _ in range(2)])
    torch.testing.assert_close(rewards, torch.tensor([[shift] * 3, [1 + shift, shift, shift]]))


class Lasting(Scripted):
    """Episodes of four decisions, at the goal from the second on."""

    def step(self, action: Tensor) -> Step:
        out = super().step(action)
        at = out.final_window[:, -1, 1]
        never = torch.zeros(self.n, dtype=torch.bool)
        return out._replace(success=at >= 2, terminated=never)


@pytest.mark.parametrize(
    ("ends", "steps", "returns", "terminated"),
    [
        (False, [3, 3, 2, 1], [0 + 0.5 + 0.25, 1 + 0.5 + 0.25, 1 + 0.5, 1], [0, 0, 0, 0]),
        (True, [2, 1, 1, 1], [0 + 0.5, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_success_may_end_the_value_where_the_episode_goes_on(
    ends: bool, steps: list[int], returns: list[float], terminated: list[int]
) -> None:
    env = Lasting(1)
    env.reset = lambda seed, episodes=None: Scripted.reset(env, 2)  # of four decisions
    collector = Collector(
        env, Tickets(), Residual(0.2), ProgressiveExploration(0), reward_shift=0.0, success_ends_value=ends
    )
    intake, rows = NStep(3, 0.5), list[Transition]()
    for k in range(4):
        transition, step = collector.decide(_half)
        assert bool(step.done) == (k == 3)  # the episode itself does not care
        complete = intake.push(transition, returns_end(step, ends))
        rows += [] if complete is None else [complete]
    kept = Transition(*(torch.cat(xs) for xs in zip(*rows, strict=True)))
    in_order = kept.obs[:, 1].argsort()
    assert kept.decisions[in_order].tolist() == steps
    assert kept.reward[in_order].tolist() == returns
    assert kept.terminated[in_order].tolist() == terminated


def test_counts() -> None:
    collector, _, base = _collector(5, seed=30)
    assert len(base.asked) == collector.base_queries == 5
    timeouts = episodes = 0
    for k in range(1, 61):
        _, step = collector.decide(_half)
        timeouts += int((step.done & ~step.terminated).sum())
        episodes += int(step.done.sum())
        assert collector.decisions == 5 * k
        assert collector.step == 10 * k  # environment steps, of which this decision takes two
        assert len(base.asked) == collector.base_queries == 5 + 5 * k + timeouts
    assert timeouts > 5
    assert collector.episodes == episodes
    assert min(s for s, _ in base.asked) == 30
    assert {s for s, _ in base.asked} == set(range(30, 30 + 5 + episodes))  # every seed once, none left out


def test_the_gate_gets_the_environment_steps_and_the_age_of_each_episode() -> None:
    calls: list[tuple[int, list[int]]] = []

    def gate(step: int, episode_step: Tensor) -> Tensor:
        calls.append((step, episode_step.tolist()))
        return torch.ones(len(episode_step), dtype=torch.bool)

    collector, *_ = _collector(3, gate)
    for _ in range(5):
        collector.decide(_half)
    steps, ages = zip(*calls, strict=True)
    assert steps == (0, 6, 12, 18, 24)
    # the seeds go on 3, 4, ... in the order in which episodes end: 0 (two decisions), 1 (three), then 2 and 3 (four)
    assert list(ages) == [[0, 0, 0], [1, 1, 1], [0, 2, 2], [1, 0, 3], [0, 1, 0]]


def test_a_closed_gate_lets_the_base_act_alone_and_says_so_in_the_transition() -> None:
    def every_other(step: int, episode_step: Tensor) -> Tensor:
        return torch.arange(len(episode_step)) % 2 == 0

    collector, env, _ = _collector(4, every_other)
    for _ in range(6):
        t, _ = collector.decide(_half)
        assert torch.equal(env.actions[-1][1::2], t.base[1::2])
        assert t.raw.flatten().tolist() == [0.5, 0, 0.5, 0]


def test_the_actor_is_shown_what_the_composition_says() -> None:
    env, base, seen = Scripted(3), Tickets(), list[Tensor]()
    collector = Collector(env, base, Residual(0.2, "obs+base"), ProgressiveExploration(0))

    def propose(x: Tensor) -> Tensor:
        seen.append(x)
        return _half(x)

    t, _ = collector.decide(propose)
    assert torch.equal(seen[0], torch.cat([t.obs, t.base.flatten(1)], dim=1))


def test_a_base_that_keeps_gradients_leaves_none_in_the_transitions(steady: nn.Module) -> None:
    collector = Collector(TASKS["toy/reach"].make_native(3), steady, Residual(0.2), ProgressiveExploration(0))  # pyright: ignore
    for _ in range(3):
        t, _ = collector.decide(lambda seen: torch.zeros(len(seen), 1, 2))
        assert not any(x.requires_grad for x in t)


class Chunks:
    """(B, 1, 4) -> four actions towards the goal at once."""

    context, chunk = 1, 4

    def act(self, window: Tensor) -> Tensor:
        pos, goal = window[:, -1].chunk(2, dim=-1)
        return ((goal - pos) / 0.8).clamp(-1, 1)[:, None].repeat(1, 4, 1)


def test_with_chunks_reward_and_discount_are_per_decision_and_step_counts_environment_steps() -> None:
    task, steps = TASKS["toy/reach-gym"], list[int]()
    gate: Callable[[int, Tensor], Tensor] = lambda step, age: steps.append(step) or age >= 0  # noqa: E731
    collector = Collector(SimulatorVector(task, 3, chunk=4), Chunks(), Residual(0.1), gate)
    total = 0
    for _ in range(12):
        t, step = collector.decide(lambda seen: torch.zeros(3, 4, 2))
        assert t.raw.shape == t.base.shape == t.next_base.shape == (3, 4, 2)
        assert t.reward.tolist() == [0.0 if s else -1.0 for s in step.success.tolist()]
        assert t.decisions.tolist() == [1, 1, 1]
        assert steps[-1] == total
        total += int(step.env_steps.sum())
    assert collector.decisions == 36
    assert collector.step == total
    assert 36 < total < 144  # chunks are longer than a step and cut short by success


# ---- what the critic is then regressed on --------------------------------------------------------------------


class Constant(nn.Module):
    """Proposes the same raw action with the same log-probability."""

    def __init__(self, raw: float, log_prob: float) -> None:
        super().__init__()
        self.raw, self.log_prob = nn.Parameter(torch.tensor(raw)), log_prob

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.raw.expand(len(seen), 1, 1), torch.full((len(seen),), self.log_prob)


class Linear(nn.Module):
    """Q_k(obs, a) = k + 1/2 seed + 2 t - a; the smaller is believed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 2.0, -1.0]))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        q = torch.cat([obs, action.flatten(1)], dim=1) @ self.weight
        return torch.stack([q + 1.0, q])


def test_targets_by_hand() -> None:
    """Terminated rows do not bootstrap; timed-out rows do, from the final observation and the answer about it."""
    env, base = Scripted(3), Tickets()
    residual = Residual(0.2)
    collector = Collector(env, base, residual, ProgressiveExploration(0))
    learner = SAC(Constant(0.3, -1.5), Linear(), residual, 1, SACConfig(gamma=0.9, temperature=0.7))
    kinds = set()
    for _ in range(12):
        t, step = collector.decide(_half)
        for i in range(3):
            row = Transition(*(x[i : i + 1] for x in t))
            seed, age = (float(x) for x in t.obs[i])
            # what the base said about (seed, age + 1): for a termination this is never looked at
            said = next((k for k, about in enumerate(base.asked) if about == (seed, age + 1)), None)
            if step.terminated[i]:
                goal = float(t.reward[i])
            else:
                assert said is not None
                value = 0.5 * seed + 2 * (age + 1) - (said + 0.2 * 0.3) - 0.7 * -1.5
                goal = -1 + 0.9 * value
            q = 0.5 * seed + 2 * age - (float(t.base[i]) + 0.2 * 0.5)
            loss, answer = learner.critic_loss(row)
            torch.testing.assert_close(answer.flatten(), torch.tensor([q + 1, q]))
            torch.testing.assert_close(loss, torch.tensor((q + 1 - goal) ** 2 + (q - goal) ** 2), rtol=1e-4, atol=1e-3)
            kinds.add((bool(step.terminated[i]), bool(step.done[i]), bool(step.success[i])))
    assert kinds == {(False, False, False), (False, True, False), (True, True, False), (True, True, True)}
