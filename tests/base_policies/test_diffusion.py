"""The Diffusion Policy against its formulas and the figures of the released code."""

import dataclasses
import math
import sys
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy_decorator.base_policies import POLICIES
from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy, noise_schedule
from policy_decorator.base_policies.imitate import ImitateConfig, imitate
from policy_decorator.base_policies.unet import Block, StepEmbedding, UNet1D
from policy_decorator.demos.dataset import Demonstrations
from policy_decorator.demos.record import record_expert
from policy_decorator.envs import get_task
from policy_decorator.envs.vector import make_vector
from policy_decorator.errors import MissingExtra, UserError
from policy_decorator.evaluation import DEMOS, VALIDATION, run_episodes

pytest.importorskip("diffusers")

SMALL = DiffusionConfig(horizon=8, widths=(8, 16), step_size=8)
LARGE = (256, 512, 1024)


def abar(k: int, steps: int = 100) -> float:
    """Squared cosine with betas of at most 0.999 (Nichol and Dhariwal 2021), step by step."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    product = 1.0
    for i in range(k + 1):
        product *= 1 - min(1 - f((i + 1) / steps) / f(i / steps), 0.999)
    return product


def oracle(policy: DiffusionPolicy, predict: nn.Module) -> DiffusionPolicy:
    """The policy with another network."""
    policy.unet = predict  # pyright: ignore[reportAttributeAccessIssue]
    return policy


class Predict(nn.Module):
    """Noise of which the formulas below know: a multiple of the noisy sequence."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self.factor * noisy


# ---- the network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("obs", "action", "millions"), [(50, 7, 4.45), (39, 28, 4.38), (131, 20, 5.04)])
def test_sizes_of_the_released_code(obs: int, action: int, millions: float) -> None:  # Peg, Door, PushChair
    policy = DiffusionPolicy(DiffusionConfig(), obs, action)
    assert sum(p.numel() for p in policy.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("obs", "action"), [(50, 7), (131, 20)])
def test_the_widths_that_the_paper_prints_make_63_to_66_millions(obs: int, action: int) -> None:
    with torch.device("meta"):
        net = UNet1D(action, 2 * obs, LARGE, 64)
    assert 63e6 < sum(p.numel() for p in net.parameters()) < 66e6


def test_defaults_are_those_of_table_6_and_the_released_code() -> None:
    cfg, training = DiffusionConfig(), POLICIES["diffusion"].training
    assert (cfg.context, cfg.horizon, cfg.chunk, cfg.widths, cfg.diffusion_steps) == (2, 16, 4, (64, 128, 256), 100)
    assert (training.steps, training.batch_size, training.lr, training.weight_decay) == (200_000, 1024, 1e-4, 1e-6)
    assert (training.betas, training.schedule, training.warmup_steps, training.ema) == (
        (0.95, 0.999),
        "cosine",
        500,
        0.9999,
    )
    policy = DiffusionPolicy(SMALL, 3, 2)
    (group,) = policy.parameter_groups(0.5)
    assert group["weight_decay"] == 0.5


def test_step_embedding_is_sines_and_cosines_of_geometric_frequencies() -> None:
    waves = StepEmbedding(64).waves(torch.tensor([0, 37]))
    frequencies = [10_000 ** (-i / 31) for i in range(32)]
    expected = [math.sin(37 * f) for f in frequencies] + [math.cos(37 * f) for f in frequencies]
    torch.testing.assert_close(waves[1], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(waves[0], torch.tensor([0.0] * 32 + [1.0] * 32))


def test_a_block_scales_and_shifts_between_its_convolutions() -> None:
    block = Block(3, 8, condition=5, kernel=5)
    x, condition = torch.randn(2, 3, 16), torch.randn(2, 5)
    conv, norm, _ = block.first
    linear = block.film[1]
    assert isinstance(linear, nn.Linear)

    def mish(v: Tensor) -> Tensor:
        return v * torch.tanh(torch.log1p(v.exp()))

    film = mish(condition) @ linear.weight.T + linear.bias
    hidden = film[:, :8, None] * mish(norm(conv(x))) + film[:, 8:, None]
    assert isinstance(block.skip, nn.Conv1d)
    torch.testing.assert_close(block(x, condition), block.second(hidden) + block.skip(x))
    assert isinstance(Block(8, 8, 5, 5).skip, nn.Identity)


def test_every_row_of_the_sequence_sees_the_condition_and_the_step() -> None:
    net = UNet1D(2, 3, (8, 16, 32), 8)
    noisy, condition = torch.randn(1, 16, 2), torch.randn(1, 3)
    answer = net(noisy, torch.tensor([5]), condition)
    assert answer.shape == (1, 16, 2)
    for other in (net(noisy, torch.tensor([6]), condition), net(noisy, torch.tensor([5]), condition + 1)):
        assert ((other - answer).abs().amax(-1) > 1e-6).all()


# ---- diffusion ------------------------------------------------------------------------------------------------


def test_the_noise_schedule_is_the_squared_cosine() -> None:
    schedule = noise_schedule(DiffusionConfig(), "ddpm")
    known = {0: 0.99937, 25: 0.83562, 50: 0.47827, 75: 0.13350, 99: 0.0}  # computed from the released code
    for k, value in known.items():
        assert schedule.alphas_cumprod[k].item() == pytest.approx(value, abs=1e-5)
        assert schedule.alphas_cumprod[k].item() == pytest.approx(abar(k), abs=1e-5)


def test_sampling_steps() -> None:
    assert DiffusionPolicy(DiffusionConfig(), 3, 2).denoising.timesteps.tolist() == [75, 50, 25, 0]
    ten = DiffusionPolicy(DiffusionConfig(ddim_steps=10), 3, 2)
    assert ten.denoising.timesteps.tolist() == list(range(90, -1, -10))
    every = DiffusionPolicy(DiffusionConfig(sampler="ddpm"), 3, 2)
    assert every.denoising.timesteps.tolist() == list(range(99, -1, -1))


def test_the_loss_is_the_squared_error_of_the_noise() -> None:
    policy = oracle(DiffusionPolicy(SMALL, 3, 2), Predict(0.7))
    window, actions = torch.randn(16, 2, 3), torch.rand(16, 8, 2) * 2 - 1
    torch.manual_seed(3)
    loss = policy.loss(window, actions)
    torch.manual_seed(3)
    noise, step = torch.randn(16, 8, 2), torch.randint(100, (16,))
    kept = torch.tensor([abar(int(k)) for k in step])[:, None, None]
    expected = ((0.7 * (kept.sqrt() * actions + (1 - kept).sqrt() * noise) - noise) ** 2).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(0.46, abs=0.15)


def test_the_loss_of_predicted_actions_is_their_squared_error() -> None:
    policy = oracle(DiffusionPolicy(dataclasses.replace(SMALL, prediction="sample"), 3, 2), Predict(0.0))
    actions = torch.rand(16, 8, 2) * 2 - 1
    torch.testing.assert_close(policy.loss(torch.randn(16, 2, 3), actions), (actions**2).mean())


def test_ddim_is_its_formula_with_clipped_actions_and_the_noise_as_predicted() -> None:
    policy = oracle(DiffusionPolicy(DiffusionConfig(), 3, 2), Predict(0.5))
    noise = torch.randn(4, 16, 2)
    x, clipped = noise, 0
    for k in (75, 50, 25, 0):
        now, after = abar(k), abar(k - 25) if k else 1.0
        predicted = 0.5 * x
        action = (x - math.sqrt(1 - now) * predicted) / math.sqrt(now)
        clipped += int((action.abs() > 1).sum())
        x = math.sqrt(after) * action.clamp(-1, 1) + math.sqrt(1 - after) * predicted
    torch.testing.assert_close(policy.denoise(noise, torch.zeros(4, 6)), x, rtol=1e-4, atol=1e-5)
    assert clipped > 50, "nothing was clipped, so that clipping was not tested"


def test_ddpm_is_its_formula_with_the_small_variance() -> None:
    policy = oracle(DiffusionPolicy(DiffusionConfig(sampler="ddpm"), 3, 2), Predict(0.5))
    noise = torch.randn(4, 16, 2)
    torch.manual_seed(5)
    answer = policy.denoise(noise, torch.zeros(4, 6))
    torch.manual_seed(5)
    x = noise
    for k in range(99, -1, -1):
        now, after = abar(k), abar(k - 1)
        alpha = now / after
        action = ((x - math.sqrt(1 - now) * 0.5 * x) / math.sqrt(now)).clamp(-1, 1)
        x = math.sqrt(after) * (1 - alpha) / (1 - now) * action + math.sqrt(alpha) * (1 - after) / (1 - now) * x
        if k:
            x = x + math.sqrt((1 - after) / (1 - now) * (1 - alpha)) * torch.randn(4, 16, 2)
    torch.testing.assert_close(answer, x, rtol=1e-3, atol=1e-4)


def test_a_network_that_knows_the_actions_is_followed_by_every_sampler() -> None:
    actions = torch.rand(5, 16, 2) * 1.8 - 0.9

    class Knows(nn.Module):
        def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
            kept = torch.tensor([abar(int(k)) for k in step])[:, None, None]
            return (noisy - kept.sqrt() * actions) / (1 - kept).sqrt()

    class KnowsThem(nn.Module):
        def forward(self, noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
            return actions

    samplers = DiffusionConfig(), DiffusionConfig(ddim_steps=16), DiffusionConfig(sampler="ddpm")
    of_actions = [(dataclasses.replace(cfg, prediction="sample"), KnowsThem()) for cfg in samplers]
    for cfg, network in (*((cfg, Knows()) for cfg in samplers), *of_actions):
        policy = oracle(DiffusionPolicy(cfg, 3, 2), network)
        answer = policy.act(torch.zeros(5, 2, 3))  # row 0 of the sequence belongs to the frame before
        torch.testing.assert_close(answer, actions[:, 1:5], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_seed_decides_and_actions_differ_from_draw_to_draw(sampler: str) -> None:
    policy = DiffusionPolicy(DiffusionConfig(horizon=8, widths=(8, 16), sampler=sampler), 3, 2)  # pyright: ignore[reportArgumentType]
    window = torch.randn(3, 2, 3)
    torch.manual_seed(1)
    first = policy.act(window)
    assert not torch.equal(policy.act(window), first)
    torch.manual_seed(1)
    assert torch.equal(policy.act(window), first)


def test_what_stands_before_it_is_trained_too() -> None:
    policy, window = DiffusionPolicy(SMALL, 3, 2), torch.randn(4, 2, 3, requires_grad=True)
    policy.loss(window, torch.rand(4, 8, 2)).backward()  # an encoder's features, say
    assert window.grad is not None
    assert (window.grad != 0).all()


# ---- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": 14}, "multiple of 4 for 3 levels"),
        ({"context": 14}, "reach over 13 past and 4"),
        ({"widths": (60, 128)}, "multiples of 8"),
        ({"step_size": 7}, "even"),
        ({"ddim_steps": 101}, "between 1 and 100"),
        ({"sampler": "euler"}, "'ddim' or 'ddpm'"),
        ({"prediction": "velocity"}, "'epsilon' or 'sample'"),
        ({"chunk": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiffusionConfig(**settings)  # pyright: ignore[reportArgumentType]


def two_ways(scale: float = 1.0) -> Demonstrations:
    """Episodes of toy/reach's sizes in which every step goes to one of two sides, which the state does not tell."""
    rng = np.random.default_rng(0)
    actions = np.repeat(rng.choice([-0.6, 0.6], (20, 1, 1)), 60, axis=1) * np.ones((1, 1, 2)) * scale
    return Demonstrations(
        task="toy/reach",
        observations=np.tile(rng.normal(size=(1, 4)), (1200, 1)).astype(np.float32),
        actions=actions.reshape(1200, 2).astype(np.float32),
        success=np.ones(1200, dtype=bool),
        lengths=np.full(20, 60),
        seeds=np.arange(20),
        source="a test",
        details={},
    )


def test_actions_that_denoising_cannot_reach() -> None:
    with pytest.raises(UserError, match="Actions reach"):
        imitate(DiffusionPolicy(SMALL, 4, 2), two_ways(2.0), ImitateConfig(steps=1))


def test_diffusers_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.schedulers.scheduling_ddim", None)
    with pytest.raises(MissingExtra, match=r"policy-decorator\[diffusion\]"):
        imitate(DiffusionPolicy(SMALL, 4, 2), two_ways(), ImitateConfig(steps=1))


# ---- learning -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_learns_both_ways_and_not_their_mean(prediction: Literal["epsilon", "sample"]) -> None:
    torch.manual_seed(0)
    cfg, demos = DiffusionConfig(context=1, horizon=4, widths=(32, 64), prediction=prediction), two_ways()
    policy = DiffusionPolicy(cfg, 4, 2)
    imitate(policy, demos, ImitateConfig(steps=400, batch_size=64, lr=3e-3, ema=0.99))
    slow = DiffusionPolicy(dataclasses.replace(cfg, sampler="ddpm"), 4, 2)
    slow.load_state_dict(policy.state_dict())
    for sampled, floor in ((policy, 0.7), (slow, 0.9)):  # four steps leave a blur; of noise a third would be near
        answer = sampled.act(torch.from_numpy(demos.observations[:1]).expand(200, 1, 4))  # (200, 4, 2)
        side = answer.mean((1, 2)).sign()
        assert 0.4 < (side > 0).float().mean() < 0.8  # of the demonstrations, 0.6
        near = ((answer - 0.6 * side[:, None, None]).abs() < 0.2).float().mean()
        assert near > floor, f"{sampled.cfg.sampler}: {near:.2f} of the actions are near one of the two ways"


@pytest.mark.slow
def test_reaches_goals_in_chunks_after_a_few_demonstrations() -> None:
    torch.manual_seed(0)
    demos = record_expert(get_task("toy/reach-gym"), 40, seed=DEMOS, noise=0.0)
    policy = DiffusionPolicy(DiffusionConfig(horizon=8, widths=(32, 64)), 4, 2)
    env = make_vector(get_task("toy/reach"), 50, context=policy.context, chunk=policy.chunk)

    def rate() -> float:
        return run_episodes(env, policy, 50, VALIDATION).rate

    assert rate() < 0.3
    training = ImitateConfig(steps=400, batch_size=64, lr=3e-3, ema=0.99, schedule="cosine", warmup_steps=20)
    imitate(policy, demos, training)
    assert rate() > 0.6  # 0.9 when this was written


# ---- tuned afterwards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "steps", "late"), [("ddim", 2, 2), ("ddim", 4, 0), ("ddim", 9, 0), ("ddpm", 3, 3)])
def test_a_tunable_copy_acts_the_same_and_trains_its_last_steps(
    sampler: Literal["ddim", "ddpm"], steps: int, late: int
) -> None:
    policy = DiffusionPolicy(dataclasses.replace(SMALL, sampler=sampler), 3, 2).requires_grad_(False)
    other = policy.tunable(steps)
    window = torch.randn(4, 2, 3)
    acted = []
    for one in (policy, other):
        torch.manual_seed(3)
        acted.append(one.act(window))
    assert torch.equal(*acted)
    assert other.cfg.late_steps == late
    last = other.cfg.acting_steps - 1
    trained = other.network(last)
    assert {id(p) for p in other.parameters() if p.requires_grad} == {id(p) for p in trained.parameters()}
    own = [other.network(k) is trained for k in range(last + 1)]
    assert own == [not late or k > last - late for k in range(last + 1)]
    with torch.no_grad():
        next(trained.parameters()).add_(1.0)
    torch.manual_seed(3)
    assert not torch.equal(other.act(window), acted[0])
    torch.manual_seed(3)
    assert torch.equal(policy.act(window), acted[0])


def test_a_tuned_policy_is_tuned_again_in_the_same_steps_only() -> None:
    once = DiffusionPolicy(SMALL, 3, 2).tunable(2)
    with torch.no_grad():
        next(once.network(3).parameters()).add_(1.0)
    again = once.tunable(2)
    assert all(torch.equal(p, q) for p, q in zip(once.parameters(), again.parameters(), strict=True))
    for steps in (1, 4):
        with pytest.raises(UserError, match="tuned in its last 2 denoising steps"):
            once.tunable(steps)
    with pytest.raises(UserError, match="one network is trained for all steps"):
        once.fit_statistics(cast(Any, None))
    with pytest.raises(UserError, match="late_steps must be between 0 and 3"):
        dataclasses.replace(SMALL, late_steps=4)
