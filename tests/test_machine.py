"""Faster settings of the process change the time of the arithmetic and not its result."""

import pytest
import torch

from policy_decorator import machine


def test_products_stay_exact() -> None:
    machine.use_cpu_well(torch.device("cpu"))
    a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), rtol=0, atol=1e-3)


def test_subnormal_numbers_count_as_zero_until_the_run_is_over() -> None:
    torch.set_flush_denormal(False)
    with machine.as_it_was():
        machine.use_cpu_well(torch.device("cpu"))
        assert machine.flushes_subnormals()
        assert (torch.full((100,), 1e-30) * 1e-12).count_nonzero() == 0
    assert (torch.full((100,), 1e-30) * 1e-12).count_nonzero() == 100


@pytest.mark.parametrize(("before", "after"), [("highest", "highest"), ("high", "high"), ("medium", "highest")])
def test_a_gpus_products_are_left_as_exact_as_they_were(before: str, after: str) -> None:
    torch.set_float32_matmul_precision(before)
    machine.use_cpu_well(torch.device("cuda"))
    assert torch.get_float32_matmul_precision() == after


def test_the_setting_is_taken_back_where_products_would_lose_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    product = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        low = a.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium"
        return product(a.bfloat16(), b.bfloat16()).float() if low else product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not machine.multiply_with_onednn()
    assert torch.get_float32_matmul_precision() == before


def test_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    machine.use_cpu_well(torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state())


def test_the_fewest_threads_that_are_as_fast_as_any_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    took, clock = {1: 5.0, 2: 2.0, 4: 1.02, 6: 1.0}, [0.0]
    now = [6]
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(machine.torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def work() -> None:
        clock[0] += took[now[0]]

    assert machine.fastest_threads(work) == 4
    assert now == [6]
    took[2] = 0.5
    assert machine.fastest_threads(work) == 2
    now[0] = 1
    assert machine.fastest_threads(work) == 1
