"""Intervals against published values, hand computation and simulation."""

import math

import numpy as np
import pytest

from policy_decorator.statistics import mean_interval, paired_gain, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Stat. Med. 17:857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Closed form with z = 1.959964: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (98, 100, 0.9300, 0.9945),
    ],
)
def test_wilson_gives_the_published_interval(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_covers_the_true_rate_about_95_times_in_100() -> None:
    draws = np.random.default_rng(0).binomial(50, 0.9, size=2000)
    table = {k: wilson(k, 50) for k in set(draws.tolist())}
    covered = np.mean([table[k][0] <= 0.9 <= table[k][1] for k in draws.tolist()])
    assert 0.93 < covered < 0.985  # the exact coverage at n = 50, p = 0.9 is 0.970


def test_wilson_refuses_more_successes_than_episodes() -> None:
    with pytest.raises(ValueError, match="n"):
        wilson(3, 2)


def test_paired_gain_of_a_hand_computed_example() -> None:
    # 10 both solve, 6 fixed, 1 broken, 3 both fail: n = 20, p1 = 7/22, p2 = 2/22, centre 5/22 = 0.227273,
    # variance (9/22 - (5/22)^2) / 22 = 0.0162472, half width 1.959964 * 0.127465 = 0.249827.
    base = np.array([1] * 10 + [0] * 6 + [1] + [0] * 3, dtype=bool)
    refined = np.array([1] * 10 + [1] * 6 + [0] + [0] * 3, dtype=bool)
    found = paired_gain(base, refined)
    assert (found.fixed, found.broken, found.n) == (6, 1, 20)
    assert found.gain == pytest.approx(0.25)
    assert (found.low, found.high) == pytest.approx((-0.022554, 0.477100), abs=1e-5)
    assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)  # two tails of Binomial(7, 1/2)


def test_paired_gain_changes_sign_when_the_policies_are_swapped() -> None:
    rng = np.random.default_rng(1)
    base, refined = rng.random(40) < 0.4, rng.random(40) < 0.8
    there, back = paired_gain(base, refined), paired_gain(refined, base)
    assert there.gain == -back.gain
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p_value == pytest.approx(back.p_value)


def test_paired_gain_without_flips_is_zero_and_unproven() -> None:
    same = np.array([True, False, True])
    found = paired_gain(same, same)
    assert found.gain == 0.0
    assert found.p_value == 1.0
    assert found.low < 0.0 < found.high


def test_paired_gain_stays_within_plus_minus_one() -> None:
    found = paired_gain(np.zeros(5, bool), np.ones(5, bool))
    assert found.gain == found.high == 1.0


@pytest.mark.parametrize("shape", [(0,), (3, 2)])
def test_paired_gain_refuses_what_is_no_row_of_outcomes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="outcomes"):
        paired_gain(np.zeros(shape, bool), np.zeros(shape, bool))


def test_paired_gain_refuses_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="outcomes"):
        paired_gain(np.zeros(3, bool), np.zeros(4, bool))


def test_paired_gain_interval_covers_the_true_gain() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):  # P(fixed) = 0.4, P(broken) = 0.1: true gain 0.3
        kind = rng.choice(4, size=50, p=[0.4, 0.1, 0.3, 0.2])
        found = paired_gain((kind == 1) | (kind == 2), (kind == 0) | (kind == 2))
        hits += found.low <= 0.3 <= found.high
    assert 0.91 < hits / 300 < 0.99


def test_mean_interval_uses_student_t() -> None:
    found = mean_interval([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.302653, standard error 1/sqrt(3)
    assert found == pytest.approx((2.0, 2.0 - 4.302653 / math.sqrt(3), 2.0 + 4.302653 / math.sqrt(3)), abs=1e-5)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_mean_interval_of_one_seed_is_unknown() -> None:
    found = mean_interval([0.7])
    assert found.mean == 0.7
    assert math.isnan(found.low)
    assert math.isnan(found.high)
