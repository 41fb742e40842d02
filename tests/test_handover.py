"""Which policy a run hands over: the base where nothing that was learned did as well in evaluation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from policy_decorator.base_policies import build
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.config import RefineConfig
from policy_decorator.envs.toy import BiasedController
from policy_decorator.experiments.presets import settings
from policy_decorator.handover import as_base
from policy_decorator.memory import ask
from policy_decorator.methods import settings_of
from policy_decorator.progress import Silent
from policy_decorator.refine import Refinement
from policy_decorator.rl.ppo import PPOConfig
from policy_decorator.rl.sac import SACConfig

MakeConfig = Callable[..., RefineConfig]


def _handed_over(session: Refinement, rates: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """The step of the policy that is handed over, and that, if the base's evaluation and those of a run say `rates`."""
    module: nn.Module = session._residual
    for k, rate in enumerate(rates):
        outcome = type("Outcome", (), {"rate": rate})
        session.run.collector.step = 100 * k
        with monkeypatch.context() as patch:
            patch.setattr(session, "episodes", lambda *_, outcome=outcome, **__: outcome)
            patch.setattr(session, "_tell", lambda _: None)
            session.evaluate() if k else session.check_base(force=False)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1 * torch.randn_like(p))
    refined, _ = session.compare()
    session.close()
    return refined.summary["kept_checkpoint_step"], refined.policy


@pytest.mark.parametrize(
    ("keep", "rates", "step"),
    [
        ("best", [0.5, 0.2, 0.4], 0),
        ("best", [0.5, 0.2, 0.5], 200),  # of equals what was learned
        ("best", [0.5, 0.6, 0.4], 100),
        ("learned", [0.5, 0.2, 0.4], 200),
        ("last", [0.5, 0.6, 0.4], 200),
    ],
)
@pytest.mark.parametrize("learner", ["sac", "td3", "ppo"])
def test_a_residual(
    learner: Any, keep: Any, rates: list[float], step: int, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(keep=keep)
    learn: Any = replace(config.learn, learner=learner, n_step=1, base_only_warmup=True, ppo=PPOConfig(rollout=4))
    learn = replace(learn, nets=replace(learn.nets, head_gain=1.0))
    session = Refinement(replace(config, learn=learn), BiasedController(noise=0.0), None)
    kept, policy = _handed_over(session, rates, monkeypatch)
    assert kept == step
    windows = torch.rand(20, 1, 4) * 2 - 1
    assert torch.equal(ask(policy, windows), ask(BiasedController(noise=0.0), windows)) == (step == 0)


def test_what_is_fine_tuned(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base: Any = build("mlp", 4, 2, MLPConfig(width=16, depth=1))
    config = make_config(warmup_steps=0)
    learn = replace(settings_of("ppo-finetuning", config.learn), ppo=PPOConfig(rollout=4), sac=SACConfig(lr=1e-3))
    session = Refinement(replace(config, method="ppo-finetuning", learn=learn), base, None)
    kept, policy = _handed_over(session, [0.5, 0.2, 0.4], monkeypatch)
    windows = torch.rand(20, 1, 4) * 2 - 1
    assert kept == 0
    assert torch.equal(ask(policy, windows), base.act(windows))


def test_an_actor_that_acts_alone_is_never_the_base(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    config = replace(config, method="jsrl", learn=settings_of("jsrl", config.learn))
    session = Refinement(config, BiasedController(noise=0.0), None)
    assert as_base(session.run.policy) is None  # pyright: ignore[reportArgumentType]
    assert _handed_over(session, [0.5, 0.2, 0.1], monkeypatch)[0] == 100


def test_a_run_says_so_and_nothing_is_gained_or_lost(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    display = Silent()
    monkeypatch.setattr(display, "say", said.append)
    session = Refinement(make_config(), BiasedController(noise=0.0), None, display=display)
    monkeypatch.setattr(session.run.policy.actor.net.head.bias, "data", torch.ones(1, 1, 4))  # pyright: ignore
    session.check_base(force=True)
    session.best.success = 2.0  # nothing is better than that
    session.evaluate()
    refined, comparison = session.compare()
    assert any("the base is handed over" in text for text in said)
    assert (refined.summary["gain"], refined.summary["fixed"], refined.summary["broken"]) == (0, 0, 0)
    np.testing.assert_array_equal(comparison.base.episodes.env_steps, comparison.refined.episodes.env_steps)


def test_presets() -> None:
    """The paper's run shows what was learned; the others are for users."""
    kept = {name: settings(name, "adroit/door").keep for name in ("paper", "quick", "fast", "ppo")}
    assert kept == {"paper": "learned", "quick": "best", "fast": "best", "ppo": "best"}
