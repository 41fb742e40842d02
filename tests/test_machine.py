"""Faster settings of the process change the time of the arithmetic and not its result."""

import pytest
import torch

from policy_decorator import machine


def test_products_stay_exact() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        machine.use_cpu_well()
        a, b = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), rtol=0, atol=1e-3)
    finally:
        torch.set_float32_matmul_precision(before)


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
    machine.use_cpu_well()
    assert torch.equal(state, torch.get_rng_state())
