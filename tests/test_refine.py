"""One refinement from end to end: frozen base, honest counts, the same numbers for the same seed."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import policy_decorator as package
from policy_decorator import api, machine
from policy_decorator import refine as refine_module
from policy_decorator.base_policies import build
from policy_decorator.base_policies.checkpoint import parameter_hash, save_policy
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.config import RefineConfig, flat
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.record import record_expert
from policy_decorator.envs.toy import SPEED, TASKS, BiasedController
from policy_decorator.envs.vector import SimulatorVector, make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import EPISODES_PER_SEED, TEST, TRAINING, VALIDATION, run_episodes
from policy_decorator.experiments.presets import settings
from policy_decorator.hardware import uses_cuda_graphs
from policy_decorator.methods import METHODS, settings_of
from policy_decorator.progress import Silent
from policy_decorator.refine import Refinement, refine
from policy_decorator.refined import Refined
from policy_decorator.runlog import RunFolder
from policy_decorator.statistics import paired_gain, wilson

MakeConfig = Callable[..., RefineConfig]


def _metrics(folder: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "wall_seconds"} for line in folder.metrics()]


def _folder(path: Path, config: RefineConfig) -> RunFolder:
    return RunFolder.create(path, config, tensorboard=False)


class Counted:
    """A base policy that counts the rows it is asked about."""

    context = 1

    def __init__(self, base: Any) -> None:
        self.base, self.rows = base, 0

    def act(self, window: Tensor) -> Tensor:
        self.rows += len(window)
        return self.base.act(window)


# ---- the same numbers -----------------------------------------------------------------------------------------


def test_measuring_the_threads_leaves_no_trace(
    tmp_path: Path, make_config: MakeConfig, noisy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fastest(work: Callable[[], object]) -> int:
        work()
        work()
        asked.append(torch.get_num_threads())
        return asked[0]

    monkeypatch.setattr(machine, "fastest_threads", fastest)
    folders = [_folder(tmp_path / str(threads), make_config(threads=threads)) for threads in (None, "auto")]
    for threads, folder in zip((None, "auto"), folders, strict=True):
        refined, _ = refine(make_config(threads=threads), noisy, folder)
        assert refined.summary["threads"] == torch.get_num_threads()
    assert len(asked) == 1
    assert _metrics(folders[0]) == _metrics(folders[1])


@pytest.mark.parametrize("method", ["dac", "gail", "jsrl", "cql", "fish"])
def test_threads_are_measured_on_batches_of_every_method(
    method: str,
    make_config: MakeConfig,
    steady: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if method == "fish":
        request.getfixturevalue("pot")
    shown = record_expert(TASKS["toy/reach"], 3, seed=500_000)
    measured: list[int] = []

    def fastest(work: Callable[[], object]) -> int:
        work()
        measured.append(torch.get_num_threads())
        return measured[0]

    monkeypatch.setattr(machine, "fastest_threads", fastest)
    config = make_config(method=method, learn=settings_of(method, make_config().learn), threads="auto")
    Refinement(config, cast(Any, steady), None, shown).close()
    assert len(measured) == 1


def test_the_same_seed_gives_the_same_run_and_another_one_another(
    tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    lines, weights = [], []
    for k, seed in enumerate((3, 3, 4)):
        config = make_config(seed=seed, total_steps=300)
        folder = _folder(tmp_path / str(k), config)
        torch.rand(k)  # what was drawn before does not matter
        refine(config, noisy, folder)  # pyright: ignore[reportArgumentType]
        lines.append(_metrics(folder))
        weights.append((tmp_path / str(k) / "refined" / "residual.safetensors").read_bytes())
    assert len(lines[0]) == 5  # the base, three logs and an evaluation at the end
    assert lines[0] == lines[1]
    assert weights[0] == weights[1]
    assert lines[0] != lines[2]
    assert weights[0] != weights[2]


def test_without_a_folder_it_is_the_same_run(tmp_path: Path, make_config: MakeConfig, noisy: nn.Module) -> None:
    config = make_config(total_steps=200)
    runs = [refine(config, noisy, folder)[0] for folder in (None, _folder(tmp_path / "run", config))]  # pyright: ignore
    a, b = ({k: v for k, v in run.summary.items() if k != "wall_seconds"} for run in runs)
    assert a == b


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_is_as_it_was_before(fails: bool, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply() -> None:
        torch.set_float32_matmul_precision("medium")

    def settings_now() -> tuple[int, str, bool]:
        return torch.get_num_threads(), torch.get_float32_matmul_precision(), machine.flushes_subnormals()

    monkeypatch.setattr(machine, "multiply_with_onednn", multiply)
    before, inside = settings_now(), []

    class Watching(BiasedController):
        def act(self, window: Tensor) -> Tensor:
            inside.append(settings_now())
            return torch.full((len(window), 1, 2), torch.nan) if fails else super().act(window)

    with pytest.raises(UserError, match="not finite") if fails else nullcontext():
        refine(make_config(total_steps=160, threads=before[0] + 1), Watching(), force=True)
    assert set(inside) == {(before[0] + 1, "medium", True)} != {before}
    assert settings_now() == before


# ---- the base -------------------------------------------------------------------------------------------------


def test_the_base_stays_bit_for_bit_what_it_was(make_config: MakeConfig, noisy: nn.Module) -> None:
    before = parameter_hash(noisy)
    refined, _ = refine(make_config(), noisy)  # pyright: ignore[reportArgumentType]
    assert parameter_hash(noisy) == before == refined.summary["base_parameters_sha256"]
    assert all(p.grad is None and p.requires_grad for p in noisy.parameters())  # neither trained nor meddled with
    assert refined.policy.base is noisy


def test_a_base_that_changes_is_noticed(make_config: MakeConfig, steady: nn.Module) -> None:
    class Learning(type(steady)):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
        def act(self, window: Tensor) -> Tensor:
            with torch.no_grad():
                self.linear.bias += 1e-6
            return super().act(window)

    with pytest.raises(RuntimeError, match="must stay frozen"):
        refine(make_config(total_steps=100), Learning())


def test_every_question_to_the_base_is_counted(make_config: MakeConfig, steady: nn.Module) -> None:
    base = Counted(steady)
    session = Refinement(make_config(), base, None)
    asked = base.rows
    assert asked == 4 + 4 + 4  # twice to check its answer in the evaluation environments, once to begin
    for _ in range(60):
        session.run.collector.decide(session.run.explorer)
    counts = session.counts()
    assert base.rows - asked == counts["base_queries"] - 4
    timeouts = counts["base_queries"] - 4 - counts["decisions"]
    assert 0 < timeouts < counts["episodes"]
    before = session.counts()
    session.evaluate()
    assert session.counts() == before  # evaluations are no experience


class Broken:
    """Answers wrongly in the way that is asked for."""

    context = 1

    def __init__(self, how: str) -> None:
        self.how = how

    def act(self, window: Tensor) -> Tensor:
        answer = torch.zeros(len(window), 1, 2)
        match self.how:
            case "nan":
                answer[-1] = torch.nan
            case "size":
                answer = torch.zeros(len(window), 1, 3)
            case "chunk":
                answer = torch.zeros(len(window), 2, 2)
        return answer


@pytest.mark.parametrize(
    ("how", "message"),
    [("nan", "not finite"), ("size", r"\(4, 1, 3\).*toy/reach needs \(4, 1, 2\)"), ("chunk", r"\(4, 2, 2\)")],
)
def test_a_base_that_answers_wrongly_is_refused_at_once(how: str, message: str, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match=message):
        refine(make_config(), Broken(how))


@pytest.mark.parametrize("what", ["the base's answer", "the method", "the measurement of threads"])
def test_environments_are_closed_where_a_run_cannot_begin(
    what: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Watched(SimulatorVector):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            opened.append("open")

        def close(self) -> None:
            super().close()
            opened.remove("open")

    def failing(*_: Any) -> int:
        assert opened == ["open", "open"]
        raise UserError("no")

    config = make_config("toy/reach-gym")
    if what == "the method":
        config = replace(config, learn=replace(config.learn, bound="auto"))  # and there are no demonstrations
    elif what != "the base's answer":
        monkeypatch.setattr(machine, "fastest_threads", failing)
        config = replace(config, threads="auto")
    monkeypatch.setattr(refine_module, "make_vector", lambda task, n, context, **_: Watched(task, n, context=context))
    with pytest.raises(UserError):
        refine(config, Broken("nan") if what == "the base's answer" else BiasedController())
    assert opened == []


def test_a_base_that_never_succeeds_is_refused_unless_forced(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(total_steps=100)
    says: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            says.append(text)

    folder = _folder(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"none of 10 episodes of toy/reach.*--force"):
        refine(config, Broken("never"), folder)
    assert folder.evaluations("base")[0]["success"] == [False] * 10
    assert folder.summary() == {}
    refined, _ = refine(config, Broken("never"), display=Listening(), force=True)
    assert refined.summary["env_steps"] >= 100
    assert [text for text in says if "none of 10 episodes" in text]


@pytest.mark.parametrize(("field", "value"), [("task", "toy/raech"), ("method", "policy-decorater")])
def test_unknown_names_are_refused_with_the_nearest(field: str, value: str, make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="Did you mean"):
        refine(replace(make_config(), **{field: value}), BiasedController())


@pytest.mark.parametrize(
    ("device", "cuda_graphs", "used"),
    [
        ("cuda", "auto", True),
        ("cuda:1", "on", True),
        ("cuda", "off", False),
        ("cpu", "auto", False),
        ("cpu", "off", False),
    ],
)
def test_cuda_graphs_are_for_cuda_devices(device: str, cuda_graphs: str, used: bool, make_config: MakeConfig) -> None:
    assert uses_cuda_graphs(make_config(device=device, cuda_graphs=cuda_graphs)) == used
    with pytest.raises(UserError, match="need a CUDA device"):
        refine(make_config(device="cpu", cuda_graphs="on"), BiasedController())


# ---- the outcome ----------------------------------------------------------------------------------------------


def test_the_summary_and_the_logs_say_what_happened(tmp_path: Path, make_config: MakeConfig, steady: nn.Module) -> None:
    config = make_config(test_episodes=30)
    folder = _folder(tmp_path / "run", config)
    refined, comparison = refine(config, steady, folder)  # pyright: ignore[reportArgumentType]
    summary = refined.summary
    assert folder.summary() == json.loads(json.dumps(summary))

    base, final = folder.evaluations("base")[-1], folder.evaluations("final")[-1]
    assert base["seeds"] == final["seeds"] == list(range(TEST, TEST + 30))
    b, f = (np.array(line["success"]) for line in (base, final))
    gain = paired_gain(b, f)
    assert (summary["base_success"], summary["refined_success"]) == (b.mean(), f.mean())
    assert summary["base_ci95"] == wilson(int(b.sum()), 30)
    assert summary["gain"] == pytest.approx(f.mean() - b.mean())
    assert summary["gain_ci95"] == (gain.low, gain.high)
    assert (summary["fixed"], summary["broken"]) == (int((f & ~b).sum()), int((b & ~f).sum()))
    assert summary["base_mean_steps"] == np.mean(base["lengths"])
    assert comparison.base.episodes.success.tolist() == base["success"]
    assert set(range(TEST, TEST + 30)) <= set(comparison.refined.trajectories)

    # base and refined policy can be run again from outside, with the same outcome
    env = make_vector(TASKS["toy/reach"], 7)
    for policy, line in ((steady, base), (refined.policy, final)):
        again: Any = policy
        assert run_episodes(env, again, 30, TEST).success.tolist() == line["success"]

    assert summary["eval_env_steps"] > sum(sum(line["lengths"]) for line in folder.evaluations())  # and surplus ones
    last = folder.metrics()[-1]
    for name in ("env_steps", "decisions", "updates", "base_queries", "episodes"):
        assert summary[name] == last[name]
    assert summary["updates"] == (summary["env_steps"] - 100) // 4
    assert (summary["bound"], summary["horizon"]) == (0.5, 100)
    assert (summary["device"], summary["simulation"]) == ("cpu", "cpu")
    assert (summary["compiled"], summary["cuda_graphs"]) == (False, False)


def test_the_curve_begins_with_the_base_and_has_one_point_per_evaluation(
    tmp_path: Path, make_config: MakeConfig, steady: nn.Module
) -> None:
    config = make_config(learn=replace(make_config().learn, horizon=450))
    folder = _folder(tmp_path / "run", config)
    refine(config, steady, folder)  # pyright: ignore[reportArgumentType]
    curve = [line for line in folder.metrics() if "eval/full" in line]
    assert [line["env_steps"] for line in curve] == [0, 304, 600]
    assert curve[0]["eval/base"] == curve[0]["eval/full"] == curve[0]["eval/behaviour"]
    assert [line["train/epsilon"] for line in curve] == pytest.approx([0.0, 304 / 450, 1.0])
    assert len(folder.evaluations("full")) == 2
    assert len(folder.evaluations("behaviour")) == 1  # once epsilon is 1 both are the same policy
    assert {tuple(line["seeds"]) for line in folder.evaluations() if line["name"] in ("full", "behaviour")} == {
        tuple(range(VALIDATION, VALIDATION + 10))
    }
    assert curve[2]["eval/behaviour"] == curve[2]["eval/full"] == np.mean(folder.evaluations("full")[1]["success"])


def test_an_evaluation_leaves_what_the_gate_has_measured_alone(make_config: MakeConfig, steady: nn.Module) -> None:
    config = make_config()
    refinement = Refinement(replace(config, learn=replace(config.learn, horizon="auto")), steady, None)  # pyright: ignore[reportArgumentType]
    c = refinement.run.collector
    gate: Any = c.gate
    c.step, gate.value = 500, 0.5
    before = gate.state()
    refinement.evaluate()
    assert gate.state() == before
    refinement.close()


@pytest.mark.parametrize("seed", [0, 5])
def test_training_begins_at_the_seeds_of_its_own(seed: int, make_config: MakeConfig) -> None:
    session = Refinement(make_config(seed=seed), BiasedController(), None)
    _, step = session.run.collector.decide(session.run.explorer)
    assert step.episode.tolist() == [TRAINING + seed * EPISODES_PER_SEED + i for i in range(4)]


def _evaluated(
    make_config: MakeConfig, keep: str, rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    """Which residual, and of which step, is handed over if the evaluations of a run say `rates`."""
    session = Refinement(make_config(keep=keep), BiasedController(), None)
    actor: Any = session.run.learner.actor
    for k, rate in enumerate(rates):
        with torch.no_grad():
            actor.net.head.bias.fill_(float(k))
        session.run.collector.step = 100 * k
        outcome = type("Outcome", (), {"rate": rate})
        with monkeypatch.context() as patch:
            patch.setattr(session, "episodes", lambda *_, outcome=outcome, **__: outcome)
            session.evaluate()
    refined, _ = session.compare()
    kept: Any = refined.policy.actor
    return int(kept.net.head.bias[0, 0, 0]), refined.summary["kept_checkpoint_step"]


@pytest.mark.parametrize(
    ("keep", "rates", "kept"),
    [
        ("learned", [0.2, 0.9, 0.5], 1),
        ("learned", [0.5, 0.9, 0.9], 2),  # of equals the latest
        ("learned", [0.0, 0.0, 0.0], 2),
        ("last", [0.2, 0.9, 0.5], 2),
    ],
)
def test_the_residual_that_is_kept(
    keep: str, rates: list[float], kept: int, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _evaluated(make_config, keep, rates, monkeypatch) == (kept, 100 * kept)


def test_where_values_choose_the_best_critics_are_handed_over_with_the_best_residual(make_config: MakeConfig) -> None:
    config = make_config(total_steps=400, eval_every=100)
    config = replace(config, learn=replace(config.learn, select_by_value="acting"))
    session = Refinement(config, BiasedController(), None)
    learner: Any = session.run.learner
    session.evaluate()
    best = [p.clone() for net in (learner.actor, learner.critic) for p in net.parameters()]
    with torch.no_grad():
        for p in (*learner.actor.parameters(), *learner.critic.parameters()):
            p.add_(1.0)
    session.best.success = 2.0  # nothing is better than that
    session.evaluate()
    refined, _ = session.compare()
    chosen: Any = refined.policy.actor
    kept = [*chosen.actor.parameters(), *chosen.critic.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(kept, best, strict=True))
    assert not any(p.requires_grad for p in kept)
    assert refined.act(np.zeros(4, np.float32)).shape == (2,)


@pytest.mark.parametrize("learner", ["sac", "td3"])
def test_what_values_choose_is_the_same_once_saved_and_loaded(
    learner: str, tmp_path: Path, make_config: MakeConfig, steady: nn.Module
) -> None:
    config = make_config(total_steps=400)
    nets = replace(config.learn.nets, critics=4, zero_init=True)
    learn = replace(config.learn, learner=learner, select_by_value="acting+target", select_samples=2, nets=nets)
    folder = _folder(tmp_path / "run", replace(config, learn=learn))
    _, comparison = refine(replace(config, learn=learn), steady, folder)  # pyright: ignore[reportArgumentType]
    again = Refined.load(tmp_path / "run", policy=steady)
    env = make_vector(TASKS["toy/reach"], 4, device=torch.device("cpu"))
    episodes = run_episodes(env, again.policy, config.test_episodes, TEST)
    assert episodes.success.tolist() == comparison.refined.episodes.success.tolist()
    assert episodes.env_steps.tolist() == comparison.refined.episodes.env_steps.tolist()
    assert {line["train/residual_share"] < 1 for line in folder.metrics() if "train/residual_share" in line} == {True}


@pytest.mark.parametrize("task", ["toy/reach", "toy/reach-gym"])
def test_the_time_limit_can_be_set(task: str, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(task, max_steps=5, total_steps=100)
    folder = _folder(tmp_path / "run", config)
    refine(config, BiasedController(), folder, force=True)
    assert max(max(line["lengths"]) for line in folder.evaluations()) == 5


def test_episodes_of_fixed_length(make_config: MakeConfig, tmp_path: Path) -> None:
    """DPPO's: all last as long, a success on the way counts, and a refined policy is judged by the same rule."""
    config = make_config("toy/reach-gym", total_steps=100, max_steps=12, ends_at_success=False)
    folder = _folder(tmp_path / "run", config)
    refine(config, BiasedController(), folder)
    lines = folder.evaluations()
    assert {length for line in lines for length in line["lengths"]} == {12}
    assert any(any(line["success"]) for line in lines)


@pytest.mark.parametrize("ends", [False, True])
def test_success_may_end_the_value_of_own_and_demonstrated_episodes(ends: bool, make_config: MakeConfig) -> None:
    config = make_config("toy/reach-gym", ends_at_success=False)
    learn = replace(config.learn, reward_shift=0.0, demo_share=0.5, success_ends_value=ends)
    session = Refinement(replace(config, learn=learn), BiasedController(0.0), None, _demonstrations())
    for _ in range(30):
        session.run.replay.add(session.run.collector.decide(lambda seen: torch.zeros(len(seen), 1, 2))[0])
    batch = session.run.data.sample(400)
    own, shown = batch.reward[:200], batch.reward[200:]
    assert own.sum() > 0
    assert torch.equal(batch.terminated == 1, (batch.reward > 0) & ends)
    assert (shown.sum() > 0) == ends  # what comes after its last step, where success is, is known only if nothing does


def test_where_episodes_end_at_success_nothing_is_behind_it_anyway(make_config: MakeConfig) -> None:
    config, summaries = make_config(total_steps=200), list[dict[str, Any]]()
    for ends in (False, True):
        run, _ = refine(replace(config, learn=replace(config.learn, success_ends_value=ends)), BiasedController())
        summaries.append({k: v for k, v in run.summary.items() if k != "wall_seconds"})
    assert summaries[0] == summaries[1]


def test_action_chunks_and_windows_from_end_to_end(make_config: MakeConfig) -> None:
    class Chunks:
        context, chunk = 3, 2

        def act(self, window: Tensor) -> Tensor:
            assert window.shape[1:] == (3, 4)
            pos, goal = window[:, -1].chunk(2, dim=-1)
            a = (goal + torch.tensor([0.06, 0.06]) - pos) / (2 * SPEED)
            return a.clamp(-1, 1)[:, None].repeat(1, 2, 1)

    refined, _ = refine(make_config(total_steps=300, decide="chunk"), Chunks(), force=True)
    assert refined.policy.act(torch.zeros(5, 3, 4)).shape == (5, 2, 2)
    counts = refined.summary
    assert counts["env_steps"] > 1.5 * counts["decisions"]
    with pytest.raises(UserError, match="chunks"):
        refined.act(np.zeros(4, np.float32))


def _demonstrations(n: int = 5) -> Demonstrations:
    observations, actions, success, lengths = [], [], [], []
    env = TASKS["toy/reach-gym"].make_env(None)
    for seed in range(5_000, 5_000 + n):  # layouts that the run itself does not meet
        obs, _ = env.reset(seed=seed)
        length, over = 0, False
        while not over:
            action = np.clip((obs[2:] - obs[:2]) / SPEED, -1, 1).astype(np.float32)
            observations.append(obs)
            actions.append(action)
            obs, _, _, _, info = env.step(action)
            over, length = info["success"], length + 1
            success.append(over)
        lengths.append(length)
    o, a, s = np.stack(observations), np.stack(actions), np.array(success)
    return Demonstrations("toy/reach", o, a, s, np.array(lengths), np.arange(1, n + 1), "an expert", {})


def test_demonstrations_standardize_and_enter_the_batches(make_config: MakeConfig) -> None:
    demos, config = _demonstrations(), make_config(total_steps=200)
    learn = replace(config.learn, standardize_obs=True, demo_share=0.5)
    session = Refinement(replace(config, learn=learn), BiasedController(), None, demos)
    actor: Any = session.run.learner.actor
    np.testing.assert_allclose(actor.standardize.mean, demos.observations.mean(0), rtol=1e-5, atol=1e-6)
    session.run.collector.decide(session.run.explorer)
    session.run.replay.add(session.run.collector.decide(session.run.explorer)[0])
    batch = session.run.data.sample(40)
    known = {tuple(o) for o in demos.observations.tolist()}
    assert [tuple(o) in known for o in batch.obs.tolist()] == [False] * 20 + [True] * 20
    executed = batch.base + 0.5 * batch.raw
    wanted = {tuple(o): a for o, a in zip(demos.observations.tolist(), demos.actions.tolist(), strict=True)}
    for o, a in zip(batch.obs[20:].tolist(), executed[20:, 0].tolist(), strict=True):
        assert a == pytest.approx(wanted[tuple(o)], abs=1e-5)


# ---- the Python interface -------------------------------------------------------------------------------------


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig) -> None:
    """`decorate` with tiny networks and few episodes, whatever the preset says."""
    from policy_decorator.experiments import presets

    def tiny(task: str, kind: str) -> RefineConfig:
        return make_config(task)

    preset = replace(presets.PRESETS["quick"], make=tiny)
    monkeypatch.setattr(presets, "PRESETS", {"quick": preset})


def controller(obs: np.ndarray) -> np.ndarray:
    """A user's function: one observation, numpy."""
    return np.clip((obs[2:] + np.array([0.07, 0.03]) - obs[:2]) / (2 * SPEED), -1, 1)


@pytest.mark.usefixtures("quickly")
def test_decorate_a_plain_function(tmp_path: Path) -> None:
    refined = package.decorate(
        controller, "toy/reach-gym", bound=0.3, horizon=200, total_steps=400, seed=2, out=tmp_path / "run"
    )
    assert isinstance(refined, Refined)
    summary = refined.summary
    assert (summary["bound"], summary["horizon"], summary["seed"]) == (0.3, 200, 2)
    assert 400 <= summary["env_steps"] < 404
    run = RunFolder.open(tmp_path / "run")
    assert run.summary()["gain"] == pytest.approx(summary["gain"])
    assert (tmp_path / "run" / "report.html").exists()
    obs = np.array([0.1, 0.2, -0.5, 0.9], np.float32)
    assert np.abs(refined(obs) - controller(obs)).max() <= 0.3 + 1e-6
    again = package.Refined.load(tmp_path / "run", policy=controller)
    np.testing.assert_array_equal(again(obs), refined(obs))


@pytest.mark.usefixtures("quickly", "unreported")
def test_policy_decorator_as_a_decorator() -> None:
    @package.policy_decorator("toy/reach-gym", bound=0.3, total_steps=600)
    def act(obs: np.ndarray) -> np.ndarray:
        return controller(obs)

    assert isinstance(act, Refined)
    assert act.summary["env_steps"] >= 600
    assert act.summary["bound"] == 0.3
    assert act(np.zeros(4, np.float32)).shape == (2,)


@pytest.mark.usefixtures("quickly", "unreported")
def test_every_setting_can_be_given_by_name(tmp_path: Path) -> None:
    given: dict[str, Any] = {"device": torch.device("cpu"), "envs": 3, "workers": 0, "eval_every": 100, "gamma": 0.9}
    package.decorate(controller, "toy/reach-gym", seed=2, total_steps=160, out=tmp_path / "run", **given)
    config = RunFolder.open(tmp_path / "run").config()
    assert (config["device"], config["envs"], config["workers"], config["seed"]) == ("cpu", 3, 0, 2)
    assert (config["train"]["eval_every"], config["learn"]["sac"]["gamma"]) == (100, 0.9)


@pytest.mark.usefixtures("quickly", "unreported")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devise": "cpu"}, "Unknown setting 'devise'. Did you mean 'device'"),
        ({"config": None}, "Unknown setting 'config'"),
        ({"envs": "many"}, "envs is 'many', which is no int"),
        ({"compile": "yes"}, "compile is 'yes'"),
        ({"threads": object()}, "threads cannot be <object"),
        ({"envs": 0}, "envs must be at least 1"),
        ({"device": "gpu"}, "The device 'gpu' cannot be used"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        package.decorate(controller, "toy/reach-gym", **given)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_name_is_of_one_setting(method: str) -> None:
    names = [name for name, _ in flat(settings("quick", "toy/reach", method=method))]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.usefixtures("quickly", "unreported")
def test_a_function_that_is_not_finite_or_never_succeeds_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        package.decorate(lambda obs: obs[..., :2] * np.nan, "toy/reach-gym")
    with pytest.raises(UserError, match="none of 10 episodes"):
        package.decorate(lambda obs: 0 * obs[..., :2], "toy/reach-gym")
    forced = package.decorate(lambda obs: 0 * obs[..., :2], "toy/reach-gym", total_steps=160, force=True)
    assert forced.summary["env_steps"] >= 160


@pytest.mark.usefixtures("quickly", "unreported")
def test_a_run_that_fails_before_it_begins_is_not_in_the_way_of_the_next(tmp_path: Path) -> None:
    def mistaken(obs: np.ndarray) -> np.ndarray:
        raise KeyError("a slip of the user's")

    out = tmp_path / "run"
    for wrong in (lambda obs: obs[..., :1], lambda obs: 0 * obs[..., :2], mistaken):
        with pytest.raises((UserError, KeyError)):
            package.decorate(wrong, "toy/reach-gym", total_steps=160, out=out)
        assert not out.exists()
    package.decorate(controller, "toy/reach-gym", total_steps=160, out=out)
    before = (out / "summary.json").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        package.decorate(controller, "toy/reach-gym", total_steps=160, out=out)
    assert (out / "summary.json").read_bytes() == before


@pytest.mark.usefixtures("quickly", "unreported")
def test_a_run_that_fails_later_stays(tmp_path: Path) -> None:
    calls = 0

    def tiring(obs: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls > 2_500:
            raise KeyError("worn out")
        return controller(obs)

    with pytest.raises(KeyError):
        package.decorate(tiring, "toy/reach-gym", total_steps=20_000, out=tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").metrics()[-1]["env_steps"] > 0


@pytest.mark.usefixtures("unreported")
def test_decorators_stack_and_policies_come_from_folders(tmp_path: Path, make_config: MakeConfig) -> None:
    policy = build("mlp", 4, 2, MLPConfig(width=8, depth=1, standardize_obs=False))
    config = make_config(total_steps=160)
    save_policy(policy, tmp_path / "base", details={"task": "toy/reach"})
    first = api.run(config, tmp_path / "base", out=tmp_path / "run", force=True)
    assert parameter_hash(policy) == first.summary["base_parameters_sha256"]
    window = torch.randn(9, 1, 4)
    loaded = api.load(tmp_path / "run", 2)
    torch.testing.assert_close(loaded.act(window), first.policy.act(window), rtol=0, atol=0)
    second = api.run(config, first, force=True)
    assert second.policy.base is first.policy
    assert (second.policy.act(window) - policy.act(window)).abs().max() <= 1.0 + 1e-6  # twice 0.5


@pytest.mark.usefixtures("unreported")
def test_a_module_of_ones_own_may_have_a_cfg(tmp_path: Path, make_config: MakeConfig, steady: nn.Module) -> None:
    """Only the package's own policies are saved beside the residual, and known by the type of their config."""
    steady.cfg = {"mine": True}  # pyright: ignore[reportArgumentType]
    refined = api.run(make_config(total_steps=160), steady, out=tmp_path / "run", force=True)
    assert not (tmp_path / "run" / "base").exists()
    again = Refined.load(tmp_path / "run", policy=steady)
    obs = torch.randn(3, 4)
    assert torch.equal(again.act(obs), refined.act(obs))
