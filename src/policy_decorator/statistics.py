"""Intervals for success rates, for the gain of one policy over another on equal episodes, and across seeds.

rate    Wilson score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209-212)
gain    Bonett-Price adjusted Wald interval for paired proportions
        (Bonett & Price 2012, J. Educ. Behav. Stat. 37(4):479-488)
flips   exact McNemar test: fixed ~ Binomial(fixed + broken, 1/2) (McNemar 1947, Psychometrika 12:153-157)
seeds   Student t interval of the mean
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class PairedGain(NamedTuple):
    """How much better the refined policy does than the base on the very same episodes."""

    gain: float
    """Success rate of the refined policy minus that of the base, in [-1, 1]."""
    low: float
    high: float
    fixed: int
    """Episodes the base failed and the refined policy solved."""
    broken: int
    """Episodes the base solved and the refined policy failed."""
    n: int
    p_value: float
    """Exact two-sided McNemar test of "fixes and breaks are equally likely"."""


class MeanInterval(NamedTuple):
    """A mean with its 95 % interval; the interval is nan for a single value."""

    mean: float
    low: float
    high: float


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (low, high) of a success rate.

    Raises ValueError unless 0 <= successes <= n and n > 0.
    """
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_gain(base: np.ndarray, refined: np.ndarray) -> PairedGain:
    """Gain of `refined` over `base`, both (N,) bool: success on the same N episodes, in the same order.

    With f fixed and b broken episodes, p1 = (f + 1) / (N + 2) and p2 = (b + 1) / (N + 2), the interval is
    p1 - p2 -+ z sqrt((p1 + p2 - (p1 - p2)^2) / (N + 2)), cut to [-1, 1]; the gain itself is (f - b) / N.

    Raises ValueError when the two differ in length, are empty or are not one-dimensional.
    """
    base, refined = np.asarray(base, dtype=bool), np.asarray(refined, dtype=bool)
    if base.ndim != 1 or base.shape != refined.shape or base.size == 0:
        raise ValueError(f"two equal, non-empty rows of outcomes are needed, got {base.shape} and {refined.shape}")
    n = int(base.size)
    fixed, broken = int((~base & refined).sum()), int((base & ~refined).sum())
    p_fixed, p_broken = (fixed + 1) / (n + 2), (broken + 1) / (n + 2)
    centre = p_fixed - p_broken
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt((p_fixed + p_broken - centre**2) / (n + 2))
    flips = fixed + broken
    p_value = float(stats.binomtest(fixed, flips, 0.5).pvalue) if flips else 1.0
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return PairedGain((fixed - broken) / n, low, high, fixed, broken, n, p_value)


def mean_interval(values: Sequence[float] | np.ndarray) -> MeanInterval:
    """Mean of one number a seed, with its 95 % Student t interval. Raises ValueError when there are none."""
    numbers = np.asarray(values, dtype=float)  # (S,)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"a non-empty row of numbers is needed, got shape {numbers.shape}")
    mean = float(numbers.mean())
    if numbers.size == 1:
        return MeanInterval(mean, math.nan, math.nan)
    # Not stats.t.interval: it answers nan where all seeds agree, the interval is then the point itself.
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, numbers.size - 1) * stats.sem(numbers))
    return MeanInterval(mean, mean - half, mean + half)
