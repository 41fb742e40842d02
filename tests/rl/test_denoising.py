"""Denoising as decisions: every Gaussian against diffusers' own step and torch.distributions, floors, clip ranges."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from policy_decorator.base_policies.diffusion import DiffusionConfig, DiffusionPolicy
from policy_decorator.errors import UserError
from policy_decorator.rl.denoising import Denoising, DenoisingConfig, clip_ranges

pytest.importorskip("diffusers")

SMALL = DiffusionConfig(context=2, horizon=8, chunk=3, widths=(8, 16), step_size=8, diffusion_steps=20, ddim_steps=4)
DDPM = replace(SMALL, sampler="ddpm")


def _denoising(cfg: DiffusionConfig = SMALL, **changes: Any) -> Denoising:
    config = DenoisingConfig(**changes)
    return Denoising(DiffusionPolicy(cfg, 3, 2).tunable(config.tuned_steps), 3, config)


def _draw(denoising: Denoising, n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """What is seen (N, To * Do), the noise (N, K + 1, Th, Da), what is executed."""
    seen = torch.randn(n, 6)
    noise = denoising.fresh_noise(seen)
    return seen, noise.unflatten(-1, (-1, 8, 2)), denoising(seen, noise)[0]


@pytest.mark.parametrize("cfg", [SMALL, replace(SMALL, prediction="sample")])
@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("scale", [0.2, 3.0])  # of x: with the larger one predicted actions are clipped
def test_a_step_is_the_librarys_ddim_step_with_eta_1(k: int, scale: float, cfg: DiffusionConfig) -> None:
    d = _denoising(cfg)
    x, condition, drawn = scale * torch.randn(6, 8, 2), torch.randn(6, 6), torch.randn(6, 8, 2)
    place, t = torch.full((6,), k), [15, 10, 5, 0][k]
    with torch.no_grad():
        mean, std = d.gaussian(d.policy.network(d.count - 1), x, place, condition)
        predicted = d.policy.network(d.count - 1)(x, torch.full((6,), t), condition)
    schedule: Any = d.policy.denoising
    one: Any = schedule.step(predicted, t, x, eta=1.0, variance_noise=drawn)
    torch.testing.assert_close(mean + std * drawn, one.prev_sample, rtol=1e-4, atol=1e-5)
    assert (std[0, 0, 0] > 0.01) == (k < 3)  # the last step has no noise of its own


@pytest.mark.parametrize("cfg", [DDPM, replace(DDPM, prediction="sample")])
@pytest.mark.parametrize("k", [0, 7, 18, 19])
def test_over_all_steps_it_is_the_librarys_ddpm_step(k: int, cfg: DiffusionConfig) -> None:
    d = _denoising(cfg)
    x, condition = 2 * torch.randn(6, 8, 2), torch.randn(6, 6)
    with torch.no_grad():
        mean, std = d.gaussian(d.policy.network(d.count - 1), x, torch.full((6,), k), condition)
        predicted = d.policy.network(d.count - 1)(x, torch.full((6,), 19 - k), condition)
    schedule: Any = d.policy.denoising
    generator, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    one: Any = schedule.step(predicted, 19 - k, x, generator=generator)
    drawn = torch.randn(6, 8, 2, generator=again)
    torch.testing.assert_close(mean + std * drawn, one.prev_sample, rtol=1e-4, atol=1e-5)


def test_without_noise_a_tuned_chain_acts_as_the_saved_policy_does() -> None:
    """eta 1 in training, 0 in evaluation: where a step adds no noise, both are one. DDPM's last step is such a one."""
    d = _denoising(DDPM, tuned_steps=1, sampling_std=1e-6)
    seen, noise, _ = _draw(d)
    acted = d(seen, noise.flatten(1))[0].clamp(-1, 1)
    last = d.chain[:, 0]
    with torch.no_grad():
        net = d.policy.network(d.count - 1)(last, torch.zeros(5, dtype=torch.long), d.condition(seen))
    expected: Any = d.policy.denoising.step(net, 0, last)
    torch.testing.assert_close(acted, expected.prev_sample[:, 1:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cfg", [SMALL, DDPM])
def test_the_density_of_a_chain_is_torch_distributions(cfg: DiffusionConfig) -> None:
    d = _denoising(cfg, density_std=0.3)
    seen, _, _ = _draw(d)
    x, following, which = d.pairs(d.chain)
    assert d.chain.shape == (5, d.tuned + 1, 8, 2)
    assert which.tolist() == list(range(d.tuned)) * 5
    with torch.no_grad():
        for p in d.policy.network(d.count - 1).parameters():
            p.add_(0.02 * torch.randn_like(p))  # it has moved since
        condition = d.condition(seen).repeat_interleave(d.tuned, 0)
        mean, std = d.gaussian(d.policy.network(d.count - 1), x, d.count - d.tuned + which, condition)
        found = d.log_density(seen.repeat_interleave(d.tuned, 0), x, following, which)
    rows = slice(1, 4)  # executed: To - 1 ... To + Ta - 2
    normal = Independent(Normal(mean[:, rows], std.clamp(min=0.3).expand(-1, 3, 2)), 2)
    assert std.min() < 0.3 < std.max()
    torch.testing.assert_close(found, normal.log_prob(following[:, rows]) / 6, rtol=1e-4, atol=1e-4)


def test_a_density_of_what_was_just_drawn_has_a_closed_form() -> None:
    """mean of -z^2 / 2 - log std - log(2 pi) / 2, where z is the noise that was drawn, cut off at 1.5."""
    d = _denoising(noise_limit=1.5)
    seen, noise, _ = _draw(d, 40)
    with torch.no_grad():
        found = d.log_density(seen.repeat_interleave(4, 0), *d.pairs(d.chain)).view(40, 4)
    now = d.policy.denoising.alphas_cumprod[[15, 10, 5, 0]]
    later = torch.cat([now[1:], torch.ones(1)])
    std = ((1 - later) / (1 - now) * (1 - now / later)).sqrt().clamp(min=0.1)
    z = noise[:, 1:, 1:4].clamp(-1.5, 1.5)
    assert z.abs().max() == 1.5
    closed = (-0.5 * z**2 - 0.5 * torch.log(torch.tensor(2 * torch.pi))).mean((2, 3)) - std.log()
    torch.testing.assert_close(found, closed, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(d(seen, noise.flatten(1))[1], closed.sum(1), rtol=1e-3, atol=1e-3)


def test_no_number_counts_for_more_than_its_range() -> None:
    d = _denoising()
    seen, _, _ = _draw(d)
    x, following, which = d.pairs(d.chain)
    far = d.log_density(seen.repeat_interleave(4, 0), x, following + 100, which)
    assert far.tolist() == [-5.0] * 20


def test_predicted_actions_that_are_not_executed_do_not_count() -> None:
    d = _denoising()
    seen, _, executed = _draw(d)
    assert torch.equal(executed, d.chain[:, -1, 1:4])
    x, following, which = d.pairs(d.chain)
    seen = seen.repeat_interleave(4, 0)
    other = following.clone()
    other[:, [0, 4, 5, 6, 7]] += 1.0
    assert torch.equal(d.log_density(seen, x, following, which), d.log_density(seen, x, other, which))
    other[:, 2] += 1.0
    assert (d.log_density(seen, x, following, which) != d.log_density(seen, x, other, which)).all()


def test_the_first_steps_are_the_frozen_policys() -> None:
    """Of 4 steps 2 are tuned: whatever becomes of the tuned network, what they begin with stays the same."""
    d = _denoising(tuned_steps=2)
    seen, noise, executed = _draw(d)
    begun, ended = d.chain[:, 0], d.chain[:, -1]
    assert d.chain.shape == (5, 3, 8, 2)
    with torch.no_grad():
        d.policy.network(d.count - 1).final[1].bias.add_(1.0)
    again = d(seen, noise.flatten(1))[0]
    assert torch.equal(d.chain[:, 0], begun)
    assert not torch.equal(again, executed)
    with torch.no_grad():
        d.policy.network(0).final[1].bias.add_(1.0)
    d(seen, noise.flatten(1))
    assert not torch.equal(d.chain[:, 0], begun)
    assert not torch.equal(d.chain[:, -1], ended)


def test_every_step_is_noisy_in_training_the_last_one_too() -> None:
    d = _denoising(sampling_std=0.25)
    seen, noise, _ = _draw(d, 400)
    with torch.no_grad():
        mean, std = d.gaussian(d.policy.network(d.count - 1), d.chain[:, -2], torch.full((400,), 3), d.condition(seen))
    assert std.max() == 0
    assert (d.chain[:, -1] - mean).std().item() == pytest.approx(0.25, abs=0.01)
    noise[:, -1] = 1e6
    d(seen, noise.flatten(1))
    torch.testing.assert_close(d.chain[:, -1] - mean, torch.full((400, 8, 2), 0.75), rtol=0, atol=1e-3)


def test_all_steps_are_tuned_where_there_are_fewer() -> None:
    assert (_denoising().tuned, _denoising(DDPM).tuned, _denoising(DDPM, tuned_steps=3).tuned) == (4, 10, 3)


def test_clip_ranges_are_those_of_the_sheet() -> None:
    """DPPO's formula for K' = 10, 0.001 to 0.01, by hand."""
    known = [0.001, 0.00119, 0.00145, 0.00181, 0.00232, 0.00303, 0.00401, 0.00539, 0.00732, 0.01]
    assert clip_ranges(10, 0.001, 0.01).tolist() == pytest.approx(known, abs=6e-6)
    assert clip_ranges(1, 0.001, 0.01).tolist() == pytest.approx([0.01])


@pytest.mark.parametrize(
    "changes", [{"tuned_steps": 0}, {"sampling_std": 0.0}, {"density_std": 0.0}, {"noise_limit": -1.0}]
)
def test_wrong_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be"):
        DenoisingConfig(**changes)
