"""The loop's rhythm, what it never does, and that it learns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from policy_decorator.decorator import DecoratedPolicy, ProgressiveExploration, Residual
from policy_decorator.envs.toy import TASKS, BiasedController, Reach
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.evaluation import run_episodes
from policy_decorator.methods import METHODS, Problem, Run
from policy_decorator.methods.policy_decorator import Config
from policy_decorator.rl.monitor import Monitor
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.replay import NStep, Replay
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rollout import Collector
from policy_decorator.snapshot import capture
from policy_decorator.train import TrainConfig, train
from policy_decorator.types import BasePolicy, Step, Transition, VectorEnv


def _nothing(*_: Any) -> None: ...


@dataclass
class Idle:
    """A learner and an explorer that count."""

    cfg: SACConfig = field(default_factory=lambda: SACConfig(batch_size=4))
    updates: int = 0
    proposed: list[int] = field(default_factory=list)
    step: Callable[[], int] = lambda: 0
    updated_at: list[int] = field(default_factory=list)

    def __call__(self, seen: Tensor) -> Tensor:  # as the explorer
        self.proposed.append(self.step())
        return torch.zeros(len(seen), 1, 2)

    def update(self, b: Transition) -> dict[str, Tensor]:
        assert len(b.reward) == 4
        self.updates += 1
        self.updated_at.append(self.step())
        return {"updates": torch.tensor(self.updates)}


def _idle_run(n: int = 4, n_step: int = 1) -> tuple[Run, Idle]:
    base, residual, replay = BiasedController(), Residual(0.1), Replay(10_000)
    collector = Collector(Reach(n), base, residual, ProgressiveExploration(0))
    learner = Idle()
    learner.step = lambda: collector.step
    policy: Any = base
    both: Any = learner
    return Run(collector, both, both, replay, NStep(n_step, 0.9), replay, Monitor(), policy), learner


# ---- rhythm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cfg",
    [
        TrainConfig(total_steps=400, warmup_steps=100, steps_per_round=16, updates_per_step=0.25),
        TrainConfig(total_steps=203, warmup_steps=64, steps_per_round=7, updates_per_step=1.5),
        TrainConfig(total_steps=100, warmup_steps=0, steps_per_round=64, updates_per_step=0.1),
        TrainConfig(total_steps=60, warmup_steps=1000, steps_per_round=16, updates_per_step=1.0),
    ],
)
def test_steps_and_updates_are_those_of_the_budget(cfg: TrainConfig) -> None:
    run, learner = _idle_run()
    train(cfg, run, _nothing, _nothing, _nothing)
    assert cfg.total_steps <= run.collector.step < cfg.total_steps + 4
    assert learner.updates == int(max(run.collector.step - cfg.warmup_steps, 0) * cfg.updates_per_step)
    assert all(step > cfg.warmup_steps for step in learner.updated_at)
    # a round that begins within the warm-up stays random to its end
    begins = range(0, run.collector.step, -(-cfg.steps_per_round // 4) * 4)
    learning = next((b for b in begins if b >= cfg.warmup_steps), None)
    assert learner.proposed == ([] if learning is None else list(range(learning, run.collector.step, 4)))
    assert run.replay.size == run.collector.decisions


@pytest.mark.parametrize("ratio", [1.0, 2.5, 10.0])
def test_many_updates_per_step_come_steadily_and_none_is_owed_for_the_warm_up(ratio: float) -> None:
    run, learner = _idle_run()
    cfg = TrainConfig(total_steps=304, warmup_steps=104, steps_per_round=16, updates_per_step=ratio)
    train(cfg, run, _nothing, _nothing, _nothing)
    rounds = [learner.updated_at.count(step) for step in range(112, 305, 16)]
    assert rounds == [int(8 * ratio)] + [int(16 * ratio)] * 12  # the first one lies half within the warm-up
    assert learner.updates == sum(rounds) == 200 * ratio


def test_small_batches_and_many_updates_train(small: Config, steady: nn.Module) -> None:
    cfg = replace(small, sac=replace(small.sac, batch_size=4))
    run = _real_run(cfg, steady)
    train(TrainConfig(total_steps=200, warmup_steps=100, updates_per_step=5.0), run, _nothing, _nothing, _nothing)
    assert run.learner.updates == 500
    assert all(p.isfinite().all() for p in (*run.learner.actor.parameters(), *run.learner.critic.parameters()))


def test_what_the_base_did_alone_stays_in_the_replay_and_is_learned_from(small: Config, steady: nn.Module) -> None:
    """Warm-up transitions as an anchor of the values (DAWN, arXiv:2602.10539)."""
    run = _real_run(replace(small, base_only_warmup=True, n_step=1, horizon=0), steady)
    rhythm = TrainConfig(total_steps=400, warmup_steps=100, steps_per_round=16)
    seen: list[Tensor] = []
    update = run.learner.update
    run.learner.update = lambda b: (seen.append(b.raw.flatten(1).any(dim=1)), update(b))[1]  # pyright: ignore
    train(rhythm, run, _nothing, _nothing, _nothing)
    assert run.replay.data is not None
    assert run.replay.size == run.collector.decisions == 400
    spoke = run.replay.data.raw.flatten(1).any(dim=1)
    assert spoke[:400].tolist() == [False] * 100 + [True] * 300
    assert not any(rows.all() for rows in seen)  # some in every batch, to the last


def test_logs_evaluations_and_checkpoints_come_when_they_are_due_and_at_the_end() -> None:
    run, _ = _idle_run()
    at: dict[str, list[int]] = {"log": [], "evaluate": [], "save": []}
    order: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: (at[name].append(run.collector.step), order.append(name))[0]  # pyright: ignore

    cfg = TrainConfig(total_steps=230, warmup_steps=0, steps_per_round=20, log_every=50, eval_every=100, save_every=70)
    train(cfg, run, note("log"), note("evaluate"), note("save"))
    assert at == {"log": [60, 100, 160, 200], "evaluate": [100, 200, 232], "save": [80, 140, 220, 232]}
    assert order[-2:] == ["evaluate", "save"]  # the last checkpoint knows the last evaluation


def test_a_budget_that_is_done_trains_no_more() -> None:
    run, learner = _idle_run()
    run.collector.step = 100
    train(TrainConfig(total_steps=100, warmup_steps=0), run, *[pytest.fail] * 3)
    assert (run.collector.decisions, learner.updates) == (0, 0)


def test_what_is_logged_is_of_the_last_update() -> None:
    run, learner = _idle_run()
    logged: list[tuple[int, int]] = []
    cfg = TrainConfig(total_steps=200, warmup_steps=48, steps_per_round=16, log_every=16)
    train(cfg, run, lambda m: logged.append((learner.updates, int(m.get("updates", 0)))), _nothing, _nothing)  # pyright: ignore
    assert logged[0] == (0, 0)
    assert logged[-1][0] > 30
    assert all(done == said for done, said in logged)


def test_without_warm_up_updates_wait_for_the_first_complete_return() -> None:
    run, learner = _idle_run(n=4, n_step=3)
    cfg = TrainConfig(total_steps=80, warmup_steps=0, steps_per_round=4, updates_per_step=1.0)
    train(cfg, run, _nothing, _nothing, _nothing)
    assert learner.updates == 80


def test_warm_up_is_uniform_where_the_gate_is_open() -> None:
    run, learner = _idle_run(n=10)
    train(TrainConfig(total_steps=3000, warmup_steps=3000), run, _nothing, _nothing, _nothing)
    assert run.replay.data is not None
    raw = run.replay.data.raw[: run.replay.size].flatten()
    assert learner.proposed == []
    assert stats.kstest(raw.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3  # pyright: ignore


# ---- the base is frozen and left alone ------------------------------------------------------------------------


class Guarded:
    """A base policy that may not be asked while `busy`."""

    context = 1

    def __init__(self, base: Any) -> None:
        self.base, self.busy, self.rows = base, False, 0

    def act(self, window: Tensor) -> Tensor:
        assert not self.busy, "the base was asked during an update"
        self.rows += len(window)
        return self.base.act(window)


def _real_run(cfg: Config, base: Any, n: int = 4) -> Run:
    torch.manual_seed(1)
    return METHODS["policy-decorator"].build(cfg, Problem(Reach(n), base, 4, (1, 2), 5000, 100))


@pytest.mark.parametrize("n_step", [1, 3])
def test_no_update_asks_the_base(
    n_step: int, small: Config, steady: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Guarded(steady)
    run = _real_run(replace(small, n_step=n_step), base)
    update = run.learner.update

    def guarded(b: Transition) -> dict[str, Tensor]:
        base.busy = True
        try:
            return update(b)
        finally:
            base.busy = False

    monkeypatch.setattr(run.learner, "update", guarded)
    train(TrainConfig(total_steps=400, warmup_steps=100), run, _nothing, _nothing, _nothing)
    assert run.learner.updates == 75
    c = run.collector
    assert base.rows == c.base_queries
    assert c.base_queries - 4 - c.decisions < c.episodes  # only time-outs ask twice
    assert all(p.grad is None for p in steady.parameters())


def test_evaluation_does_not_touch_training(small: Config, noisy: nn.Module) -> None:
    states = []
    for every in (50, 10_000):
        run, env = _real_run(small, noisy), Reach(5)
        cfg = TrainConfig(total_steps=300, warmup_steps=100, steps_per_round=16, eval_every=every)
        train(cfg, run, _nothing, lambda run=run, env=env: run_episodes(env, run.policy, 7, 0) and None, _nothing)
        states.append(capture(run))
    one, two = states
    assert torch.equal(one["rng"], two["rng"])
    for name in ("actor", "critic", "target"):
        assert all(torch.equal(x, two["learner"][name][key]) for key, x in one["learner"][name].items())


@pytest.mark.parametrize("ends", [False, True])
def test_no_return_reaches_beyond_a_success_that_ends_the_value(ends: bool, small: Config) -> None:
    env = SimulatorVector(replace(TASKS["toy/reach-gym"], ends_at_success=False), 4)
    cfg = replace(small, reward_shift=0.0, n_step=3, success_ends_value=ends, base_only_warmup=True)
    run = METHODS["policy-decorator"].build(cfg, Problem(env, BiasedController(0.0), 4, (1, 2), 5000, 100))
    train(TrainConfig(total_steps=200, warmup_steps=100), run, _nothing, _nothing, _nothing)
    kept: Any = run.replay.data
    succeeded = kept.reward[: run.replay.size] > 0
    assert succeeded.sum() > 40
    assert (kept.reward.max() <= 1) == ends
    assert torch.equal(kept.terminated[: run.replay.size] == 1, succeeded & ends)


# ---- it learns ------------------------------------------------------------------------------------------------


class Match:
    """One decision per episode: the action must fall near a bent function of the observation."""

    def __init__(self, n: int) -> None:
        self.n = n

    def reset(self, seed: int, episodes: int | None = None) -> Tensor:
        self.seeds, self.next_seed = seed + torch.arange(self.n), seed + self.n
        return self._window()

    def step(self, action: Tensor) -> Step:
        window, episode = self._window(), self.seeds
        success = (action[:, 0] - wanted(window[:, -1])).norm(dim=1) < 0.2
        self.seeds = self.next_seed + torch.arange(self.n)
        self.next_seed += self.n
        done = torch.ones(self.n, dtype=torch.bool)
        return Step(self._window(), window, success, done, done, torch.ones(self.n, dtype=torch.long), episode)

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def restore(self, state: dict[str, Tensor]) -> None:
        raise NotImplementedError

    def close(self) -> None: ...

    def _window(self) -> Tensor:
        phase = self.seeds.double()[:, None] * torch.tensor([0.618034, 0.754878], dtype=torch.float64)
        return (2 * (phase % 1) - 1).float()[:, None]  # (B, 1, 2) in [-1, 1]


def wanted(obs: Tensor) -> Tensor:
    return torch.stack([0.6 * obs[:, 0] * obs[:, 1] + 0.2, 0.6 * (obs[:, 0].abs() - 0.5) + 0.25], dim=1)


class Zero:
    context = 1

    def act(self, window: Tensor) -> Tensor:
        return torch.zeros(len(window), 1, 2)


def _learn(
    make: Callable[[int], VectorEnv], base: BasePolicy, cfg: Config, rhythm: TrainConfig, size: int
) -> tuple[float, float]:
    """Success of the base and of what was learned, on 200 episodes that were not trained on."""
    torch.manual_seed(0)
    problem = Problem(make(16), base, size, (1, 2), rhythm.total_steps + 16, rhythm.warmup_steps)
    run = METHODS["policy-decorator"].build(cfg, problem)
    train(rhythm, run, _nothing, _nothing, _nothing)
    assert isinstance(run.policy, DecoratedPolicy)
    before, after = (run_episodes(make(50), policy, 200, 1_000_000) for policy in (base, run.policy))
    return before.rate, after.rate


QUICK = Config(
    bound=0.5,
    horizon=2000,
    base_only_warmup=True,
    n_step=3,
    nets=NetConfig(width=64, depth=2, critic_layer_norm=True, log_std_min=-5),
    sac=SACConfig(gamma=0.95, lr=1e-3, batch_size=128, temperature=0.02),
)


def test_it_learns_to_match_from_sparse_success() -> None:
    cfg = replace(QUICK, bound=0.8, horizon=0, n_step=1, base_only_warmup=False)
    rhythm = TrainConfig(total_steps=5000, warmup_steps=1000, updates_per_step=0.3)
    base, learned = _learn(Match, Zero(), cfg, rhythm, 2)
    assert base < 0.3
    assert learned >= 0.9


@pytest.mark.parametrize(
    ("changes", "learns"),
    [
        ({"bound": 0.5}, True),
        ({"bound": 0.0}, False),
        ({"learner": "td3"}, True),
        ({"select_by_value": "acting+target", "select_samples": 2}, True),
    ],
)
def test_it_corrects_a_controller_that_nearly_works(changes: dict[str, Any], learns: bool) -> None:
    rhythm = TrainConfig(total_steps=4000, warmup_steps=1000)
    base, learned = _learn(Reach, BiasedController(), replace(QUICK, **changes), rhythm, 4)
    assert 0.3 < base < 0.6
    if learns:
        assert learned >= 0.95
    else:
        assert learned == base  # the very same episodes, the very same noise
