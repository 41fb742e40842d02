"""The refined policy as a user holds it: act, reset, save, load."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policy_decorator import api
from policy_decorator.base_policies import build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import save_policy
from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.imitate import Imitator
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.base_policies.networks import parameters_of
from policy_decorator.base_policies.rnn import RNNConfig
from policy_decorator.chunks import step_by_step
from policy_decorator.decorator import DecoratedPolicy, Residual
from policy_decorator.envs.toy import MAX_STEPS, TASKS, ReachEnv
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.errors import UserError
from policy_decorator.refined import Refined
from policy_decorator.rl.nets import Critics, NetConfig, TanhGaussian
from policy_decorator.rl.selection import Selection, ValueSelected

TASK = "toy/reach-gym"


def _refined(base: Any, sees: Any = "obs", **cfg: Any) -> Refined:
    """An untrained residual, but a loud one."""
    actor = TanhGaussian(4 if sees == "obs" else 6, (1, 2), NetConfig(width=16, depth=2, head_gain=3.0, **cfg))
    actor.standardize.set(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6, 0.7, 0.8]))
    return Refined(DecoratedPolicy(base, actor, Residual(0.4, sees)), TASK, 4, {"gain": 0.25, "task": TASK})


def _base(kind: str) -> Imitator:
    if kind == "mlp":
        return build("mlp", 4, 2, MLPConfig(width=16, depth=1, context=3))
    cfg = BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=8, dropout_at_inference=False)
    policy = build("bet", 4, 2, cfg)
    assert isinstance(policy, nn.Module)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return policy


class Differences:
    """A base that needs its three frames: (B, 3, 4) -> the newest position minus the oldest, and more."""

    context = 3

    def act(self, window: Tensor) -> Tensor:
        return (window[:, -1, :2] - 2 * window[:, 0, :2] + 0.5 * window[:, 1, 2:])[:, None]


class Thirds:
    """A base that answers with three actions at a time, the first the position now."""

    context, chunk = 2, 3

    def act(self, window: Tensor) -> Tensor:
        pos, goal = window[:, -1].chunk(2, dim=-1)
        return torch.stack([pos, 0.5 * goal, 0.3 * (pos - window[:, 0, 2:])], dim=1)


# ---- act ------------------------------------------------------------------------------------------------------


def test_one_observation_or_rows_numpy_or_torch() -> None:
    rows = torch.randn(5, 4)
    from_torch = _refined(Differences())
    expected = from_torch.act(rows)
    assert expected.shape == (5, 2)
    torch.testing.assert_close(expected, from_torch.policy.act(rows[:, None].repeat(1, 3, 1))[:, 0].clamp(-1, 1))
    assert expected.abs().max() <= 1

    for k in range(5):
        from_torch.reset()
        one = from_torch.act(rows[k])
        assert isinstance(one, Tensor)
        torch.testing.assert_close(one, expected[k])
        from_torch.reset()
        array = from_torch.act(rows[k].numpy())
        assert isinstance(array, np.ndarray)
        assert (array.shape, array.dtype) == ((2,), np.float32)
        np.testing.assert_allclose(array, expected[k], rtol=1e-5, atol=1e-6)
    from_torch.reset()
    double = from_torch(rows.double().numpy())  # it is callable, and precision is the caller's affair
    assert double.shape == (5, 2)
    np.testing.assert_allclose(double, expected, rtol=1e-5, atol=1e-6)
    assert not from_torch.act(rows).requires_grad


def test_actions_are_clipped_as_the_environments_do() -> None:
    refined = _refined(Differences())
    action = refined.act(10 * torch.randn(100, 4))
    assert action.abs().max() == 1.0
    assert (action.abs() < 1).any()


def test_the_frames_it_keeps_are_those_of_the_vector_environments() -> None:
    """A loop with `act` and `reset` in a plain environment goes as the package's own evaluation does."""
    refined = _refined(Differences())
    vector = SimulatorVector(TASKS[TASK], 1, context=3)
    window, env, episodes = vector.reset(21), ReachEnv(), 0
    obs, _ = env.reset(seed=21)
    refined.reset()
    for _ in range(4 * MAX_STEPS):
        np.testing.assert_allclose(obs, window[0, -1], atol=1e-5)
        action = refined.act(obs)
        chunk = refined.policy.act(window)
        np.testing.assert_allclose(action, chunk[0, 0].clamp(-1, 1), atol=1e-4)
        obs, *_ = env.step(action)
        out = vector.step(chunk)
        window = out.window
        if out.done[0]:
            episodes += 1
            obs, _ = env.reset(seed=21 + episodes)
            refined.reset()
    assert episodes >= 3


def test_rows_keep_frames_of_their_own_and_reset_forgets_them() -> None:
    refined, steps = _refined(Differences()), torch.randn(6, 5, 4)
    together = torch.stack([refined.act(rows) for rows in steps])
    for k in range(5):
        refined.reset()
        alone = torch.stack([refined.act(rows[k]) for rows in steps])
        torch.testing.assert_close(alone, together[:, k])
    refined.reset()
    again = refined.act(steps[0])
    torch.testing.assert_close(again, together[0])
    assert not torch.allclose(refined.act(steps[0]), together[1])


@pytest.mark.parametrize("kind", ["frames", "recurrent", "chunks"])
def test_rows_whose_episode_is_over_begin_alone(kind: str) -> None:
    """As environments that reset themselves need it: windows, memories and queues of the other rows go on."""
    if kind == "frames":
        base: Any = Differences()
    elif kind == "recurrent":
        base = build("rnn", 4, 2, RNNConfig(width=16, head="mse"))
    else:
        base = step_by_step(Thirds())
    together, steps = _refined(base), torch.randn(8, 5, 4)
    actions = []
    for t, rows in enumerate(steps):
        if t == 2:
            together.reset(np.array([False, True, False, False, True]))
        elif t == 4:
            together.reset([1])
        actions.append(together.act(rows))
    for row, begins in ((0, {0}), (1, {0, 2, 4}), (4, {0, 2})):
        alone = _refined(base)
        alone.policy.actor.load_state_dict(together.policy.actor.state_dict())  # pyright: ignore
        for t, rows in enumerate(steps):
            if t in begins:
                alone.reset()
            torch.testing.assert_close(alone.act(rows[row]), actions[t][row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [[5], [-1], np.ones(4, bool), 7])
def test_rows_that_are_not_there_cannot_begin(rows: Any) -> None:
    refined = _refined(Differences())
    refined.reset(rows)  # nothing is known of any row yet
    refined.act(torch.randn(5, 4))
    with pytest.raises(UserError, match="had 5 rows"):
        refined.reset(rows)


def test_another_number_of_rows_begins_new_episodes() -> None:
    refined, rows = _refined(Differences()), torch.randn(4, 4)
    first = refined.act(rows)
    refined.act(rows[:1])
    torch.testing.assert_close(refined.act(rows), first)


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((2, 5)), np.zeros(()), np.zeros((1, 1, 4)), torch.zeros(8)])
def test_a_wrong_size_is_refused(obs: Any) -> None:
    with pytest.raises(UserError, match="observations of size 4"):
        _refined(Differences()).act(obs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_and_leave_the_frames_alone(bad: float) -> None:
    refined, other = _refined(Differences()), np.ones(4, np.float32)
    obs = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    refined.act(obs)
    expected = refined.act(other)
    refined.reset()
    refined.act(obs)
    with pytest.raises(UserError, match="not finite"):
        refined.act(np.array([0, 0, bad, 0], np.float32))
    np.testing.assert_array_equal(refined.act(other), expected)


# ---- save and load --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sees", ["obs", "obs+base"])
@pytest.mark.parametrize("kind", ["mlp", "bet"])
def test_what_is_loaded_acts_the_same(kind: str, sees: str, tmp_path: Path) -> None:
    refined = _refined(_base(kind), sees, log_std_min=-5.0)
    refined.save(tmp_path / "run" / "refined")
    for place in (tmp_path / "run" / "refined", tmp_path / "run", str(tmp_path / "run")):
        again = Refined.load(place)
        for obs in torch.randn(5, 7, 4):
            assert torch.equal(again.act(obs), refined.act(obs))
        refined.reset()
    assert (again.task, again.obs_size, again.summary) == (TASK, 4, {"gain": 0.25, "task": TASK})
    assert again.policy.composition == Residual(0.4, sees)  # pyright: ignore[reportArgumentType]
    assert not any(p.requires_grad for p in cast(nn.Module, again.policy.actor).parameters())
    again.save(tmp_path / "copy")  # and may be saved again
    assert (tmp_path / "copy" / "residual.safetensors").read_bytes() == (
        tmp_path / "run" / "refined" / "residual.safetensors"
    ).read_bytes()
    left = {p.relative_to(tmp_path / "copy").as_posix() for p in (tmp_path / "copy").rglob("*") if p.is_file()}
    assert left == {"residual.safetensors", "refined.json", "base/policy.json", "base/policy.safetensors"}


@pytest.mark.parametrize(("sees", "scored"), [("obs", "sum"), ("obs+base", "concat"), ("obs", "residual")])
def test_where_values_choose_the_critics_are_kept_too(sees: Any, scored: Any, tmp_path: Path) -> None:
    nets = NetConfig(width=16, depth=2, critics=3, head_gain=3.0, critic_layer_norm=True)
    residual = Residual(0.4, sees, scored)
    actor = TanhGaussian(6 if sees == "obs+base" else 4, (1, 2), nets)
    critics = Critics(4, 4 if scored == "concat" else 2, nets)
    critics.standardize.set(torch.randn(4), torch.rand(4))
    chosen = ValueSelected(actor, critics, Selection(residual, "mean"))
    refined = Refined(DecoratedPolicy(_base("mlp"), chosen, replace(residual, actor_sees="obs+base")), TASK, 4)
    refined.save(tmp_path)
    again = Refined.load(tmp_path)
    always = DecoratedPolicy(refined.policy.base, actor, residual)
    differs = 0
    for obs in torch.randn(5, 40, 4):
        again.reset()
        refined.reset()
        action = refined.act(obs)
        assert torch.equal(again.act(obs), action)
        differs += int((action != always.act(obs[:, None].repeat(1, 3, 1))[:, 0].clamp(-1, 1)).any(dim=1).sum())
    assert 0 < differs < 5 * 40
    assert not any(p.requires_grad for p in cast(nn.Module, again.policy.actor).parameters())
    again.save(tmp_path / "copy")
    for name in ("residual.safetensors", "refined.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / name).read_bytes()
    weights = load_file(tmp_path / "residual.safetensors")
    assert any(name.startswith("critic.") for name in weights)
    save_file({k: v for k, v in weights.items() if not k.startswith("critic.")}, tmp_path / "residual.safetensors")
    with pytest.raises(UserError, match="damaged"):
        Refined.load(tmp_path)


def test_a_base_of_ones_own_must_be_given_again(tmp_path: Path, steady: nn.Module) -> None:
    refined = _refined(steady)
    refined.save(tmp_path)
    assert not (tmp_path / "base").exists()
    with pytest.raises(UserError, match=r"load it with `Refined.load\(folder, policy=...\)`"):
        Refined.load(tmp_path)
    again = Refined.load(tmp_path, policy=steady)
    obs = torch.randn(9, 4)
    assert torch.equal(again.act(obs), refined.act(obs))
    function = Refined.load(tmp_path, policy=lambda obs: torch.zeros(len(obs), 2))
    assert (function.act(obs)).abs().max() <= 0.4  # of the residual alone


def test_a_base_may_be_given_by_its_place(tmp_path: Path) -> None:
    class Half(nn.Module):
        def forward(self, obs: Tensor) -> Tensor:
            return 0.5 * obs[:, :2]

    half: Any = Half()
    refined = _refined(as_policy(half, 2))
    refined.save(tmp_path / "refined")
    torch.jit.trace(half, torch.zeros(2, 4)).save(tmp_path / "half.pt")  # pyright: ignore
    obs = torch.randn(9, 4)
    wanted = refined.act(obs)
    assert torch.equal(Refined.load(tmp_path / "refined", policy=str(tmp_path / "half.pt")).act(obs), wanted)
    save_policy(_base("mlp"), tmp_path / "base", details={})
    assert not torch.equal(Refined.load(tmp_path / "refined", policy=tmp_path / "base").act(obs), wanted)
    with pytest.raises(UserError, match="holds no policy"):
        Refined.load(tmp_path / "refined", policy=str(tmp_path / "nowhere"))


def test_another_base_may_be_given(tmp_path: Path) -> None:
    refined = _refined(_base("mlp"))
    refined.save(tmp_path)
    obs = torch.randn(9, 4)
    assert not torch.equal(Refined.load(tmp_path, policy=Differences()).act(obs), Refined.load(tmp_path).act(obs))


def _damage(folder: Path, how: str) -> None:
    card = folder / "refined.json"
    match how:
        case "no folder":
            card.unlink()
        case "no json":
            card.write_text("{")
        case "newer":
            card.write_text(json.dumps(json.loads(card.read_text()) | {"format": 99}))
        case "cut":
            weights = folder / "residual.safetensors"
            weights.write_bytes(weights.read_bytes()[:200])
        case "no weights":
            (folder / "residual.safetensors").unlink()
        case "other shape":
            changed = json.loads(card.read_text())
            changed["nets"]["width"] = 32
            card.write_text(json.dumps(changed))
        case "no base":
            (folder / "base" / "policy.json").unlink()


@pytest.mark.parametrize("how", ["no folder", "no json", "newer", "cut", "no weights", "other shape", "no base"])
def test_a_damaged_folder_is_a_user_error(how: str, tmp_path: Path) -> None:
    _refined(_base("mlp")).save(tmp_path)
    _damage(tmp_path, how)
    with pytest.raises(UserError):
        Refined.load(tmp_path)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    _refined(_base("mlp")).save(tmp_path)
    before = torch.get_rng_state()
    Refined.load(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("given", ["folder", "object"])
def test_all_networks_of_a_refined_base_go_to_the_learners_device(
    given: str, tmp_path: Path, make_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "meta" in the place of a GPU."""
    refined = _refined(_base("mlp"))
    refined.save(tmp_path)
    twice = Refined(
        DecoratedPolicy(refined.policy, _refined(refined.policy).policy.actor, Residual(0.1, "obs")), TASK, 4
    )
    asked: list[Any] = []
    monkeypatch.setattr(api, "refine", lambda config, base, *_, **__: asked.append(base) or (None, None))
    api.run(make_config(TASK, device="meta"), tmp_path if given == "folder" else twice)
    policy: Any = asked[0]
    parts = [policy.actor, policy.base] if given == "folder" else [policy.actor, policy.base.actor, policy.base.base]
    for part in parts:
        assert {x.device.type for x in (*part.parameters(), *part.buffers())} == {"meta"}


def test_a_network_of_the_users_stays_where_it_is(
    make_config: Any, steady: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "refine", lambda *_, **__: (None, None))
    api.run(make_config(TASK, device="meta"), steady)
    assert {x.device.type for x in steady.parameters()} == {"cpu"}


def test_another_base_than_it_was_learned_on_is_noticed(tmp_path: Path) -> None:
    """Its network is hashed; a function without one cannot be told from another."""

    class Ones(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return self.value * torch.ones(len(obs), 2)

    base = as_policy(Ones(0.5), 2)
    refined = _refined(base)
    refined.summary["base_parameters_sha256"] = parameters_of(base)
    refined.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Refined.load(tmp_path, policy=Ones(0.5))
        Refined.load(tmp_path, policy=lambda obs: obs[:, :2])
    with pytest.warns(UserWarning, match="other parameters"):
        Refined.load(tmp_path, policy=Ones(0.6))


def test_an_observation_of_named_entries_is_told_what_to_do() -> None:
    with pytest.raises(UserError, match="make_env"):
        _refined(_base("mlp")).act({"a": np.zeros(2), "b": np.zeros(2)})  # pyright: ignore
