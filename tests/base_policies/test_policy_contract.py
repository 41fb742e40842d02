"""What holds for every entry of `POLICIES`, with its defaults and the switches it has."""

import dataclasses

import numpy as np
import pytest
import torch

from policy_decorator.base_policies import POLICIES, build
from policy_decorator.base_policies.bet import BeTConfig
from policy_decorator.base_policies.checkpoint import parameter_hash
from policy_decorator.base_policies.external import as_policy
from policy_decorator.base_policies.imitate import ImitateConfig, Imitator, imitate
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError
from policy_decorator.memory import ask, session

OBS, ACTION = 6, 3


def demos() -> Demonstrations:
    rng = np.random.default_rng(0)
    return Demonstrations(
        task="toy",
        observations=rng.normal(size=(40, OBS)).astype(np.float32),
        actions=rng.uniform(-1, 1, (40, ACTION)).astype(np.float32),
        success=np.ones(40, dtype=bool),
        lengths=np.array([25, 15]),
        seeds=np.arange(2),
        source="a test",
        details={},
    )


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> Imitator:
    torch.manual_seed(0)
    policy = build(request.param, OBS, ACTION)
    policy.fit_statistics(demos(), seed=0)
    return policy


def test_entry_and_attributes(policy: Imitator) -> None:
    entry = next(entry for entry in POLICIES.values() if type(policy.cfg) is entry.config)
    assert POLICIES[entry.name] is entry
    assert entry.summary
    assert dataclasses.is_dataclass(entry.config)
    assert (policy.obs_size, policy.action_size) == (OBS, ACTION)
    assert policy.cfg == entry.config()


@pytest.mark.parametrize("rows", [1, 4])
def test_act(policy: Imitator, rows: int) -> None:
    actions = policy.act(torch.randn(rows, policy.context, OBS) * 100)
    assert actions.shape == (rows, policy.chunk, ACTION)
    assert actions.dtype == torch.float32
    assert not actions.requires_grad
    assert actions.abs().max() <= 1
    assert as_policy(policy, ACTION) is policy


def test_loss_trains_every_parameter_and_acting_none(policy: Imitator) -> None:
    assert isinstance(policy, torch.nn.Module)
    before = parameter_hash(policy)
    policy.act(torch.randn(2, policy.context, OBS))
    assert parameter_hash(policy) == before
    policy.loss(torch.randn(64, policy.context, OBS), torch.rand(64, policy.context, ACTION)).backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    groups = [parameter for group in policy.parameter_groups(0.1) for parameter in group["params"]]
    assert sorted(map(id, groups)) == sorted(map(id, policy.parameters()))


def test_same_seed_same_actions(policy: Imitator) -> None:
    window = torch.randn(3, policy.context, OBS)
    answers = []
    for _ in range(2):
        torch.manual_seed(7)
        answers.append(ask(session(policy), window))
    assert torch.equal(*answers)


@pytest.mark.parametrize("training", [True, False])
def test_acting_keeps_the_training_flag(policy: Imitator, training: bool) -> None:
    policy.train(training)
    policy.act(torch.zeros(1, policy.context, OBS))
    assert isinstance(policy, torch.nn.Module)
    assert all(module.training is training for module in policy.modules())


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_rows_do_not_influence_each_other(name: str) -> None:
    cfg = POLICIES[name].config()
    quiet = {"dropout_at_inference": False, "head": "mse"}  # so that answers can be compared
    cfg = dataclasses.replace(cfg, **{name: value for name, value in quiet.items() if hasattr(cfg, name)})
    policy = build(name, OBS, ACTION, cfg)
    policy.fit_statistics(demos())
    window = torch.randn(5, policy.context, OBS)
    alone = torch.cat([ask(session(policy), row.unsqueeze(0)) for row in window])
    torch.testing.assert_close(ask(session(policy), window), alone, rtol=1e-4, atol=1e-5)


def test_imitation_lowers_the_loss(policy: Imitator) -> None:
    rows: list[float] = []
    cfg = ImitateConfig(steps=30, batch_size=32, lr=1e-3, eval_every=3)
    imitate(
        policy,
        demos(),
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
