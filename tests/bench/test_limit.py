"""The products of one update are counted right, and rates are those of real products."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from policy_decorator.bench.learner import make_learner, random_transitions
from policy_decorator.bench.limit import product_rate, update_flops
from policy_decorator.bench.measure import limit_of
from policy_decorator.rl.nets import NetConfig
from policy_decorator.rl.sac import SACConfig

CPU = torch.device("cpu")


SIZES = (
    {"obs": 39, "action": 28, "width": 256, "depth": 3, "critics": 2, "batch_size": 1024},
    {"obs": 4, "action": 2, "width": 16, "depth": 1, "critics": 2, "batch_size": 8},
    {"obs": 7, "action": 3, "width": 8, "depth": 2, "critics": 5, "batch_size": 32},
)


@pytest.mark.parametrize("sizes", SIZES)
def test_flops_are_those_of_the_real_update(sizes: dict[str, int]) -> None:
    nets = NetConfig(width=sizes["width"], depth=sizes["depth"], critics=sizes["critics"])
    learner = make_learner(sizes["obs"], sizes["action"], nets, SACConfig(), CPU)
    batch = random_transitions(sizes["batch_size"], sizes["obs"], sizes["action"], CPU)
    with FlopCounterMode(display=False) as counter:
        learner.update(batch)
    assert counter.get_total_flops() == update_flops(**sizes)


def test_a_rate_is_that_of_a_product() -> None:
    before = torch.get_float32_matmul_precision()
    rate = product_rate("float32", batch_size=64, width=64, critics=2, device=CPU, seconds=0.05)
    assert 1e6 < rate < 1e16
    assert torch.get_float32_matmul_precision() == before


def test_limit_takes_the_best_threads_of_each_format() -> None:
    limit = limit_of(10**9, {("float32", 1): 2e9, ("float32", 2): 5e9, ("bfloat16", 1): 8e9, ("bfloat16", 2): 4e9})
    assert limit["formats"]["float32"] == {"threads": 2, "flops_per_s": 5e9, "ms": 200.0}
    assert limit["formats"]["bfloat16"] == {"threads": 1, "flops_per_s": 8e9, "ms": 125.0}
    assert limit["fastest"] == "bfloat16"
