"""Policies that act without the base: what is asked, shown and saved."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from policy_decorator.base_policies import build
from policy_decorator.base_policies.mlp import MLPConfig
from policy_decorator.decorator import ProgressiveExploration
from policy_decorator.envs.toy import TASKS
from policy_decorator.envs.vector import SimulatorVector
from policy_decorator.errors import UserError
from policy_decorator.memory import session
from policy_decorator.methods import OffPolicyConfig, Problem
from policy_decorator.methods.alone import Alone, Nobody, Takeover, collector_alone, from_scratch, own_actions
from policy_decorator.methods.finetuned import FineTuned
from policy_decorator.refined import Refined
from policy_decorator.rl.demonstrations import Demonstrated, transitions
from policy_decorator.rl.nets import NetConfig, TanhGaussian
from policy_decorator.rollout import Collector

NETS = NetConfig(width=16, depth=2, head_gain=3.0)


def mlp(context: int = 1) -> Any:
    return build("mlp", 4, 2, MLPConfig(width=16, depth=1, context=context))


def problem(base: Any, **changes: Any) -> Problem:
    env = SimulatorVector(TASKS["toy/reach-gym"], 3, context=base.context)
    given: dict[str, Any] = {"obs_size": 4, "chunk": (1, 2), "capacity": 100, "warmup_steps": 0}
    return Problem(env=env, base=base, **(given | changes))


def test_nobody_is_asked_and_nothing_is_counted() -> None:
    cfg, p = OffPolicyConfig(nets=NETS), problem(mlp(context=2))
    collector = collector_alone(cfg, p)
    raw = torch.rand(3, 1, 2) - 0.5
    for _ in range(3):
        transition, _ = collector.decide(lambda obs: raw)
        torch.testing.assert_close(transition.raw, raw)
        assert (transition.base == 0).all()
    assert (collector.base_queries, collector.decisions) == (0, 9)
    assert session(Nobody((2, 3))).act(torch.rand(4, 1, 5), torch.arange(4)).shape == (4, 2, 3)


def test_a_window_is_seen_whole_where_that_is_asked() -> None:
    p = problem(mlp(context=3))
    seen = []

    def propose(obs: torch.Tensor) -> torch.Tensor:
        seen.append(obs)
        return torch.full((3, 1, 2), 0.5)

    collector = Collector(p.env, Nobody(p.chunk, 3), Takeover(), ProgressiveExploration(0), sees="window")
    before = collector.window
    transition, step = collector.decide(propose)
    assert seen[0].shape == (3, 12)
    torch.testing.assert_close(seen[0].view(3, 3, 4), before)
    torch.testing.assert_close(transition.obs, seen[0])
    torch.testing.assert_close(transition.next_obs.view(3, 3, 4), step.final_window)
    torch.testing.assert_close(transition.next_obs[:, 4:8], before[:, -1])  # the frame before the newest


def test_demonstrated_actions_are_the_actors_own() -> None:
    done, base = torch.rand(5, 1, 2), torch.rand(5, 1, 2)
    shown = Demonstrated(torch.rand(5, 4), done, base, torch.zeros(5, dtype=torch.bool), torch.tensor([5]))
    assert own_actions(None) is None
    own = own_actions(shown)
    assert own is not None
    batch = transitions(own, 1.0, n_step=1, gamma=0.9, reward_shift=0.0)
    torch.testing.assert_close(batch.raw, done[: len(batch.raw)])
    assert (batch.base == 0).all()


def test_a_learner_from_scratch_has_a_policy_that_leaves_the_base_alone() -> None:
    run = from_scratch("rlpd", OffPolicyConfig(nets=NETS), problem(mlp()))
    policy = run.policy
    assert isinstance(policy, Alone)
    window = torch.rand(5, 1, 4)
    torch.testing.assert_close(policy.act(window), cast(Any, policy.actor).mode(window[:, -1]))
    asked = policy.session()
    asked.act(window)
    assert asked.queries == 0


@pytest.mark.parametrize("changes", [{"learner": "ppo"}])
def test_what_a_learner_from_scratch_cannot(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="rlpd learns with sac or td3"):
        from_scratch("rlpd", OffPolicyConfig(nets=NETS, **changes), problem(mlp()))
    with pytest.raises(UserError, match="rlpd has no eyes"):
        from_scratch("rlpd", OffPolicyConfig(nets=NETS), problem(mlp(), shapes={"camera": (3, 8, 8)}))


def test_a_policy_alone_is_saved_and_loaded(tmp_path: Path) -> None:
    refined = Refined(Alone(mlp(), TanhGaussian(4, (1, 2), NETS), Takeover()), "toy/reach-gym", 4, {"gain": 0.5})
    refined.save(tmp_path)
    again = Refined.load(tmp_path)
    window = torch.rand(6, 1, 4)
    assert isinstance(again.policy, Alone)
    torch.testing.assert_close(again.policy.act(window), refined.policy.act(window), rtol=0, atol=0)
    assert again.summary == {"gain": 0.5}


def test_a_fine_tuned_policy_is_saved_beside_its_base_and_loaded(tmp_path: Path) -> None:
    base, tuned = mlp(), mlp()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3)
    policy = FineTuned(base, tuned, Takeover())
    Refined(policy, "toy/reach-gym", 4).save(tmp_path)
    again, window = Refined.load(tmp_path), torch.rand(6, 1, 4)
    assert isinstance(again.policy, FineTuned)
    torch.testing.assert_close(again.policy.act(window), tuned.act(window), rtol=0, atol=0)
    torch.testing.assert_close(cast(Any, again.policy.base).act(window), base.act(window), rtol=0, atol=0)
    assert not torch.allclose(base.act(window), tuned.act(window))
    action = again.act(window[0, -1])
    torch.testing.assert_close(action, tuned.act(window[:1])[0, 0].clamp(-1, 1))
    assert not any(p.requires_grad for p in cast(nn.Module, again.policy.actor).parameters())
