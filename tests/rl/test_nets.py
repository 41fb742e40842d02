"""The actor's density and the critics, against torch.distributions, quadrature and plain modules."""

import math
from typing import cast

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from policy_decorator.errors import UserError
from policy_decorator.rl.nets import Critics, NetConfig, Standardize, TanhGaussian
from policy_decorator.rl.stacked import StackedLinear, StackedMLP


def _gaussian(actor: TanhGaussian, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as the head says them."""
    mean, x = actor.net(seen)[0].chunk(2, dim=-1)
    low, high = actor.cfg.log_std_min, actor.cfg.log_std_max
    return mean, (low + (high - low) * (x.tanh() + 1) / 2).exp()


@pytest.mark.parametrize("chunk", [(1, 1), (1, 4), (3, 2)])
def test_log_probability_is_that_of_torch_distributions(chunk: tuple[int, int]) -> None:
    actor = TanhGaussian(5, chunk, NetConfig(width=16, depth=1, head_gain=3.0, log_std_min=-3)).double()
    seen = torch.randn(200, 5, dtype=torch.float64)
    sample, log_prob = actor(seen)
    assert sample.shape == (200, *chunk)
    mean, std = _gaussian(actor, seen)
    reference = TransformedDistribution(Independent(Normal(mean, std), 1), TanhTransform())
    keep = sample.flatten(1).abs().amax(1) < 1 - 1e-9  # the reference inverts tanh, which rounds at the very edge
    assert keep.float().mean() > 0.8
    torch.testing.assert_close(log_prob[keep], reference.log_prob(sample.flatten(1))[keep], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("mean", "x"), [(0.0, 0.0), (0.8, -0.4), (-2.0, 0.3), (0.0, -2.0)])
def test_the_density_integrates_to_one(mean: float, x: float) -> None:
    """One dimension: the sample as a function of the noise sweeps (-1, 1); integrate exp(log_prob) over it."""
    actor = TanhGaussian(1, (1, 1), NetConfig(width=4, depth=1, log_std_min=-6)).double()
    with torch.no_grad():  # a head that answers `mean` and `x` whatever it sees
        actor.net.head.weight.zero_()
        actor.net.head.bias.copy_(torch.tensor([mean, x]))
    noise = torch.linspace(-9, 9, 40001, dtype=torch.float64)[:, None]
    sample, log_prob = actor(noise, noise)
    assert torch.trapezoid(log_prob.exp(), sample.flatten()).item() == pytest.approx(1.0, abs=1e-5)


def test_given_noise_decides_the_sample_and_fresh_noise_is_standard_normal() -> None:
    actor, seen = TanhGaussian(3, (2, 2), NetConfig(width=8, depth=1, head_gain=1.0)), torch.randn(5000, 3)
    noise = actor.fresh_noise(seen)
    assert noise.shape == (5000, 4)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3  # pyright: ignore[reportAttributeAccessIssue]
    sample, log_prob = actor(seen, noise)
    mean, std = _gaussian(actor, seen)
    torch.testing.assert_close(sample, (mean + std * noise).tanh().view(5000, 2, 2))
    torch.manual_seed(4)
    fresh = actor.fresh_noise(seen)
    torch.manual_seed(4)
    for x, y in zip(actor(seen), actor(seen, fresh), strict=True):
        assert torch.equal(x, y)
    assert not torch.equal(actor(seen)[1], log_prob)


def test_several_samples_at_once_are_those_of_as_many_calls() -> None:
    actor, seen, noise = TanhGaussian(3, (2, 2), NetConfig(width=8, depth=1)), torch.randn(5, 3), torch.randn(7, 5, 4)
    sample, log_prob = actor(seen, noise)
    assert (sample.shape, log_prob.shape) == ((7, 5, 2, 2), (7, 5))
    for k in range(7):
        for together, alone in zip((sample[k], log_prob[k]), actor(seen, noise[k]), strict=True):
            torch.testing.assert_close(together, alone)


def test_the_log_probability_stays_finite_where_tanh_saturates() -> None:
    actor = TanhGaussian(2, (1, 3), NetConfig(width=8, depth=1))
    with torch.no_grad():
        actor.net.head.bias.fill_(40.0)
    sample, log_prob = actor(torch.randn(64, 2))
    assert (sample.abs() == 1).any()
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in actor.parameters())


def test_samples_have_the_distribution_that_the_log_probability_claims() -> None:
    actor = TanhGaussian(2, (1, 2), NetConfig(width=8, depth=1, head_gain=1.0, log_std_min=-2, log_std_max=0))
    seen = torch.tensor([[0.5, -1.0]]).repeat(40_000, 1)
    sample, log_prob = actor(seen)
    mean, std = (x[0].tolist() for x in _gaussian(actor, seen))
    u = sample.flatten(1).atanh()
    for k in range(2):
        assert u[:, k].mean().item() == pytest.approx(mean[k], abs=5 * std[k] / 200)
        assert u[:, k].std().item() == pytest.approx(std[k], rel=0.02)
    assert abs(torch.corrcoef(u.T)[0, 1].item()) < 5 / 200
    reference = Independent(Normal(torch.tensor(mean), torch.tensor(std)), 1)
    change = reference.entropy() + (1 - sample.flatten(1) ** 2).log().sum(1).mean()  # of variables, Monte Carlo
    assert -log_prob.mean().item() == pytest.approx(change.item(), abs=0.05)


def test_the_mode_is_tanh_of_the_mean_and_draws_nothing() -> None:
    actor, seen = TanhGaussian(3, (2, 2), NetConfig(head_gain=1.0)), torch.randn(7, 3)
    before = torch.get_rng_state()
    torch.testing.assert_close(actor.mode(seen), _gaussian(actor, seen)[0].tanh().view(7, 2, 2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("low", "high"), [(-20.0, 2.0), (-5.0, 0.5)])
def test_log_std_covers_its_range_and_never_leaves_it(low: float, high: float) -> None:
    actor = TanhGaussian(3, (1, 2), NetConfig(head_gain=300.0, log_std_min=low, log_std_max=high))
    log_std = actor.gaussian(10 * torch.randn(2000, 3))[1]
    assert log_std.min().item() == pytest.approx(low, abs=1e-3)
    assert log_std.max().item() == pytest.approx(high, abs=1e-3)
    assert ((log_std >= low - 1e-5) & (log_std <= high + 1e-5)).all()


def test_an_untrained_actor_hardly_explores_as_in_the_released_code() -> None:
    log_std = TanhGaussian(6, (1, 3)).gaussian(torch.randn(500, 6))[1]
    torch.testing.assert_close(log_std, torch.full_like(log_std, -9.0), atol=0.15, rtol=0)  # (-20 + 2) / 2


@pytest.mark.parametrize("chunk", [(1, 2), (3, 2)])
@pytest.mark.parametrize("std", [0.01, 0.22, 1.5])
def test_an_untrained_actor_may_begin_at_zero_with_a_standard_deviation_of_ones_choice(
    chunk: tuple[int, int], std: float
) -> None:
    cfg = NetConfig(width=16, depth=2, zero_init=True, initial_std=std, log_std_min=-5)
    actor, seen = TanhGaussian(3, chunk, cfg), torch.randn(500, 3)
    mean, its_std = _gaussian(actor, seen)
    assert not mean.any()
    assert not actor.mode(seen).any()
    torch.testing.assert_close(its_std, torch.full_like(its_std, std), rtol=1e-5, atol=0)
    noise = actor.fresh_noise(seen)
    torch.testing.assert_close(actor(seen, noise)[0].flatten(1), (std * noise).tanh(), rtol=1e-4, atol=1e-7)


def test_beginning_at_zero_leaves_the_random_stream_and_the_other_layers_alone() -> None:
    actors, streams = [], []
    for zero in (False, True):
        torch.manual_seed(4)
        actors.append(TanhGaussian(3, (1, 2), NetConfig(width=16, depth=2, zero_init=zero)))
        streams.append(torch.rand(3))
    assert torch.equal(*streams)
    one, other = (dict(actor.named_parameters()) for actor in actors)
    assert [name for name in one if not torch.equal(one[name], other[name])] == ["net.head.weight"]


def test_without_zero_the_standard_deviation_begins_close_to_the_one_chosen() -> None:
    actor = TanhGaussian(3, (1, 2), NetConfig(initial_std=0.1))
    _, std = _gaussian(actor, torch.randn(500, 3))
    assert 0.08 < std.min() < std.max() < 0.125


@pytest.mark.parametrize("std", [0.0, math.exp(-5), math.exp(2), 10.0])
def test_an_initial_standard_deviation_must_be_one_the_actor_can_have(std: float) -> None:
    with pytest.raises(UserError, match="initial_std must be between"):
        NetConfig(initial_std=std, log_std_min=-5)


def test_a_state_dict_holds_the_statistics() -> None:
    actor = TanhGaussian(3, (1, 1))
    actor.standardize.set(torch.tensor([1.0, 2, 3]), torch.tensor([4.0, 5, 6]))
    again = TanhGaussian(3, (1, 1))
    again.load_state_dict(actor.state_dict())
    seen = 10 * torch.randn(50, 3)
    assert torch.equal(again.mode(seen), actor.mode(seen))


# ---- standardisation ------------------------------------------------------------------------------------------


def test_standardize_is_the_identity_until_it_is_set() -> None:
    x = 1e6 * torch.randn(10, 4)
    assert torch.equal(Standardize(4)(x), x)


def test_standardize_by_hand_and_a_base_action_behind_passes_unchanged() -> None:
    standardize = Standardize(4)
    standardize.set(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0]))
    x = torch.tensor([[5.0, 5.002, 123.0, -4.0], [1e6, -1e6, 0.0, 7.0]])
    expected = torch.tensor([[4 / 2.001, 2.0, 123.0, -4.0], [10.0, -10.0, 0.0, 7.0]])
    torch.testing.assert_close(standardize(x), expected, rtol=1e-3, atol=1e-3)


# ---- critics --------------------------------------------------------------------------------------------------


def _linears(critics: Critics) -> list[StackedLinear]:
    return [critics.net.first, *cast(list[StackedLinear], list(critics.net.hidden)), critics.net.head]


def test_the_last_layer_is_small_and_orthogonal() -> None:
    head = StackedMLP(3, (3, 8, 8, 2), 0.5).head
    for weight in head.weight:
        torch.testing.assert_close(weight @ weight.T, 0.25 * torch.eye(2), atol=1e-6, rtol=0)
    assert not head.bias.any()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_critics_are_n_plain_networks(n: int, layer_norm: bool) -> None:
    critics = Critics(4, 3, NetConfig(width=16, depth=2, critics=n, critic_layer_norm=layer_norm, head_gain=1.0))
    with torch.no_grad():
        for p in critics.parameters():
            p.add_(0.1 * torch.randn_like(p))  # biases are not all zero
    obs, action = torch.randn(9, 4), torch.randn(9, 1, 3)
    q = critics(obs, action)
    assert q.shape == (n, 9)
    for k in range(n):
        x = torch.cat([obs, action.flatten(1)], dim=1)
        *layers, head = _linears(critics)
        for layer in layers:
            x = nn.functional.linear(x, layer.weight[k], layer.bias[k, 0])
            if layer_norm:  # without scale and shift
                x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = x.clamp(min=0)
        last = nn.functional.linear(x, head.weight[k], head.bias[k, 0])
        torch.testing.assert_close(q[k], last.squeeze(1), rtol=1e-5, atol=1e-5)


def test_the_critics_begin_independently_near_zero() -> None:
    critics = Critics(4, 2)
    q = critics(torch.randn(100, 4), torch.randn(100, 1, 2))
    assert q.abs().max() < 0.05  # the small last layer
    assert not torch.allclose(q[0], q[1], atol=1e-5)
    for layer, fan_in in zip(_linears(critics)[:-1], (6, 256, 256), strict=True):
        assert layer.weight.abs().max().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.02)  # PyTorch's default


def test_the_critics_standardize_observations_alone() -> None:
    critics = Critics(2, 1, NetConfig(width=8, depth=1, head_gain=1.0))
    obs, action = torch.randn(5, 2), torch.randn(5, 1, 1)
    plain = critics((obs - 3) / 2.001, action)
    critics.standardize.set(torch.full((2,), 3.0), torch.full((2,), 2.0))
    torch.testing.assert_close(critics(obs, action), plain, rtol=1e-4, atol=1e-5)


def test_a_copy_with_the_same_parameters_gives_the_same_values() -> None:
    cfg = NetConfig(width=8, depth=2, critic_layer_norm=True)
    one, two = Critics(3, 2, cfg), Critics(3, 2, cfg)
    obs, action = torch.randn(5, 3), torch.randn(5, 1, 2)
    assert not torch.equal(one(obs, action), two(obs, action))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(obs, action), two(obs, action))


def test_bfloat16_in_the_hidden_layers_keeps_inputs_and_outputs_in_float32() -> None:
    torch.manual_seed(1)
    exact, rounded = (Critics(4, 2, NetConfig(critic_layer_norm=True, precision=p)) for p in ("float32", "bfloat16"))
    rounded.load_state_dict(exact.state_dict())
    obs, action = torch.randn(50, 4), torch.randn(50, 1, 2)
    q, reference = rounded(obs, action), exact(obs, action)
    assert q.dtype == torch.float32
    error = (q - reference).abs().max() / reference.abs().max()
    assert 1e-6 < error < 0.03  # rounded, and by no more than eight bits are worth
    grads = torch.autograd.grad(q.sum(), list(rounded.parameters()))
    for grad, same in zip(grads, torch.autograd.grad(reference.sum(), list(exact.parameters())), strict=True):
        assert grad.dtype == torch.float32
        assert (grad - same).norm() < 0.08 * same.norm()  # ReLUs near zero open and close
    # Inputs that differ by less than bfloat16 can tell are still told apart: the first layer has all digits.
    assert not torch.equal(rounded(obs + 1e-4, action), q)
