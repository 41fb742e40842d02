"""SAC on offsets: densities against finite differences, gradients, temperatures, and critics of windows."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig
from policy_decorator.methods.alone import Takeover
from policy_decorator.rl.lora import LoRAConfig
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.offsets import OffsetActor, OffsetSAC
from policy_decorator.rl.sac import SACConfig
from policy_decorator.rl.windows import BackboneCritics, NewestCritics
from policy_decorator.types import Transition

pytest.importorskip("peft", reason="PEFT is not installed")

NETS = NetConfig(width=16, depth=2, log_std_min=-5.0)


def _bet(**changes: Any) -> BehaviorTransformer:
    sizes: dict[str, Any] = {"context": 3, "clusters": 3, "layers": 1, "heads": 2, "width": 8, "gpt_output": 8}
    scales = {"bounded_offset": True, "action_scale": 0.5, "last_action_scale": 0.6, "dropout": 0.0}
    policy = BehaviorTransformer(BeTConfig(**sizes | scales | changes), 4, 2)
    policy.centres.copy_(torch.rand(3, 2) - 0.5)
    return policy


def _actor(std: float = 0.3, **changes: Any) -> OffsetActor:
    return OffsetActor(_bet(**changes), LoRAConfig(2, 4), NETS, std)


def _batch(n: int = 12) -> Transition:
    seen, raw, one = torch.randn(2, n, 12), torch.rand(n, 1, 2), torch.ones(n)
    return Transition(seen[0], raw, raw, -one, (torch.rand(n) < 0.2).float(), one, seen[1], raw)


def _learner(**changes: Any) -> OffsetSAC:
    cfg = SACConfig(gamma=0.9, lr=1e-2, batch_size=12, **changes.pop("sac", {}))
    return OffsetSAC(_actor(changes.pop("std", 0.3)), NewestCritics(4, 2, NETS), Takeover(), 2, cfg, **changes)


def test_a_sample_is_the_offsets_and_without_noise_the_policys_action() -> None:
    actor, seen = _actor(), torch.randn(6, 12)
    torch.testing.assert_close(actor(seen, torch.zeros(6, 2))[0], actor.mode(seen).clamp(-1, 1))
    torch.testing.assert_close(actor.mode(seen).clamp(-1, 1), actor.act(seen.view(6, 3, 4)))
    noise = torch.randn(6, 2)
    centre, offset = actor.policy.choice(actor.policy.features(seen.view(6, 3, 4)))
    wanted = (centre + (offset + 0.3 * noise).tanh()) / torch.tensor([0.5, 0.3])
    assert (wanted.abs() > 1).any()
    torch.testing.assert_close(actor(seen, noise)[0][:, 0], wanted.clamp(-1, 1))


def test_several_samples_at_once_are_those_of_as_many_calls_and_one_dropout() -> None:
    actor, seen, noise = _actor(), torch.randn(5, 12), torch.randn(7, 5, 2)
    sample, log_prob = actor(seen, noise)
    assert (sample.shape, log_prob.shape) == ((7, 5, 1, 2), (7, 5))
    for k in range(7):
        for together, alone in zip((sample[k], log_prob[k]), actor(seen, noise[k]), strict=True):
            torch.testing.assert_close(together, alone)
    without_noise = _actor(dropout=0.5)(seen, torch.zeros(2, 5, 2))[0]
    assert torch.equal(without_noise[0], without_noise[1])


def test_densities_by_finite_differences_of_the_distribution() -> None:
    """P(tanh(u) in an interval) over its length, from the normal distribution's integral; in units of tanh(u)."""
    scales = {"action_scale": 2.0, "last_action_scale": 2.0}  # nothing is clipped
    actor, seen, noise = _actor(**scales), torch.randn(6, 12), torch.randn(6, 2)
    centre, offset = actor.policy.choice(actor.policy.features(seen.view(6, 3, 4)))
    action, density = actor(seen, noise)
    reached = (action[:, 0] * actor.policy.scale - centre).double()  # tanh(u)
    normal, half = Normal(offset.double(), 0.3), 1e-4
    share = normal.cdf((reached + half).atanh()) - normal.cdf((reached - half).atanh())
    torch.testing.assert_close(density.double(), (share / (2 * half)).log().sum(-1), rtol=1e-3, atol=1e-3)


def test_an_offset_is_not_driven_beyond_where_actions_end() -> None:
    """There is nothing to learn about actions that the environments would clip: no gradient leads further out."""
    actor, seen = _actor(action_scale=0.1, last_action_scale=0.1), torch.randn(20, 12)
    action = actor(seen)[0]
    beyond = action.abs() == 1
    assert beyond.float().mean() > 0.5
    (grad,) = torch.autograd.grad((action * beyond).sum(), actor.policy.head.lora_B["default"].weight)
    assert (grad == 0).all()


def test_gradients_come_to_the_offset_of_the_chosen_bin_and_to_no_logit() -> None:
    actor, seen = _actor(), torch.randn(20, 12)
    head = actor.policy.head.lora_B["default"].weight  # (K + K Da, r)
    (grad,) = torch.autograd.grad(actor(seen)[0].sum(), head)
    chosen = actor.policy.logits_and_offsets(seen.view(20, 3, 4))[0][:, -1].argmax(-1)
    learns = torch.zeros(9, dtype=torch.bool)
    for k in chosen.unique().tolist():
        learns[3 + 2 * k : 3 + 2 * k + 2] = True
    assert (grad.abs().sum(1) > 0).tolist() == learns.tolist()
    assert 0 < learns.sum() <= 6


def test_an_update_learns_the_corrections_and_the_deviation_only() -> None:
    learner = _learner()
    before = {name: p.detach().clone() for name, p in learner.actor.named_parameters()}
    for _ in range(2):
        learner.update(_batch())
    moved = {name for name, p in learner.actor.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("spread")}
    held = sum(len(group["params"]) for group in learner.actor_opt.param_groups)
    assert held == len(learner.actor.learned) == len(moved)


@pytest.mark.parametrize(
    ("entropy", "while_resting", "afterwards"),
    [("learned", True, True), ("waits", False, True), ("fixed", False, False)],
)
def test_the_critics_may_learn_first_and_the_temperature_with_them(
    entropy: Any, while_resting: bool, afterwards: bool
) -> None:
    learner = _learner(critic_first=2, entropy=entropy)

    def state() -> tuple[Tensor, ...]:
        nets = (nn.utils.parameters_to_vector(net.parameters()) for net in (learner.actor, learner.critic))
        return (*nets, learner.log_temperature.detach().clone())

    for update, (actor_learns, temperature_learns) in enumerate(
        [(False, while_resting), (False, while_resting), (True, afterwards)], start=1
    ):
        before = state()
        metrics = learner.update(_batch())
        changed = [not torch.equal(x, y) for x, y in zip(before, state(), strict=True)]
        assert changed == [actor_learns, True, temperature_learns], update
        assert "sac/entropy" in metrics


def test_a_sure_actor_at_rest_raises_a_learned_temperature() -> None:
    """What App. F.5.2 saw: entropy stays below its target, and nothing but the temperature can react."""
    learner = _learner(critic_first=100, std=0.02)
    for _ in range(30):
        learner.update(_batch())
    assert learner.temperature > 1.2
    still = _learner(critic_first=100, std=0.02, entropy="waits")
    for _ in range(30):
        still.update(_batch())
    assert still.temperature == 1.0


def test_newest_critics_see_the_newest_frame() -> None:
    critics, seen, action = NewestCritics(4, 2, NETS), torch.randn(5, 12), torch.rand(5, 1, 2)
    other = torch.cat([torch.randn(5, 8), seen[:, 8:]], dim=1)
    assert torch.equal(critics(seen, action), critics(other, action))
    assert critics(seen, action).shape == (2, 5)


def test_backbone_critics_see_the_window_and_learn_whole() -> None:
    backbones = [_bet() for _ in range(2)]
    for one in backbones:
        one.head = nn.Identity()  # pyright: ignore
    critics = BackboneCritics(backbones, 8, 4, 2, NETS)
    seen, action = torch.randn(5, 12), torch.rand(5, 1, 2)
    q = critics(seen, action)
    assert q.shape == (2, 5)
    other = torch.cat([torch.randn(5, 4), seen[:, 4:]], dim=1)
    assert not torch.allclose(q, critics(other, action))
    assert not torch.allclose(q, critics(seen, -action))
    learner = OffsetSAC(_actor(), critics, Takeover(), 2, SACConfig(lr=1e-2))
    before = copy.deepcopy(critics.state_dict())
    learner.update(_batch())
    learner.update(_batch())  # biases of keys have no gradient: softmax takes away what all keys have in common
    stays = [name for name, p in critics.named_parameters() if torch.equal(p, before[name])]
    assert stays == []
    assert math.isfinite(float(q.detach().sum()))
