"""Interrupted and resumed is the same as never interrupted, bit for bit."""

import copy
import errno
import gc
import json
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from interrupted import Interrupted
from tensordict import TensorDict
from torch import nn

from policy_decorator import api, snapshot
from policy_decorator.base_policies import build
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.config import RefineConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.envs.toy import BiasedController
from policy_decorator.errors import UserError
from policy_decorator.methods import settings_of
from policy_decorator.methods.alone import Takeover
from policy_decorator.methods.jsrl import JumpStarted, Successor
from policy_decorator.progress import Silent, Update
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig
from policy_decorator.runlog import RunFolder

pytestmark = pytest.mark.usefixtures("unreported")

MakeConfig = Callable[..., RefineConfig]


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "wall_seconds"} for line in lines]


def _outcome(run: Path) -> dict[str, Any]:
    """Everything a run leaves behind, in the order in which a difference would first show."""
    state = snapshot.read(run / "checkpoints" / "last.pt", torch.device("cpu"))
    summary = {key: value for key, value in RunFolder.open(run).summary().items() if key != "wall_seconds"}
    return {
        "metrics": _lines(run / "metrics.jsonl"),
        "episodes": _lines(run / "episodes.jsonl"),
        "state": _plain(state),
        "summary": summary,
        "learned": [path.read_bytes() for path in sorted((run / "refined").glob("**/*.safetensors"))],
    }


def _plain(x: Any) -> Any:
    """Tensors as types, shapes and lists, so that nested states compare with ==."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), x.tolist()
    if isinstance(x, dict):
        return {key: _plain(value) for key, value in x.items()}
    return [_plain(value) for value in x] if isinstance(x, list | tuple) else x


def _bases(noisy: nn.Module) -> dict[str, Any]:
    return {"dropout": noisy, "noise": BiasedController()}


def _assert_same(one: Path, two: Path) -> None:
    a, b = _outcome(one), _outcome(two)
    for part in a:
        assert a[part] == b[part], part


@pytest.mark.parametrize("base", ["dropout", "noise"])
@pytest.mark.parametrize("task", ["toy/reach", "toy/reach-gym"])
def test_resumed_is_as_uninterrupted(
    task: str, base: str, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    config = make_config(task, total_steps=500, save_every=220)
    policy = _bases(noisy)[base]
    api.run(config, policy, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        api.run(config, policy, out=tmp_path / "cut", display=Interrupted(400))
    assert RunFolder.open(tmp_path / "cut").metrics()[-1]["env_steps"] < 400
    state = snapshot.read(tmp_path / "cut" / "checkpoints" / "last.pt", torch.device("cpu"))
    assert 220 <= state["counts"]["step"] < 400
    if task == "toy/reach-gym":  # episodes were in flight, and n-step returns open
        assert any(key.startswith("executed_") for key in state["env"])
    assert state["intake"]
    torch.rand(7)  # whatever the new process has drawn
    api.run(config, policy, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("horizon", [100, "auto"])
def test_it_may_be_interrupted_again_and_again_and_at_any_point_of_the_rhythm(
    horizon: Any, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    """Checkpoints between two lines of metrics, metrics older than the last round, noise that is being held."""
    rhythm = {"total_steps": 900, "steps_per_round": 8, "log_every": 8, "save_every": 36, "eval_every": 400}
    config = make_config(**rhythm)
    learn = replace(
        config.learn, horizon=horizon, opening_steps=400, noise_hold=5, sac=replace(config.learn.sac, actor_every=2)
    )
    config = replace(config, learn=learn, train=replace(config.train, updates_per_step=1 / 8))
    api.run(config, noisy, out=tmp_path / "whole")
    for k, at in enumerate((60, 168, 700)):
        with pytest.raises(KeyboardInterrupt):
            api.run(config, noisy, out=tmp_path / "cut", display=Interrupted(at), resume=k > 0)
    api.run(config, noisy, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")
    epsilons = [line["train/epsilon"] for line in RunFolder.open(tmp_path / "whole").metrics()]
    assert epsilons[0] < epsilons[-1]  # the residual was let in
    assert RunFolder.open(tmp_path / "whole").summary()["horizon"] == horizon


SWITCHES: dict[str, dict[str, Any]] = {
    "ensemble": {
        "nets": NetConfig(width=16, depth=2, critics=4),
        "sac": SACConfig(batch_size=32, critic_subset=2, actor_value="mean"),
    },
    "demonstrations": {"demo_share": 0.5, "demo_share_end": 0.1, "demo_share_steps": 300},
    "td3": {"learner": "td3", "noise_hold": 3},
    "ppo": {"learner": "ppo", "n_step": 1, "base_only_warmup": True, "ppo": PPOConfig(rollout=20, epochs=2)},
    "selection": {"select_by_value": "acting+target", "select_samples": 3, "noise_hold": 3},
}


def _shown(n: int = 60) -> Demonstrations:
    rows = np.random.default_rng(0).uniform(-1, 1, (n, 6)).astype(np.float32)
    success = np.arange(n) % 20 == 19
    lengths, seeds = np.full(n // 20, 20), np.arange(n // 20)
    return Demonstrations("toy/reach", rows[:, :4], rows[:, 4:], success, lengths, seeds, "nobody", {})


@pytest.mark.parametrize("name", SWITCHES)
def test_with_a_switch_on_too(name: str, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module) -> None:
    config = make_config(total_steps=400, save_every=180)
    on = replace(config, learn=replace(config.learn, **SWITCHES[name]))
    api.run(on, noisy, out=tmp_path / "whole", demos=_shown())
    with pytest.raises(KeyboardInterrupt):
        api.run(on, noisy, out=tmp_path / "cut", display=Interrupted(300), demos=_shown())
    api.run(on, noisy, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")
    api.run(config, noisy, out=tmp_path / "off", demos=_shown())
    assert _outcome(tmp_path / "off")["metrics"] != _outcome(tmp_path / "whole")["metrics"]  # it does something


@pytest.mark.parametrize("method", ["gail", "dac", "fish", "rot"])
def test_a_reward_that_is_learned_or_computed_goes_on(
    method: str, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    config = make_config(total_steps=400, save_every=180)
    config = replace(config, method=method, learn=settings_of(method, config.learn))
    base: Any = build("mlp", 4, 2, MLPConfig(width=16, depth=1)) if method == "rot" else noisy
    how: dict[str, Any] = {"demos": _shown(), "force": True}
    api.run(config, base, out=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        api.run(config, base, out=tmp_path / "cut", display=Interrupted(300), **how)
    state = snapshot.read(tmp_path / "cut" / "checkpoints" / "last.pt", torch.device("cpu"))
    assert state["reward"]
    api.run(config, base, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("kind", ["dropout", "jump-started"])
def test_a_curriculum_goes_on(kind: str, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module) -> None:
    """With an evaluation in its window and after it has gone back; and on a base that counts an episode's steps."""
    short = {"total_steps": 360, "log_every": 20, "eval_every": 40, "save_every": 120}
    config = make_config(**short, eval_episodes=4, test_episodes=4)
    learn: Any = settings_of("jsrl", config.learn)
    config = replace(config, method="jsrl", learn=replace(learn, step_back=1, success_window=2, success_tolerance=1.0))
    first = Successor(4, (1, 2))
    first.guide_steps.fill_(9)
    base: Any = JumpStarted(cast(Any, noisy), first, Takeover()) if kind == "jump-started" else noisy
    api.run(config, base, out=tmp_path / "whole", force=True)
    with pytest.raises(KeyboardInterrupt):
        api.run(config, base, out=tmp_path / "cut", display=Interrupted(300), force=True)
    gate = snapshot.read(tmp_path / "cut" / "checkpoints" / "last.pt", torch.device("cpu"))["gate"]
    assert gate["begin"] > gate["guide_steps"] > 0
    assert gate["recent"]
    api.run(config, base, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_policy_that_draws_elsewhere_than_in_torch_goes_on_the_same(tmp_path: Path, make_config: MakeConfig) -> None:
    def drawing(obs: np.ndarray) -> np.ndarray:
        noise = random.gauss(0.0, 0.2) + np.random.normal(0.0, 0.2, (len(obs), 2))  # noqa: NPY002
        obs = np.asarray(obs)
        return np.clip(5 * (obs[:, 2:] - obs[:, :2]) + 0.1 + noise, -1, 1).astype(np.float32)

    config = make_config(total_steps=400, save_every=100, eval_every=200)
    for k, folder in enumerate(("whole", "cut")):
        np.random.seed(k)  # noqa: NPY002 - what was drawn before does not matter
        with pytest.raises(KeyboardInterrupt) if k else nullcontext():
            api.run(config, drawing, out=tmp_path / folder, display=Interrupted(250) if k else None)
    api.run(config, drawing, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("title", ["testing the refined policy", None])
def test_an_end_that_was_interrupted_or_reached_is_repeated_the_same(
    title: str | None, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    config = make_config(total_steps=200)
    api.run(config, noisy, out=tmp_path / "whole")
    if title is None:
        api.run(config, noisy, out=tmp_path / "cut")
    else:
        with pytest.raises(KeyboardInterrupt):
            api.run(config, noisy, out=tmp_path / "cut", display=Interrupted(1, title))
    api.run(config, noisy, out=tmp_path / "cut", resume=True)
    _assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_can_be_given_a_larger_budget(tmp_path: Path, make_config: MakeConfig, noisy: nn.Module) -> None:
    config = make_config(total_steps=200)
    api.run(config, noisy, out=tmp_path / "run")
    longer = replace(config, train=replace(config.train, total_steps=300))
    assert api.run(longer, noisy, out=tmp_path / "run", resume=True).summary["env_steps"] >= 300
    steps = [line["env_steps"] for line in RunFolder.open(tmp_path / "run").evaluations("final")]
    assert RunFolder.open(tmp_path / "run").config()["train"]["total_steps"] == 300  # for whoever resumes it again
    assert len(steps) == 1  # the comparison after 200 steps is no longer the end
    assert steps[0] >= 300
    shorter = replace(config, train=replace(config.train, total_steps=150))
    with pytest.raises(UserError, match="--total-steps"):
        api.run(shorter, noisy, out=tmp_path / "run", resume=True)


def test_a_run_is_not_resumed_with_a_base_of_other_parameters(
    tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    config = make_config(total_steps=300, save_every=100)
    with pytest.raises(KeyboardInterrupt):
        api.run(config, noisy, out=tmp_path / "run", display=Interrupted(200))
    other = copy.deepcopy(noisy)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(UserError, match="other parameters than the one this run was begun with"):
        api.run(config, other, out=tmp_path / "run", resume=True)
    api.run(config, noisy, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize("draws", [False, True])
def test_a_run_is_not_resumed_with_another_function(draws: bool, tmp_path: Path, make_config: MakeConfig) -> None:
    """Nobody can look into one, but it answers its first question as it did; not so where it draws its answers."""

    def towards(gain: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda obs: (gain * (obs[..., 2:] - obs[..., :2]) + draws * 0.1 * torch.randn(len(obs), 2)).tanh()

    config = make_config(total_steps=300, save_every=100)
    with pytest.raises(KeyboardInterrupt):
        api.run(config, towards(2.0), out=tmp_path / "run", display=Interrupted(200))
    with nullcontext() if draws else pytest.raises(UserError, match="answers otherwise than the one this run"):
        api.run(config, towards(1.9), out=tmp_path / "run", resume=True)
    if not draws:
        api.run(config, towards(2.0), out=tmp_path / "run", resume=True)


def _files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_mistaken_resume_leaves_a_finished_run_as_it_was(
    tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    config = make_config(total_steps=200)
    api.run(config, noisy, out=tmp_path / "run")
    before = _files(tmp_path / "run")
    other = copy.deepcopy(noisy)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    longer = replace(config, train=replace(config.train, total_steps=300))
    for base, message in ((other, "other parameters"), (lambda obs: obs[..., :1], "answered with shape")):
        with pytest.raises(UserError, match=message):
            api.run(longer, base, out=tmp_path / "run", resume=True)
        assert _files(tmp_path / "run") == before


def test_what_cannot_be_resumed(tmp_path: Path, make_config: MakeConfig, noisy: nn.Module) -> None:
    config = make_config(total_steps=200)
    with pytest.raises(UserError, match="needs the run folder"):
        api.run(config, noisy, resume=True)
    with pytest.raises(UserError, match="no run folder"):
        api.run(config, noisy, out=tmp_path / "nowhere", resume=True)
    with pytest.raises(KeyboardInterrupt):
        api.run(config, noisy, out=tmp_path / "run", display=Interrupted(100))
    with pytest.raises(UserError, match="before its first one"):
        api.run(config, noisy, out=tmp_path / "run", resume=True)
    other = replace(config, seed=1, envs=5)
    with pytest.raises(UserError, match="other settings of envs, seed"):
        api.run(other, noisy, out=tmp_path / "run", resume=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match="damaged"):
        api.run(config, noisy, out=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("elsewhere", "message"),
    [
        ({"device": "cuda"}, "the learner on cuda, and here it would be the CPU"),
        ({"simulation": "gpu"}, "its environments simulated on a GPU, and here it would be the CPU"),
    ],
)
def test_a_run_goes_on_only_in_a_place_of_the_same_kind(
    elsewhere: dict[str, str], message: str, tmp_path: Path, make_config: MakeConfig, noisy: nn.Module
) -> None:
    config, checkpoint = make_config(total_steps=400, save_every=100), tmp_path / "run" / "checkpoints" / "last.pt"
    with pytest.raises(KeyboardInterrupt):
        api.run(config, noisy, out=tmp_path / "run", display=Interrupted(350))
    state = snapshot.read(checkpoint, torch.device("cpu"))
    assert state["place"] == {"device": "cpu", "simulation": "cpu"}
    snapshot.write(checkpoint, state | {"place": state["place"] | elsewhere})
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    with pytest.raises(UserError, match=message):
        api.run(config, noisy, out=tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == before  # nothing is dropped


# ---- the file -------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(3), "b": {"c": [1.5, None, "x", True], "d": torch.tensor(float("nan"))}}
    snapshot.write(tmp_path / "last.pt", state)
    again = snapshot.read(tmp_path / "last.pt", torch.device("cpu"))
    assert str(again) == str(state)
    assert list(tmp_path.iterdir()) == [tmp_path / "last.pt"]


def test_the_replay_is_read_to_the_cpu_and_the_rest_to_the_learner(tmp_path: Path) -> None:
    """ "meta" in the place of a GPU."""
    inner = {"data": [torch.zeros(5), TensorDict({"state": torch.zeros(5, 2)}, [5])], "head": 3}
    snapshot.write(tmp_path / "last.pt", {"replay": inner, "env": dict(inner), "action": torch.zeros(2)})
    state = snapshot.read(tmp_path / "last.pt", torch.device("meta"))
    kinds = {
        name: [x.device.type for x in (state[name]["data"][0], state[name]["data"][1]["state"])]
        for name in ("replay", "env")
    }
    assert kinds == {"replay": ["cpu", "cpu"], "env": ["meta", "meta"]}
    assert state["action"].device.type == "meta"


def test_what_was_read_is_let_go_of(
    tmp_path: Path, make_config: MakeConfig, noisy: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, kept = make_config(total_steps=300, save_every=100), list[Any]()
    with pytest.raises(KeyboardInterrupt):
        api.run(config, noisy, out=tmp_path / "run", display=Interrupted(250))
    read = snapshot.read

    def watched(path: Path, device: torch.device) -> dict[str, Any]:
        state = read(path, device)
        kept.append(weakref.ref(state["replay"]["data"][0]))
        return state

    alive = list[bool]()

    class Watching(Silent):
        @contextmanager
        def stage(self, title: str, total: int) -> Iterator[Update]:
            gc.collect()
            alive.append(kept[0]() is not None)
            yield lambda *_, **__: None

    monkeypatch.setattr(snapshot, "read", watched)
    api.run(config, noisy, out=tmp_path / "run", resume=True, display=Watching())
    assert alive
    assert not any(alive)


class Evil:
    def __reduce__(self) -> Any:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("content", ["pickle", "cut", "empty"])
def test_a_file_that_is_no_checkpoint_is_refused_and_runs_no_code(tmp_path: Path, content: str) -> None:
    path = tmp_path / "last.pt"
    torch.save({"a": Evil()} if content == "pickle" else {"a": torch.zeros(1000)}, path)
    if content != "pickle":
        path.write_bytes(path.read_bytes()[: 1000 if content == "cut" else 0])
    with pytest.raises(UserError, match="damaged"):
        snapshot.read(path, torch.device("cpu"))


@pytest.mark.parametrize("how", ["plain", "hidden"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = tmp_path / "last.pt"
    snapshot.write(path, {"a": 1})

    def full(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            if how == "hidden":  # as torch's zip writer does
                raise RuntimeError("[enforce fail at inline_container.cc]")  # noqa: B904
            raise

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="disk is full"):
        snapshot.write(path, {"a": 2})
    monkeypatch.undo()
    assert snapshot.read(path, torch.device("cpu")) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
