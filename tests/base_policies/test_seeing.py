"""Policies that look at pictures: built, trained, saved, refused, and blind without their encoder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy, parameter_hash, policy_card, save_policy
from policy_decorator.base_policies.imitate import ImitateConfig, imitate
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.base_policies.seeing import CNNConfig, SeeingPolicy
from policy_decorator.base_policies.vinn import VINNConfig
from policy_decorator.cli import main
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.record import record_expert
from policy_decorator.demos.replayed import with_pictures
from policy_decorator.encoders import EncoderConfig
from policy_decorator.envs import get_task
from policy_decorator.envs.images import together
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import UserError
from policy_decorator.evaluation import VALIDATION, run_episodes

TOY = get_task("toy/reach:rgb")
SHAPES = TOY.shows.shapes if TOY.shows else {}
EYES = EncoderConfig((16, 32), 32, features=64, shift=1)


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    assert TOY.flat is not None
    return with_pictures(record_expert(TOY.flat, 200, seed=3_000_000_000, noise=0.3), TOY)


def cnn(cfg: CNNConfig | None = None) -> SeeingPolicy:
    torch.manual_seed(0)
    policy = build("cnn", 2, 2, cfg, shapes=SHAPES, eyes=EYES)
    assert isinstance(policy, SeeingPolicy)
    return policy


def some_frames(*batch: int) -> Any:
    rgb = torch.randint(256, (*batch, *SHAPES["rgb"]), dtype=torch.uint8)
    return together({"state": torch.randn(*batch, 2), "rgb": rgb}, ndim=len(batch))


@pytest.mark.slow
def test_a_cnn_learns_from_pictures_and_not_without_them(
    demos: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, cfg = make_vector(TOY, 50), ImitateConfig(steps=300, batch_size=128, lr=1e-3, eval_every=10_000)
    seeing = cnn()
    imitate(seeing, demos, cfg)
    assert run_episodes(env, seeing, 100, VALIDATION).rate > 0.8
    blind = cnn()
    monkeypatch.setattr(blind.encoder.project, "forward", lambda x: 0 * x[:, : EYES.features])  # nothing to be seen
    imitate(blind, demos, cfg)
    assert run_episodes(env, blind, 100, VALIDATION).rate < 0.3


def test_pictures_stay_small_until_they_are_looked_at(demos: Demonstrations) -> None:
    seen: list[Tensor] = []

    class Looking(SeeingPolicy):
        def loss(self, window: Any, actions: Tensor) -> Tensor:
            seen.append(window["rgb"])
            assert window.batch_size == actions.shape[:2] == (7, 3)
            return super().loss(window, actions)

    policy = Looking(CNNConfig(context=3), 2, 2, POLICIES["cnn"].build, SHAPES, EYES)
    imitate(policy, demos, ImitateConfig(steps=2, batch_size=7))
    assert [x.dtype for x in seen] == [torch.uint8] * 2


def test_training_shifts_and_acting_does_not() -> None:
    policy, window = cnn(), some_frames(4, 1)
    assert torch.equal(policy.act(window), policy.act(window))
    losses = {policy.loss(window, torch.zeros(4, 1, 2)).item() for _ in range(8)}
    assert len(losses) > 4


def test_embedding_is_state_and_features() -> None:
    policy, frames = cnn(), some_frames(4)
    embedded = policy.embed(frames)
    assert embedded.shape == (4, 2 + 64)
    assert torch.equal(embedded[:, :2], frames["state"])
    assert not embedded.requires_grad


def test_only_the_state_is_standardised(demos: Demonstrations) -> None:
    policy = cnn()
    policy.fit_statistics(demos)
    torch.testing.assert_close(policy.standardize.mean, torch.from_numpy(demos.observations.mean(0)))
    assert policy.policy.cfg == dataclasses.replace(CNNConfig(), standardize_obs=False)
    assert policy.cfg == CNNConfig()
    assert isinstance(cnn(CNNConfig(standardize_obs=False)).standardize, torch.nn.Identity)


# ---- on disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "cfg"), [("cnn", CNNConfig(width=8)), ("bet", BeTConfig(clusters=3, width=8))])
def test_a_policy_with_eyes_comes_back_bit_identical(name: str, cfg: Any, tmp_path: Path) -> None:
    policy = build(name, 2, 2, cfg, shapes=SHAPES, eyes=EYES)
    save_policy(policy, tmp_path, details={"task": TOY.name})
    assert policy_card(tmp_path)["format"] == 2
    loaded = load_policy(tmp_path)
    assert isinstance(loaded, SeeingPolicy)
    assert (loaded.cfg, loaded.eyes, loaded.shapes) == (cfg, EYES, SHAPES)
    assert parameter_hash(loaded) == parameter_hash(policy)
    window = some_frames(3, policy.context)
    answers = []
    for asked in (policy, loaded):
        torch.manual_seed(0)
        answers.append(asked.act(window))
    assert torch.equal(*answers)


def test_a_policy_without_eyes_is_saved_as_before(tmp_path: Path) -> None:
    save_policy(build("mlp", 3, 2), tmp_path, details={})
    assert policy_card(tmp_path)["format"] == 1
    assert not {"shapes", "eyes"} & set(policy_card(tmp_path))


def test_a_card_with_a_hole_is_refused(tmp_path: Path) -> None:
    save_policy(cnn(), tmp_path, details={})
    card = json.loads((tmp_path / "policy.json").read_text())
    del card["shapes"]
    (tmp_path / "policy.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="does not build a 'cnn' policy"):
        load_policy(tmp_path)


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_built() -> None:
    with pytest.raises(UserError, match="cnn looks at pictures, and here are none"):
        build("cnn", 2, 2)
    with pytest.raises(UserError, match="needs a CNNConfig, got a MLPConfig"):
        build("cnn", 2, 2, MLPConfig(), shapes=SHAPES)
    with pytest.raises(UserError, match="needs a MLPConfig, got a CNNConfig"):
        build("mlp", 2, 2, CNNConfig())


def test_other_pictures_than_the_policy_looks_at(demos: Demonstrations) -> None:
    with pytest.raises(UserError, match="the policy looks at none"):
        imitate(build("mlp", 2, 2), demos, ImitateConfig(steps=1))
    with pytest.raises(UserError, match="show no pictures, the policy looks at"):
        imitate(cnn(), dataclasses.replace(demos, pictures={}), ImitateConfig(steps=1))


@pytest.fixture
def recorded(demos: Demonstrations, tmp_path: Path) -> Path:
    demos.first(20).save(tmp_path / "demos.h5")
    return tmp_path


def test_commands(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--demos", str(recorded / "demos.h5"), "--out", str(recorded / "policy"), "--steps", "5", "--quiet"]
    small = ["--channels", "4", "8", "--features", "16", "--shift", "1", "--eval-episodes", "4", "--workers", "0"]
    assert main(["imitate", "cnn", *given, *small, "--batch-size", "16"]) == 0
    card = policy_card(recorded / "policy")
    assert (card["shapes"], card["task"]) == ({"rgb": [3, 16, 16]}, "toy/reach:rgb")
    assert card["eyes"]["channels"] == [4, 8]
    capsys.readouterr()
    assert main(["evaluate", str(recorded / "policy"), "--episodes", "4", "--workers", "0", "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "toy/reach:rgb"
    again = ["demos", TOY.name, "--from-policy", str(recorded / "policy"), "--keep-failures", "--episodes", "2"]
    assert main([*again, "--out", str(recorded / "own.h5"), "--quiet"]) == 0
    assert len(Demonstrations.load(recorded / "own.h5").pictures["rgb"])
    wrong = ["demos", "toy/reach", *again[2:], "--out", str(recorded / "no.h5"), "--quiet"]
    assert main(wrong) != 0
    assert "looks at" in capsys.readouterr().err


def test_vinn_sees_through_the_eyes_of_a_trained_policy(demos: Demonstrations, tmp_path: Path) -> None:
    trained = cnn()
    imitate(trained, demos, ImitateConfig(steps=150, batch_size=128, lr=1e-3, eval_every=10_000))
    save_policy(trained, tmp_path / "cnn", details={})
    cfg = VINNConfig(representation="eyes", encoder=str(tmp_path / "cnn"), neighbours=1)
    policy = build("vinn", 2, 2, cfg, shapes=SHAPES)
    imitate(policy, demos, ImitateConfig(steps=10))
    assert isinstance(policy, SeeingPolicy)
    assert parameter_hash(policy.encoder) == parameter_hash(trained.encoder)
    shown: Any = {name: torch.from_numpy(x) for name, x in demos.frames(slice(40, 50)).items()}
    windows = together({name: x[:, None] for name, x in shown.items()}, ndim=2)
    torch.testing.assert_close(policy.act(windows)[:, 0], torch.from_numpy(demos.actions[40:50]))  # its own neighbour
    windows["rgb"].copy_(windows["rgb"].flip(0))  # other pictures, other neighbours
    assert not torch.equal(policy.act(windows)[:, 0], torch.from_numpy(demos.actions[40:50]))
    torch.testing.assert_close(policy.act(windows[:3]), policy.act(windows)[:3])  # rows do not influence each other
    save_policy(policy, tmp_path / "vinn", details={})
    loaded = load_policy(tmp_path / "vinn")
    assert torch.equal(loaded.act(windows), policy.act(windows))


def test_vinn_with_nobodys_eyes_is_refused(demos: Demonstrations, tmp_path: Path) -> None:
    save_policy(build("mlp", 2, 2, MLPConfig(width=4)), tmp_path / "mlp", details={})
    for cfg, says in (
        (VINNConfig(), "--representation eyes"),
        (VINNConfig(representation="eyes", queue=3, neighbours=4), "no queue"),
        (VINNConfig(representation="eyes", encoder=str(tmp_path / "mlp")), "sees no pictures"),
    ):
        with pytest.raises(UserError, match=says):
            build("vinn", 2, 2, cfg, shapes=SHAPES)
    with pytest.raises(UserError, match="--encoder FOLDER"):
        build("vinn", 2, 2, VINNConfig(representation="eyes"), shapes=SHAPES).fit_statistics(demos)
    with pytest.raises(UserError, match=":rgb"):
        build("vinn", 4, 2, VINNConfig(representation="eyes"))
