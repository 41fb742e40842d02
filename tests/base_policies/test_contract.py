"""What holds for every base policy while episodes are played with it: those of `POLICIES`, and chunks in a queue."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.checkpoint import load_policy, parameter_hash, save_policy
from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.chunks import ChunkQueue, chunk_of, step_by_step
from policy_decorator.config import RefineConfig
from policy_decorator.decorator import ProgressiveExploration, Residual
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.encoders import EncoderConfig
from policy_decorator.envs import get_task
from policy_decorator.envs.images import together
from policy_decorator.envs.task import Task
from policy_decorator.envs.toy import BiasedController
from policy_decorator.envs.toy_pictures import SIZE, MisledByColour
from policy_decorator.envs.vector import make_vector
from policy_decorator.memory import AnyPolicy, has_memory, kept, session
from policy_decorator.refine import refine
from policy_decorator.rollout import Collector

TASK = get_task("toy/reach-gym")
OBS, ACTION = TASK.obs_size, TASK.action_size

SWITCHES: dict[str, list[dict[str, Any]]] = {
    "bet": [{}, {"dropout_at_inference": False}],
    "rnn": [{"width": 32}, {"width": 32, "head": "mse", "sequence": 3}],
    "vinn": [{}, {"representation": "obs", "queue": 3, "neighbours": 4}],
}
"""Other settings than the defaults of a policy that are to keep the contract too."""

SEEING: dict[str, dict[str, Any]] = {
    "cnn": {"width": 16},
    "diffusion": {"horizon": 8, "widths": (8, 16), "step_size": 8},
}
SEEN = get_task("toy/reach:rgb")

BLIND = sorted(name for name, entry in POLICIES.items() if entry.eyes != "must")
CASES = [(name, settings) for name in BLIND for settings in SWITCHES.get(name, [{}])]


class Planner(nn.Module):
    """Three actions at once, from two frames: what a queue is for."""

    context, chunk = 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * OBS, 3 * ACTION)

    @torch.no_grad()
    def act(self, window: Tensor) -> Tensor:
        return self.linear(window.flatten(1)).unflatten(-1, (3, ACTION)).clamp(-1, 1)


class Anybodys(nn.Module):
    """Remembers its episode, as an object of one's own does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBS, ACTION)
        self.reset()

    def reset(self) -> None:
        self.mean = torch.zeros(ACTION)

    def forward(self, obs: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + self.linear(obs)
        return self.mean


def _demos() -> Demonstrations:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(40, OBS)).astype(np.float32), rng.uniform(-1, 1, (40, ACTION)).astype(np.float32)
    return Demonstrations("toy", *arrays, np.ones(40, dtype=bool), np.array([25, 15]), np.arange(2), "a test", {})


def _build(name: str, settings: dict[str, Any]) -> Imitator:
    torch.manual_seed(0)
    policy = build(name, OBS, ACTION, replace(POLICIES[name].config(), **settings))
    policy.fit_statistics(_demos(), seed=0)
    policy.train(False)
    return policy


def _build_seeing(name: str) -> Imitator:
    torch.manual_seed(0)
    shapes = SEEN.shows.shapes if SEEN.shows else {}
    cfg, eyes = replace(POLICIES[name].config(), **SEEING[name]), EncoderConfig((4, 8), 8, features=16)
    policy = build(name, SEEN.obs_size, ACTION, cfg, shapes=shapes, eyes=eyes)
    policy.train(False)
    return policy


def _name(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


MADE: dict[str, Callable[[], Any]] = {"chunks": Planner, "anybodys": lambda: as_policy(Anybodys(), ACTION)}


@pytest.fixture(params=[*CASES, *((name, {}) for name in MADE)], ids=_name)
def policy(request: pytest.FixtureRequest) -> AnyPolicy:
    """As a residual that decides at every step meets it."""
    name, settings = request.param
    torch.manual_seed(0)
    return step_by_step(MADE[name]() if name in MADE else _build(name, settings))


def _frames(rows: int, steps: int, context: int) -> Tensor:
    """Windows of `rows` episodes, (rows, steps, To, Do)."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(rows, steps + context - 1, OBS, generator=generator)
    return frames.unfold(1, context, 1).transpose(2, 3).contiguous()


def _play(policy: AnyPolicy, windows: Tensor, begins: dict[int, set[int]] | None = None) -> Tensor:
    """(R, T, To, Do) -> (R, T, Ta, Da), in one batch; episodes of row r also begin at the steps `begins[r]`."""
    opened, rows = session(policy), torch.arange(len(windows))
    opened.reset(rows)
    answers = []
    for t in range(windows.shape[1]):
        new = [r for r in range(len(windows)) if t in (begins or {}).get(r, set())]
        opened.reset(torch.tensor(new, dtype=torch.int64))
        answers.append(opened.act(windows[:, t], rows))
    return torch.stack(answers, dim=1)


def _draws(policy: AnyPolicy) -> bool:
    """Whether it draws random numbers, so that its answers in another batch are others."""
    windows = _frames(3, 4, policy.context)
    state = torch.get_rng_state()
    _play(policy, windows)
    return not torch.equal(torch.get_rng_state(), state)


def test_shapes_types_and_bounds_without_gradients(policy: AnyPolicy) -> None:
    windows = _frames(3, 5, policy.context) * 30
    answers = _play(policy, windows.requires_grad_())
    assert answers.shape == (3, 5, chunk_of(policy), ACTION)
    assert answers.dtype == torch.float32
    assert not answers.requires_grad
    assert answers.abs().max() <= 1


def test_the_same_seed_gives_the_same_answers(policy: AnyPolicy) -> None:
    windows, played = _frames(3, 6, policy.context), []
    for _ in range(2):
        torch.manual_seed(5)
        played.append(_play(policy, windows))
    assert torch.equal(*played)


def test_rows_are_as_alone_whenever_their_episodes_begin(policy: AnyPolicy) -> None:
    if _draws(policy):
        pytest.skip("it draws random numbers, which fall otherwise in another batch")
    windows = _frames(3, 10, policy.context)
    together = _play(policy, windows, {0: {4}, 1: {2, 7}})
    for row, begins in enumerate([[4], [2, 7], []]):
        parts = np.split(np.arange(10), begins)
        alone = torch.cat([_play(policy, windows[row, torch.as_tensor(part)][None]) for part in parts], dim=1)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


def test_sessions_do_not_share_what_they_remember(policy: AnyPolicy) -> None:
    if _draws(policy):
        pytest.skip("it draws random numbers, which another session's questions would shift")
    windows, rows = _frames(2, 6, policy.context), torch.arange(2)
    expected = _play(policy, windows)
    opened, other = session(policy), session(policy)
    for t in range(6):
        assert torch.equal(opened.act(windows[:, t], rows), expected[:, t])
        other.act(torch.randn(2, policy.context, OBS), rows)
    assert opened.queries == other.queries


def test_a_memory_that_was_saved_is_brought_back(policy: AnyPolicy) -> None:
    if not has_memory(policy) or kept(session(policy)) is None:
        pytest.skip("it has none, or one that cannot be saved")
    windows, rows = _frames(3, 8, policy.context), torch.arange(3)
    opened: Any = session(policy)
    other: Any = session(policy)
    for t in range(4):
        opened.act(windows[:, t], rows)
    other.restore(opened.state())
    for t in range(4, 8):
        answers = []
        for one in (opened, other):
            torch.manual_seed(t)
            answers.append(one.act(windows[:, t], rows))
        assert torch.equal(*answers)


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_loaded_it_plays_as_before(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    policy = _build(*case)
    save_policy(policy, tmp_path, details={})
    windows, played = _frames(3, 6, policy.context), []
    for one in (policy, load_policy(tmp_path)):
        torch.manual_seed(3)
        played.append(_play(one, windows))
    assert torch.equal(*played)


@pytest.mark.parametrize("name", sorted(SEEING))
def test_loaded_it_sees_and_plays_as_before(name: str, tmp_path: Path) -> None:
    policy = _build_seeing(name)
    save_policy(policy, tmp_path, details={})
    shape = 3, 4, policy.context
    pictures = torch.randint(256, (*shape, 3, SIZE, SIZE), dtype=torch.uint8)
    windows, played = together({"state": torch.randn(*shape, SEEN.obs_size), "rgb": pictures}, ndim=3), []
    for one in (policy, load_policy(tmp_path)):
        torch.manual_seed(3)
        played.append(_play(step_by_step(one), windows))
    assert torch.equal(*played)


class Questions:
    """Recounts what must have been asked of a policy of chunks: once in Ta decisions of a row, and when it begins."""

    def __init__(self, rows: int, chunk: int) -> None:
        self.left, self.chunk, self.count = [0] * rows, chunk, 0
        self.ask(range(rows))

    def ask(self, rows: Any) -> None:
        for row in rows:
            self.count += self.left[row] == 0
            self.left[row] = (self.left[row] or self.chunk) - 1

    def after(self, terminated: list[bool], done: list[bool]) -> None:
        rows = range(len(done))
        for row in rows:
            self.left[row] = 0 if terminated[row] else self.left[row]
        self.ask(rows)
        late = [row for row in rows if done[row] and not terminated[row]]
        for row in late:
            self.left[row] = 0
        self.ask(late)


def check_questions(policy: AnyPolicy, task: Task, expert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one row `expert` reaches the goal, in the others time runs out."""
    inner = policy.base if isinstance(policy, ChunkQueue) else policy
    asked = [0]
    act = type(inner).act

    def counted(self: Any, window: Tensor, *rows: Tensor) -> Tensor:
        asked[0] += len(window)
        return act(self, window, *rows)

    monkeypatch.setattr(type(inner), "act", counted)
    n, ends = 3, {"success": 0, "time-out": 0}
    env = make_vector(task, n, context=policy.context)
    collector = Collector(
        env, policy, Residual(1.0, "obs" if task.shows else "obs+base"), ProgressiveExploration(0), seed=5
    )
    questions = Questions(n, chunk_of(inner))

    def propose(seen: Tensor) -> Tensor:
        towards = expert.act(collector.window)
        towards[1:] = -1
        assert task.shows or torch.equal(seen[:, OBS:], collector.action.flatten(1))
        return towards - collector.action

    for _ in range(60):
        _, out = collector.decide(propose)
        questions.after(out.terminated.tolist(), out.done.tolist())
        ends["success"] += int(out.terminated.sum())
        ends["time-out"] += int((out.done & ~out.terminated).sum())
    assert min(ends.values()) > 1
    assert collector.base_queries == asked[0] == questions.count
    if chunk_of(inner) == 1:
        assert collector.base_queries == collector.decisions + n + ends["time-out"]


def test_questions_are_decisions_and_resets(policy: AnyPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    check_questions(policy, TASK, BiasedController(0, 0), monkeypatch)


@pytest.mark.parametrize("name", sorted(SEEING))
def test_questions_of_one_that_sees_are_decisions_and_resets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_questions(step_by_step(_build_seeing(name)), SEEN, MisledByColour(0, 0), monkeypatch)


@pytest.mark.parametrize("case", [*CASES, ("chunks", {})], ids=_name)
def test_a_refinement_leaves_the_parameters_as_they_are(
    case: tuple[str, dict[str, Any]], make_config: Callable[..., RefineConfig]
) -> None:
    base: Any = Planner() if case[0] == "chunks" else _build(*case)
    before, gradients = parameter_hash(base), [p.grad for p in base.parameters()]
    shape = {"total_steps": 120, "warmup_steps": 40, "eval_every": 120, "save_every": 120}
    config = make_config("toy/reach-gym", eval_episodes=2, test_episodes=2, max_steps=10, **shape)
    refined, _ = refine(config, base, force=True)
    assert parameter_hash(base) == before == refined.summary["base_parameters_sha256"]
    assert [p.grad for p in base.parameters()] == gradients
    assert refined.act(np.zeros(OBS, np.float32)).shape == (ACTION,)
