"""Policies on disk: bit-identical back, and every way a folder can be broken."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import load_policy, parameter_hash, policy_card, save_policy
from policy_decorator.base_policies.diffusion import DiffusionConfig
from policy_decorator.base_policies.external import CallablePolicy
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.base_policies.rnn import RNNConfig
from policy_decorator.base_policies.vinn import VINNConfig
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError

CONFIGS: dict[str, Any] = {
    "mlp": MLPConfig(width=8, context=2),
    "bet": BeTConfig(context=3, clusters=3, layers=1, heads=2, width=8, gpt_output=8, standardize_obs=True),
    "diffusion": DiffusionConfig(horizon=8, widths=(8, 16), step_size=8, standardize_obs=True),
    "rnn": RNNConfig(width=8, layers=1, head="mse"),
    "vinn": VINNConfig(neighbours=2, bet=BeTConfig(context=2, layers=1, heads=2, width=8, gpt_output=8)),
}


def _demos() -> Demonstrations:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(20, 3)).astype(np.float32), rng.uniform(-1, 1, (20, 2)).astype(np.float32)
    return Demonstrations("toy", *arrays, np.ones(20, dtype=bool), np.array([12, 8]), np.arange(2), "a test", {})


def saved(folder: Path) -> Path:
    save_policy(build("mlp", 3, 2, CONFIGS["mlp"]), folder, details={"task": "toy", "note": [1, 2]})
    return folder


def test_every_policy_is_here_or_has_eyes() -> None:
    assert sorted(CONFIGS) == sorted(name for name, entry in POLICIES.items() if entry.eyes != "must")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_policy_comes_back_bit_identical(name: str, tmp_path: Path) -> None:
    policy = build(name, 3, 2, CONFIGS[name])
    policy.fit_statistics(_demos())
    with torch.no_grad():
        for tensor in policy.state_dict().values():
            tensor.add_(torch.rand_like(tensor))  # every buffer, too, is away from its initial value
    save_policy(policy, tmp_path / "new" / "policy", details={"task": "toy"})
    state = torch.get_rng_state()
    loaded = load_policy(tmp_path / "new" / "policy")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(loaded) is type(policy)
    assert loaded.cfg == policy.cfg
    assert parameter_hash(loaded) == parameter_hash(policy)
    window = torch.randn(4, policy.context, 3)
    torch.manual_seed(0)
    expected = policy.act(window)
    torch.manual_seed(0)
    assert torch.equal(loaded.act(window), expected)


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    card = policy_card(saved(tmp_path))
    assert (card["name"], card["obs_size"], card["action_size"], card["task"]) == ("mlp", 3, 2, "toy")
    assert card["details"] == {"task": "toy", "note": [1, 2]}
    assert card["config"]["width"] == 8


def test_saving_replaces_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("kept")
    saved(tmp_path)
    policy = build("mlp", 3, 2, CONFIGS["mlp"])
    save_policy(policy, tmp_path, details={})
    assert parameter_hash(load_policy(tmp_path)) == parameter_hash(policy)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.txt",
        "policy.json",
        "policy.safetensors",
    ]


def test_the_hash_sees_any_bit_of_parameters_and_buffers() -> None:
    policy = build("bet", 3, 2, CONFIGS["bet"])
    assert isinstance(policy, torch.nn.Module)
    before = parameter_hash(policy)
    policy.train(False)
    policy.act(torch.zeros(2, 3, 3))
    assert parameter_hash(policy) == before
    for name in ("centres", "head.bias"):
        tensor = policy.state_dict()[name]
        original = tensor.flatten()[0].item()
        with torch.no_grad():
            tensor.view(-1)[0] = float(np.nextafter(np.float32(original), np.float32(9)))
            assert parameter_hash(policy) != before
            tensor.view(-1)[0] = original
    assert parameter_hash(policy) == before


def edit(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(card | changes))


def test_an_unknown_policy_is_answered_with_the_nearest(tmp_path: Path) -> None:
    edit(saved(tmp_path), name="mlpp")
    with pytest.raises(UserError, match="Did you mean 'mlp'"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"widht": 8}}, "does not build"),
        ({"config": {"width": "wide"}}, "does not build"),
        ({"config": {"width": 16, "context": 2}}, "cannot be read"),
        ({"config": 3}, "does not describe"),
        ({"obs_size": "many"}, "does not build"),
        ({"format": 99}, "format 99"),
        ({"parameters": "0"}, "is not the file"),
    ],
)
def test_a_card_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    edit(saved(tmp_path), **changes)
    with pytest.raises(UserError, match=message):
        load_policy(tmp_path)


@pytest.mark.parametrize(("file", "message"), [("policy.json", "holds no policy"), ("policy.safetensors", "missing")])
def test_a_missing_file(file: str, message: str, tmp_path: Path) -> None:
    (saved(tmp_path) / file).unlink()
    with pytest.raises(UserError, match=message):
        load_policy(tmp_path)


@pytest.mark.parametrize("file", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe nothing of the kind"])
def test_a_corrupt_file(file: str, content: bytes, tmp_path: Path) -> None:
    (saved(tmp_path) / file).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(tmp_path)


@pytest.mark.parametrize(("name", "bad"), [("standardize.mean", "nan"), ("standardize.std", "inf")])
def test_numbers_that_are_none(name: str, bad: str, tmp_path: Path) -> None:
    policy = build("mlp", 3, 2, CONFIGS["mlp"])
    cast(torch.nn.Module, policy).get_buffer(name)[1] = float(bad)
    save_policy(policy, tmp_path, details={})
    with pytest.raises(UserError, match=rf"{name} of .*policy\.safetensors is not finite"):
        load_policy(tmp_path)


def test_only_known_policies_and_plain_details_are_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can be saved, not a CallablePolicy"):
        save_policy(CallablePolicy(lambda obs: obs, 3), tmp_path, details={})  # pyright: ignore
    with pytest.raises(UserError, match="plain JSON"):
        save_policy(build("mlp", 3, 2), tmp_path, details={"when": object()})
    assert list(tmp_path.iterdir()) == []
