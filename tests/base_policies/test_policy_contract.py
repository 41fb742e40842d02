"""What holds for every entry of `POLICIES`, with its defaults and the switches it has."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import parameter_hash
from policy_decorator.base_policies.diffusion import DiffusionConfig
from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.imitate import ImitateConfig, Imitator, imitate
from policy_decorator.base_policies.windows import horizon_of
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.encoders import EncoderConfig
from policy_decorator.envs.images import together
from policy_decorator.errors import UserError
from policy_decorator.memory import ask, session

OBS, ACTION = 6, 3
SHAPES, EYES = {"rgb": (6, 8, 8), "depth": (2, 8, 8)}, EncoderConfig(channels=(4, 8), last_channels=8, features=16)
SMALL = {"diffusion": DiffusionConfig(horizon=8, widths=(16, 32))}  # of those that take seconds otherwise
KINDS = [name for name, entry in sorted(POLICIES.items()) if entry.eyes != "must"]
# VINN has another policy's eyes, which are trained already: see test_seeing.py.
KINDS += [f"{name} with eyes" for name, entry in sorted(POLICIES.items()) if entry.eyes != "cannot" and name != "vinn"]


def built(kind: str, **changes: Any) -> Imitator:
    name, _, seeing = kind.partition(" ")
    cfg = SMALL.get(name) or POLICIES[name].config()
    cfg = dataclasses.replace(cfg, **{field: value for field, value in changes.items() if hasattr(cfg, field)})
    torch.manual_seed(0)
    policy = build(name, OBS, ACTION, cfg, **({"shapes": SHAPES, "eyes": EYES} if seeing else {}))
    policy.fit_statistics(demos(seeing=bool(seeing)), seed=0)
    return policy


def windows(policy: Imitator, rows: int, scale: float = 1.0) -> Any:
    state = torch.randn(rows, policy.context, OBS) * scale
    if not hasattr(policy, "shapes"):
        return state
    rgb = torch.randint(256, (rows, policy.context, *SHAPES["rgb"]), dtype=torch.uint8)
    depth = torch.randint(2000, (rows, policy.context, *SHAPES["depth"]), dtype=torch.int16)
    return together({"state": state, "rgb": rgb, "depth": depth}, ndim=2)


def demos(seeing: bool = False) -> Demonstrations:
    rng = np.random.default_rng(0)
    return Demonstrations(
        task="toy/reach",
        observations=rng.normal(size=(40, OBS)).astype(np.float32),
        actions=rng.uniform(-1, 1, (40, ACTION)).astype(np.float32),
        success=np.ones(40, dtype=bool),
        lengths=np.array([25, 15]),
        seeds=np.arange(2),
        source="a test",
        details={},
        pictures={
            "rgb": rng.integers(0, 256, (40, *SHAPES["rgb"]), dtype=np.uint8),
            "depth": rng.integers(0, 2000, (40, *SHAPES["depth"]), dtype=np.int16),
        }
        if seeing
        else {},
    )


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest) -> Imitator:
    return built(request.param)


def test_entry_and_attributes(policy: Imitator) -> None:
    entry = next(entry for entry in POLICIES.values() if type(policy.cfg) is entry.config)
    assert POLICIES[entry.name] is entry
    assert entry.summary
    assert dataclasses.is_dataclass(entry.config)
    assert (policy.obs_size, policy.action_size) == (OBS, ACTION)
    assert policy.cfg == SMALL.get(entry.name, entry.config())


@pytest.mark.parametrize("rows", [1, 4])
def test_act(policy: Imitator, rows: int) -> None:
    actions = policy.act(windows(policy, rows, 100))
    assert actions.shape == (rows, policy.chunk, ACTION)
    assert actions.dtype == torch.float32
    assert not actions.requires_grad
    assert actions.abs().max() <= 1
    assert as_policy(policy, ACTION) is policy


def test_loss_trains_every_parameter_and_acting_none(policy: Imitator) -> None:
    assert isinstance(policy, torch.nn.Module)
    before = parameter_hash(policy)
    policy.act(windows(policy, 2))
    assert parameter_hash(policy) == before
    policy.loss(windows(policy, 64), torch.rand(64, horizon_of(policy), ACTION)).backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    groups = [parameter for group in policy.parameter_groups(0.1) for parameter in group["params"]]
    assert sorted(map(id, groups)) == sorted(map(id, policy.parameters()))


def test_same_seed_same_actions(policy: Imitator) -> None:
    window = windows(policy, 3)
    answers = []
    for _ in range(2):
        torch.manual_seed(7)
        answers.append(ask(session(policy), window))
    assert torch.equal(*answers)


@pytest.mark.parametrize("training", [True, False])
def test_acting_keeps_the_training_flag(policy: Imitator, training: bool) -> None:
    policy.train(training)
    policy.act(windows(policy, 1))
    assert isinstance(policy, torch.nn.Module)
    assert all(module.training is training for module in policy.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_answered_alike_whatever_the_other_rows_hold(kind: str) -> None:
    policy = built(kind)
    window = windows(policy, 5)
    other = torch.cat([window[:2], windows(policy, 3)])
    torch.manual_seed(7)
    answer = ask(session(policy), window)
    torch.manual_seed(7)
    torch.testing.assert_close(ask(session(policy), other)[:2], answer[:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "diffusion" not in kind])  # whose noise is its place's
def test_rows_do_not_influence_each_other(kind: str) -> None:
    policy = built(kind, dropout_at_inference=False, head="mse")
    window = windows(policy, 5)
    alone = torch.cat([ask(session(policy), row[None]) for row in window])
    torch.testing.assert_close(ask(session(policy), window), alone, rtol=1e-4, atol=1e-5)


def test_imitation_lowers_the_loss(policy: Imitator) -> None:
    rows: list[float] = []
    cfg = ImitateConfig(steps=30, batch_size=32, lr=1e-3, eval_every=3)
    imitate(
        policy,
        demos(seeing=hasattr(policy, "shapes")),
        cfg,
        evaluate=lambda p, s: s / 100,
        progress=lambda s, n, row: rows.append(row["loss"]),
    )
    assert rows[-1] < 0.95 * rows[0]


def test_unknown_name_and_foreign_config() -> None:
    with pytest.raises(UserError, match="Did you mean 'bet'"):
        build("bett", OBS, ACTION)
    with pytest.raises(UserError, match="needs a MLPConfig, got a BeTConfig"):
        build("mlp", OBS, ACTION, BeTConfig())
