"""The difference of two models on the same questions: its interval, its test, and how many questions tell it.

Differences are B's minus A's. Two outcomes of each question give McNemar's test and Tango's interval, which agree: the
interval leaves out 0 where the test finds a difference. Means (several answers to a question, scores) give a bootstrap
and a permutation test of pairs. All at 95 % and, for numbers of questions, a power of 80 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower

from openrlhf_ext.evaluation.agreement import LEVEL, Estimate

POWER = 0.8
FEW_DISCORDANT = 25  # below it McNemar's test is the exact one
RESAMPLES = 5000
MANY = 500  # questions from which means are as good as normal
BLOCK = 4_000_000  # numbers of a bootstrap that are in memory at a time
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
Z_POWER = float(stats.norm.ppf(POWER))


@dataclass(frozen=True, slots=True)
class Difference:
    """Of `n` questions that both have. `a` and `b` are their rates or means, `difference` is b - a.

    `only_a` and `only_b`: questions of which A's, or B's, answer alone counts (of rates with one answer each).
    `needed`: about how many questions such a difference needs to be told from chance with the power; None for none.
    `detectable`: about the smallest difference that n questions tell with it; None where they tell none.
    """

    n: int
    a: float
    b: float
    difference: Estimate
    p: float
    test: str
    needed: int | None
    detectable: float | None
    only_a: int | None = None
    only_b: int | None = None


def difference_of_rates(a: Sequence[bool], b: Sequence[bool]) -> Difference:
    """Of one outcome of each question by each model; McNemar's test, exact for few discordant questions."""
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    assert first.shape == second.shape and len(first), "one outcome of each for each question"
    n, only_a, only_b = len(first), int(np.sum(first & ~second)), int(np.sum(~first & second))
    exact = only_a + only_b < FEW_DISCORDANT
    table = [[int(np.sum(first & second)), only_a], [only_b, int(np.sum(~first & ~second))]]
    found = mcnemar(table, exact=exact, correction=False)
    low, high = tango(only_b, only_a, n)
    difference = (only_b - only_a) / n
    discordant = (only_a + only_b) / n
    return Difference(
        n=n,
        a=float(first.mean()),
        b=float(second.mean()),
        difference=Estimate(difference, low, high),
        p=min(1.0, float(found.pvalue)),
        test="McNemar's exact test" if exact else "McNemar's test",
        needed=pairs_needed(discordant, difference),
        detectable=detectable_rate(discordant, n),
        only_a=only_a,
        only_b=only_b,
    )


def difference_of_means(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> Difference:
    """Of one number of each question by each model; a permutation test of pairs, or the t test of many."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    assert first.shape == second.shape and len(first), "one number of each for each question"
    n, apart = len(first), second - first
    middle, spread = float(apart.mean()), float(apart.std(ddof=1)) if n > 1 else math.nan
    if spread < 1e-12 * float(np.abs(apart).max()):  # rounding: every question differs by the same
        spread = 0.0
    low, high = _bootstrap(first, second, seed) if spread > 0 else (middle, middle) if n > 1 else (math.nan, math.nan)
    p, test = _test_of_means(first, second, seed)
    return Difference(
        n=n,
        a=float(first.mean()),
        b=float(second.mean()),
        difference=Estimate(middle, low, high),
        p=p,
        test=test,
        needed=means_needed(middle, spread),
        detectable=detectable_mean(spread, n),
    )


def tango(more: int, less: int, n: int) -> tuple[float, float]:
    """The score interval of (more - less) / n, where so many of n pairs changed in each direction.

    Tango 1998, Statistics in Medicine 17, 891-908: the differences that a score test does not refuse, McNemar's being
    the one at 0.
    """

    def score(delta: float) -> float:
        # The likeliest probability of `less`, given the difference: a root of 2 n q^2 + B q + C.
        linear = -more - less + (2 * n - more + less) * delta
        constant = -less * delta * (1 - delta)
        q = (math.sqrt(max(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        apart = more - less - n * delta
        return apart / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, apart) if apart else 0.0

    middle = (more - less) / n
    low = -1.0 if score(-1.0) <= Z else optimize.brentq(lambda delta: _finite(score(delta)) - Z, -1.0, middle)
    high = 1.0 if score(1.0) >= -Z else optimize.brentq(lambda delta: _finite(score(delta)) + Z, middle, 1.0)
    return float(low), float(high)


def pairs_needed(discordant: float, difference: float) -> int | None:
    """Pairs for McNemar's test of a difference of rates, where so large a part of the pairs is discordant.

    Connor 1987, Biometrics 43, 207-211. None for no difference.
    """
    if not difference:
        return None
    root = Z * math.sqrt(discordant) + Z_POWER * math.sqrt(max(discordant - difference**2, 0.0))
    return math.ceil((root / difference) ** 2)


def detectable_rate(discordant: float, n: int) -> float | None:
    """`pairs_needed` solved for the difference; the discordant part is at least the difference."""
    return _smallest(lambda size: pairs_needed(max(discordant, size), size) or math.inf, n)


def means_needed(difference: float, spread: float) -> int | None:
    """Pairs for the t test of a mean difference; `spread` is the standard deviation of the differences."""
    if not difference or math.isnan(spread):
        return None
    return math.ceil(_pairs_for_effect(abs(difference) / spread)) if spread else 2


def detectable_mean(spread: float, n: int) -> float | None:
    """`means_needed` solved for the difference."""
    if n < 3 or math.isnan(spread):
        return None
    if not spread:
        return 0.0
    return float(TTestPower().solve_power(nobs=n, alpha=1 - LEVEL, power=POWER)) * spread


def _pairs_for_effect(effect: float) -> float:
    """By statsmodels within its reach, which ends at a few pairs and where the t distribution is the normal one."""
    normal = ((Z + Z_POWER) / effect) ** 2
    if normal > 1e5:
        return normal
    least = detectable_mean(1.0, 3)
    if least is not None and effect >= least:
        return 3.0
    return float(TTestPower().solve_power(effect_size=effect, alpha=1 - LEVEL, power=POWER))


def _smallest(needed: Callable[[float], float], n: int) -> float | None:
    if needed(1.0) > n:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if middle and needed(middle) <= n else (middle, high)
    return high


def _bootstrap(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float]:
    """Of pairs; bias-corrected and accelerated where that costs little."""
    found = stats.bootstrap(
        (b, a),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BLOCK // len(a)),
        confidence_level=LEVEL,
        method="BCa" if len(a) <= MANY else "percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _test_of_means(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, str]:
    if np.all(a == b) or len(a) < 2:
        return (1.0, "no test: there is no difference") if np.all(a == b) else (math.nan, "no test of one question")
    if len(a) > MANY:
        return float(stats.ttest_rel(b, a).pvalue), "paired t test"
    found = stats.permutation_test(
        (b - a,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BLOCK // len(a)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue), "permutation test of pairs"


def _finite(value: float) -> float:
    return max(-1e9, min(1e9, value))
