"""The Behavior Transformer: losses by hand, causality, size, dropout, clusters, and a bimodal task."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from policy_decorator.base_policies.bet import BehaviorTransformer, BeTConfig, focal_loss
from policy_decorator.base_policies.imitate import ImitateConfig, imitate
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.errors import UserError

TINY: dict[str, Any] = {"context": 4, "clusters": 3, "layers": 2, "heads": 2, "width": 8, "gpt_output": 6}


def demonstrations(observations: np.ndarray, actions: np.ndarray, lengths: list[int]) -> Demonstrations:
    return Demonstrations(
        task="toy",
        observations=observations.astype(np.float32),
        actions=actions.astype(np.float32),
        success=np.ones(len(actions), dtype=bool),
        lengths=np.array(lengths, dtype=np.int64),
        seeds=np.arange(len(lengths)),
        source="a test",
        details={},
    )


def test_focal_loss_by_hand() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64)
    bins = torch.tensor([0, 1])
    by_hand = -((0.3**2) * math.log(0.7) + (0.75**2) * math.log(0.25)) / 2
    assert focal_loss(p.log(), bins, 2.0).item() == pytest.approx(by_hand, rel=1e-12)
    cross_entropy = -(math.log(0.7) + math.log(0.25)) / 2
    assert focal_loss(p.log(), bins, 0.0).item() == pytest.approx(cross_entropy, rel=1e-12)


def test_loss_is_focal_plus_scaled_offset_over_all_frames() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY, offset_scale=30.0), 5, 2).eval()
    policy.centres.copy_(torch.tensor([[0.5, 0.5], [-0.5, 0.0], [0.0, -0.8]]))
    window, actions = torch.randn(3, 4, 5), torch.rand(3, 4, 2) * 2 - 1
    with torch.no_grad():
        logits, offsets = policy.logits_and_offsets(window)
    focal, squared = 0.0, 0.0
    for b in range(3):
        for t in range(4):
            distances = [float(((actions[b, t] - centre) ** 2).sum()) for centre in policy.centres]
            k = distances.index(min(distances))
            p = float(torch.softmax(logits[b, t], 0)[k])
            focal -= (1 - p) ** 2 * math.log(p)
            squared += float(((offsets[b, t, k] - (actions[b, t] - policy.centres[k])) ** 2).sum())
    expected = focal / 12 + 30.0 * squared / (12 * 2)
    assert policy.loss(window, actions).item() == pytest.approx(expected, rel=1e-4)


def test_a_frame_sees_no_later_frame() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY), 5, 2)
    window = torch.randn(2, 4, 5)
    changed = window.clone()
    changed[:, 2] += 1.0
    before, after = policy.logits_and_offsets(window)[0], policy.logits_and_offsets(changed)[0]
    torch.testing.assert_close(before[:, :2], after[:, :2], rtol=0, atol=0)
    assert not torch.allclose(before[:, 2], after[:, 2])
    assert not torch.allclose(before[:, 3], after[:, 3])  # and sees every earlier one


def test_parameter_count_is_the_papers() -> None:
    width, clusters, size, context, obs_size = 128, 8, 7, 20, 50
    policy = BehaviorTransformer(BeTConfig(context=context), obs_size, size)
    block = 12 * width**2 + 13 * width  # attention 4 E^2 + 4 E, MLP 8 E^2 + 5 E, two norms 4 E
    head = (256 + 1) * clusters * (1 + size)
    expected = (obs_size + 1) * width + context * width + 4 * block + 2 * width + 256 * width + head
    count = sum(parameter.numel() for parameter in policy.parameters())
    assert count == expected
    assert count == pytest.approx(0.85e6, rel=0.01)


def test_initialisation() -> None:
    torch.manual_seed(0)
    policy = BehaviorTransformer(BeTConfig(), 50, 7)
    block: Any = policy.blocks[0]
    for weight, std in [
        (policy.position, 0.02),
        (policy.embed.weight, 0.02),
        (policy.output.weight, 0.02),
        (block.attention_in.weight, 0.02),
        (block.attention_out.weight, 0.02 / math.sqrt(8)),
        (block.mlp[2].weight, 0.02 / math.sqrt(8)),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.1)
    assert block.attention_in.bias.abs().max() == 0
    assert policy.head.weight.abs().max() > 0.05  # PyTorch's own: uniform up to 1/16


def test_act_is_centre_plus_offset_of_the_likeliest_bin_at_the_newest_frame() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY, dropout_at_inference=False), 5, 2)
    policy.centres.copy_(torch.tensor([[0.3, 0.1], [-0.4, 0.2], [0.0, -0.3]]))
    window = torch.randn(6, 4, 5) * 30
    logits, offsets = policy.logits_and_offsets(window)
    actions = policy.act(window)
    for b in range(6):
        k = int(logits[b, -1].argmax())
        torch.testing.assert_close(actions[b, 0], (policy.centres[k] + offsets[b, -1, k]).clamp(-1, 1))


def test_sample_mode_draws_bins_with_their_probabilities() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY, dropout_at_inference=False, mode="sample"), 5, 1)
    policy.centres.copy_(torch.tensor([[-0.5], [0.0], [0.5]]))
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.zero_()
        policy.head.bias[:3] = torch.tensor([0.6, 0.3, 0.1]).log()
    torch.manual_seed(0)
    actions = policy.act(torch.zeros(4000, 4, 5)).flatten()
    shares = [(actions == centre).float().mean().item() for centre in (-0.5, 0.0, 0.5)]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout_at_inference", [True, False])
def test_dropout_while_acting_follows_the_config_alone(training: bool, dropout_at_inference: bool) -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY, dropout_at_inference=dropout_at_inference), 5, 2)
    policy.train(training)
    window = torch.randn(3, 4, 5)
    answers = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        answers.append(policy.act(window))
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[0], answers[1]) is not dropout_at_inference
    assert policy.training is training


def test_dropout_while_training_follows_the_module() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY), 5, 2)
    batch = torch.randn(3, 4, 5), torch.rand(3, 4, 2)
    assert policy.train().loss(*batch) != policy.loss(*batch)
    assert policy.eval().loss(*batch) == policy.loss(*batch)


def test_decay_groups_cover_every_parameter_once() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY), 5, 2)
    groups = policy.parameter_groups(2e-4)
    assert [group["weight_decay"] for group in groups] == [2e-4, 0.0, 0.01]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, policy.parameters()))
    assert {id(p) for p in groups[2]["params"]} == {id(policy.head.weight), id(policy.head.bias)}
    plain = {id(p) for p in groups[1]["params"]}
    assert {id(policy.position), id(policy.embed.bias), id(policy.norm.weight)} <= plain
    assert id(policy.embed.weight) in {id(p) for p in groups[0]["params"]}


def test_clusters_are_the_means_of_their_actions() -> None:
    rng = np.random.default_rng(0)
    modes = np.array([[0.9, 0.0], [-0.9, 0.1], [0.0, -0.9]])
    actions = np.repeat(modes, 20, axis=0) + rng.normal(0, 0.01, (60, 2))
    policy = BehaviorTransformer(BeTConfig(**TINY), 2, 2)
    policy.fit_statistics(demonstrations(np.zeros((60, 2)), actions, [60]), seed=3)
    nearest = np.linalg.norm(actions[:, None] - policy.centres.numpy(), axis=-1).argmin(1)
    for k in range(3):  # a fixed point of Lloyd's iteration, whichever it fell into
        np.testing.assert_allclose(policy.centres[k].numpy(), actions[nearest == k].mean(0), atol=1e-5)


def test_too_few_distinct_actions_for_the_clusters() -> None:
    policy = BehaviorTransformer(BeTConfig(**TINY), 2, 2)
    with pytest.raises(UserError, match="1 distinct actions, too few for 3 clusters"):
        policy.fit_statistics(demonstrations(np.zeros((9, 2)), np.zeros((9, 2)), [9]))


@pytest.mark.parametrize("wrong", [{"width": 10}, {"clusters": 0}, {"dropout": 1.0}, {"mode": "best"}])
def test_configs_that_contradict_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        BeTConfig(**wrong)  # pyright: ignore[reportArgumentType]


def test_learns_one_of_two_modes_and_not_their_mean() -> None:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (600, 2))
    side = np.repeat(rng.choice([-1.0, 1.0], 60, p=[0.35, 0.65]), 10)  # each episode goes one way round
    actions = np.stack([0.7 * side, 0.3 * observations[:, 0]], axis=1)
    torch.manual_seed(0)
    cfg = BeTConfig(context=1, clusters=4, layers=1, heads=2, width=32, gpt_output=32, dropout=0.0)
    policy = BehaviorTransformer(cfg, 2, 2)
    demos = demonstrations(observations, actions, [10] * 60)
    imitate(policy, demos, ImitateConfig(steps=250, batch_size=64, lr=3e-3))
    test = torch.rand(200, 1, 2) * 2 - 1
    answer = policy.act(test)[:, 0]
    assert (answer[:, 0].abs() - 0.7).abs().max() < 0.1  # the mean of the modes would be 0.21
    assert ((answer[:, 1] - 0.3 * test[:, 0, 0]) ** 2).mean().sqrt() < 0.05


def _scaled(**changes: Any) -> BehaviorTransformer:
    cfg = BeTConfig(**TINY, **{"bounded_offset": True, "action_scale": 0.5, "last_action_scale": 0.6} | changes)
    policy = BehaviorTransformer(cfg, 5, 2).eval()
    policy.centres.copy_(torch.tensor([[0.3, 0.1], [-0.4, 0.2], [0.0, -0.3]]))
    return policy


def test_bounded_offsets_and_scaled_actions_by_hand() -> None:
    """App. B.4.1: everything is learned and decided in scaled actions, and tanh bounds the offset."""
    policy, window, actions = _scaled(offset_scale=30.0), torch.randn(3, 4, 5), torch.rand(3, 4, 2) * 2 - 1
    scale = torch.tensor([0.5, 0.3])
    torch.testing.assert_close(policy.scale, scale)
    with torch.no_grad():
        logits, offsets = policy.logits_and_offsets(window)
    bins = torch.cdist(actions * scale, policy.centres).argmin(-1)
    right = offsets.take_along_dim(bins[..., None, None], dim=2)[..., 0, :]
    missed = right.tanh() - (actions * scale - policy.centres[bins])
    expected = focal_loss(logits, bins, 2.0) + 30.0 * missed.square().mean()
    torch.testing.assert_close(policy.loss(window, actions), expected)
    likeliest = logits.argmax(-1)
    offset = offsets.take_along_dim(likeliest[..., None, None], dim=2)[..., 0, :]
    plain = policy.deterministic()
    torch.testing.assert_close(plain.means(window), (policy.centres[likeliest] + offset.tanh()) / scale)
    torch.testing.assert_close(plain.act(window), plain.means(window)[:, -1:].clamp(-1, 1))


def test_a_bounded_offset_stays_within_reach_of_its_centre() -> None:
    policy = _scaled(dropout_at_inference=False)
    with torch.no_grad():
        policy.head.weight.mul_(1e4)
    reach = policy.means(torch.randn(50, 4, 5)) * policy.scale
    assert torch.cdist(reach.flatten(0, 1), policy.centres, p=math.inf).min(-1).values.max() <= 1 + 1e-6
    assert reach.abs().max() > 0.9


def test_clusters_are_found_among_scaled_actions() -> None:
    modes = np.array([[0.9, 1.0], [-0.9, -1.0], [0.0, 1.0]])
    actions = np.repeat(modes, 20, axis=0) + np.random.default_rng(0).normal(0, 0.01, (60, 2))
    policy = _scaled()
    policy.fit_statistics(demonstrations(np.zeros((60, 2)), actions, [60]), seed=3)
    nearest = np.linalg.norm(actions[:, None] * [0.5, 0.3] - policy.centres.numpy(), axis=-1).argmin(1)
    for k in range(3):
        np.testing.assert_allclose(policy.centres[k].numpy(), actions[nearest == k].mean(0) * [0.5, 0.3], atol=1e-5)


def test_a_gripper_at_its_stop_can_be_imitated_with_a_bounded_offset() -> None:
    """The last entry is -1 or 1; with one cluster an offset must reach from one to the other half way."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (400, 2))
    actions = np.stack([0.5 * observations[:, 0], np.sign(observations[:, 1])], axis=1)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"context": 1, "clusters": 1, "layers": 1, "heads": 2, "width": 32, "gpt_output": 32}
    cfg = BeTConfig(**sizes, dropout=0.0, bounded_offset=True, last_action_scale=0.3)
    policy = BehaviorTransformer(cfg, 2, 2)
    imitate(policy, demonstrations(observations, actions, [10] * 40), ImitateConfig(steps=300, batch_size=64, lr=3e-3))
    clear = torch.tensor([[[0.2, 0.8]], [[-0.6, -0.8]], [[0.9, 0.5]]])
    wanted = torch.stack([0.5 * clear[:, 0, 0], clear[:, 0, 1].sign()], dim=1)
    torch.testing.assert_close(policy.act(clear)[:, 0], wanted, rtol=0, atol=0.15)


def test_scales_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="action_scale and last_action_scale must be above 0"):
        BeTConfig(last_action_scale=0.0)


def test_without_scales_nothing_is_stored_beside_what_was() -> None:
    """Policies that were saved before stay readable, and keep their checksum."""
    names = [name for name, _ in BehaviorTransformer(BeTConfig(**TINY), 5, 2).named_buffers()]
    assert names == ["centres"]
