"""The eager update is the same mathematics as ours: same weights, batches and noise, same numbers."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from policy_decorator.bench.config import BOUND
from policy_decorator.bench.eager import EagerSAC
from policy_decorator.bench.learner import make_learner, random_transitions
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SAC, SACConfig
from policy_decorator.rl.stacked import StackedLinear, StackedMLP
from policy_decorator.types import Transition

CPU = torch.device("cpu")
OBS, ACTION, BATCH = 5, 3, 32


@pytest.fixture
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def layers(net: nn.Module) -> list[StackedLinear]:
    assert isinstance(net, StackedMLP)
    return [m for m in net.modules() if isinstance(m, StackedLinear)]


def linears(net: nn.Sequential) -> list[nn.Linear]:
    return [m for m in net if isinstance(m, nn.Linear)]


def pairs(ours: SAC, eager: EagerSAC) -> Iterator[tuple[Tensor, Tensor]]:
    """Every number that is learned, ours and theirs."""
    nets = [(ours.actor, [eager.actor]), (ours.critic, eager.critics), (ours.target, eager.targets)]
    for stacked, plain in nets:
        net = stacked.net
        assert isinstance(net, nn.Module)
        # `modules` lists hidden layers and head in the order they were assigned: first, hidden, head.
        for i, layer in enumerate(layers(net)):
            for k, one in enumerate(plain):
                linear = linears(one)[i]
                yield layer.weight[k], linear.weight
                yield layer.bias[k, 0], linear.bias
    yield ours.log_temperature, eager.log_temperature


def both(nets: NetConfig, cfg: SACConfig) -> tuple[SAC, EagerSAC]:
    ours = make_learner(OBS, ACTION, nets, cfg, CPU)
    eager = EagerSAC(OBS, ACTION, BOUND, nets, cfg, "cpu")
    with torch.no_grad():
        for p in ours.target.parameters():  # a target unlike the critic, or the wrong one would go unnoticed
            p.add_(0.1 * torch.randn_like(p))
        for mine, theirs in pairs(ours, eager):
            assert mine.shape == theirs.shape
            theirs.copy_(mine)
    return ours, eager


def batch() -> Transition:
    b = random_transitions(BATCH, OBS, ACTION, CPU)
    return b._replace(
        terminated=(torch.rand(BATCH) < 0.3).to(b.obs.dtype), decisions=1.0 + torch.randint(3, (BATCH,)).to(b.obs.dtype)
    )


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize(("depth", "critics"), [(1, 2), (3, 2), (2, 5)])
@pytest.mark.parametrize("max_grad_norm", [50.0, 0.01])
def test_same_numbers_as_ours(depth: int, critics: int, max_grad_norm: float) -> None:
    cfg = SACConfig(lr=1e-2, tau=0.1, temperature=0.3, max_grad_norm=max_grad_norm)
    ours, eager = both(NetConfig(width=7, depth=depth, critics=critics, head_gain=1.0, log_std_min=-3.0), cfg)
    before = [mine.detach().clone() for mine, _ in pairs(ours, eager)]
    for step in range(4):
        b = batch()
        torch.manual_seed(step)
        ours.update(b)
        torch.manual_seed(step)
        eager.update(b)
    for old, (mine, theirs) in zip(before, pairs(ours, eager), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-9)
        assert not torch.allclose(old, mine.detach(), rtol=1e-4)


def test_same_numbers_at_the_sizes_that_are_measured() -> None:
    ours, eager = both(NetConfig(), SACConfig())
    b = batch()
    torch.manual_seed(0)
    ours.update(b)
    torch.manual_seed(0)
    eager.update(b)
    for mine, theirs in pairs(ours, eager):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=2e-5)  # lr is 1e-4, the size of Adam's first step
