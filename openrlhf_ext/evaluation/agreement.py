"""How far a judge agrees with labels, and raters with each other: rates with intervals, kappa, alpha, what order does.

Positive is a response that is right. Rates have Wilson's interval; F1 and kappa have the percentiles of a bootstrap
(which holds for small samples and skewed labels), all at 95 %. Rows that belong together, such as a right and a wrong
response to one question, are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import krippendorff
import numpy as np
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval; NaN where it cannot be told (a rate of nothing)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return "-" if math.isnan(self.value) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of n verdicts with labels. `auc`: of the graded reward, NaN where labels are of one kind."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    kappa: Estimate
    auc: float

    @property
    def n(self) -> int:
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives

    @property
    def one_kind_of_label(self) -> bool:
        return not (self.true_positives + self.false_negatives and self.false_positives + self.true_negatives)

    @property
    def no_better_than_chance(self) -> bool:
        """The interval of kappa includes 0, or lies below it. Nothing can be said of labels of one kind."""
        return not self.one_kind_of_label and not self.kappa.low > 0


def agreement(
    labels: Sequence[bool],
    verdicts: Sequence[bool],
    *,
    rewards: Sequence[float] | None = None,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """`clusters` name the rows that belong together (None: each is its own). All sequences have one length."""
    right, said = np.asarray(labels, dtype=bool), np.asarray(verdicts, dtype=bool)
    assert right.shape == said.shape, "one label for each verdict"
    tp, fp = int(np.sum(right & said)), int(np.sum(~right & said))
    fn, tn = int(np.sum(right & ~said)), int(np.sum(~right & ~said))
    draws = _draws(2 * right + said, 4, clusters, resamples, seed)
    two_kinds = 0 < int(right.sum()) < len(right)
    auc = float(roc_auc_score(right, rewards)) if rewards is not None and two_kinds else math.nan
    f1 = float(f1_score(right, said, zero_division=0.0)) if tp + fp + fn else math.nan
    return Agreement(
        true_positives=tp,
        false_positives=fp,
        false_negatives=fn,
        true_negatives=tn,
        accuracy=wilson(tp + tn, len(right)),
        precision=wilson(tp, tp + fp),
        recall=wilson(tp, tp + fn),
        f1=_with_interval(f1, _f1(draws)),
        kappa=_with_interval(_whole_kappa(right, said), _kappa(draws.reshape(-1, 2, 2))),
        auc=auc,
    )


def cohens_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Of two raters' words, of any number of kinds, for the same items; NaN where both use one word only.

    `clusters` as in `agreement`.
    """
    assert len(first) == len(second), "two words for each item"
    kinds = {word: place for place, word in enumerate(dict.fromkeys([*first, *second]))}
    if len(kinds) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    one, two = ([kinds[word] for word in words] for words in (first, second))
    cells = len(kinds) * np.asarray(one) + np.asarray(two)
    draws = _draws(cells, len(kinds) ** 2, clusters, resamples, seed)
    return _with_interval(float(cohen_kappa_score(one, two)), _kappa(draws.reshape(-1, len(kinds), len(kinds))))


def krippendorffs_alpha(
    words: Sequence[Sequence[Hashable]],
    *,
    clusters: Sequence[Any] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Of what any number of raters said of each item (nominal). Items with fewer than two words tell nothing; NaN where
    no item has two, or all words are the same. `clusters` as in `agreement`.
    """
    kinds = {word: place for place, word in enumerate(dict.fromkeys(word for item in words for word in item))}
    counts = np.zeros((len(words), len(kinds)))
    for place, item in enumerate(words):
        for word in item:
            counts[place, kinds[word]] += 1
    told = np.flatnonzero(counts.sum(axis=1) > 1)
    if len(kinds) < 2 or not len(told) or np.count_nonzero(counts[told].sum(axis=0)) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    drawn = _draws(np.arange(len(told)), len(told), _at(clusters, told), resamples, seed).astype(int)
    draws = [_alpha(np.repeat(counts[told], times, axis=0)) for times in drawn]
    return _with_interval(_alpha(counts[told]), np.asarray(draws))


def _alpha(counts: np.ndarray) -> float:
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def _at(clusters: Sequence[Any] | None, places: np.ndarray) -> Sequence[Any] | None:
    return None if clusters is None else [clusters[place] for place in places]


def wilson(hits: float, n: float) -> Estimate:
    """A rate with Wilson's score interval; an effective number of observations need not be whole."""
    if not n:
        return Estimate(math.nan, math.nan, math.nan)
    low, high = proportion_confint(hits, n, alpha=1 - LEVEL, method="wilson")
    return Estimate(hits / n, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Consistency:
    """Over `repeats` verdicts on each of `rows` responses: the part on which all agree, and Fleiss' kappa of them."""

    rows: int
    repeats: int
    unanimous: Estimate
    fleiss_kappa: float


def consistency(verdicts: Sequence[Sequence[bool]]) -> Consistency:
    """One row for each response, as many verdicts in each."""
    table = np.asarray(verdicts, dtype=int)
    same = int(np.sum(table.min(axis=1) == table.max(axis=1)))
    kinds = len(np.unique(table))
    kappa = float(fleiss_kappa(aggregate_raters(table, 2)[0])) if kinds > 1 else math.nan
    return Consistency(len(table), table.shape[1], wilson(same, len(table)), kappa)


@dataclass(frozen=True, slots=True)
class OrderBias:
    """What order does. `changed`: verdicts that another order turned; `first`: where something stood first and was
    preferred (pairwise: the response shown first, among those preferred at all; pointwise it is the part of the changed
    verdicts that became right)."""

    n: int
    changed: Estimate
    first: Estimate


def order_bias(original: Sequence[bool], reordered: Sequence[bool]) -> OrderBias:
    """Verdicts on the same responses under two orders of the criteria."""
    before, after = np.asarray(original, dtype=bool), np.asarray(reordered, dtype=bool)
    changed = int(np.sum(before != after))
    return OrderBias(len(before), wilson(changed, len(before)), wilson(int(np.sum(~before & after)), changed))


def pair_order_bias(shown_first_won: Sequence[bool | None], shown_second_won: Sequence[bool | None]) -> OrderBias:
    """For each pair whether its first response won, when it was shown first and when second (None: a tie)."""
    pairs = list(zip(shown_first_won, shown_second_won, strict=True))
    first = [won for won, _ in pairs if won is not None] + [not won for _, won in pairs if won is not None]
    changed = sum(a != b for a, b in pairs)
    return OrderBias(len(pairs), wilson(changed, len(pairs)), wilson(sum(first), len(first)))


def as_json(value: Any) -> dict[str, Any]:
    """The fields of a dataclass of figures, with null for what cannot be told."""
    return {name: _plain(item) for name, item in asdict(value).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _draws(
    cell: Sequence[int] | np.ndarray, cells: int, clusters: Sequence[Any] | None, resamples: int, seed: int
) -> np.ndarray:
    """(resamples, cells): how many rows are in each cell, of as many clusters as there are, drawn with replacement."""
    if not len(cell):
        return np.zeros((0, cells))
    _, place = np.unique(np.asarray(clusters if clusters is not None else range(len(cell))), return_inverse=True)
    of_cluster = np.zeros((int(place.max()) + 1, cells))
    np.add.at(of_cluster, (place, np.asarray(cell, dtype=int)), 1)
    n = len(of_cluster)
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) @ of_cluster


def _kappa(cells: np.ndarray) -> np.ndarray:
    """Of (resamples, kinds, kinds) counts."""
    n = cells.sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = (cells.sum(axis=1) * cells.sum(axis=2)).sum(axis=1) / n**2
        return (np.trace(cells, axis1=1, axis2=2) / n - expected) / (1 - expected)


def _whole_kappa(right: np.ndarray, said: np.ndarray) -> float:
    if len(np.unique(right)) < 2:
        return math.nan
    return float(cohen_kappa_score(right, said))


def _f1(cells: np.ndarray) -> np.ndarray:
    _, fp, fn, tp = cells.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * tp / (2 * tp + fp + fn)


def _with_interval(value: float, draws: np.ndarray) -> Estimate:
    """Draws of which it cannot be told (one kind of label only) are left out."""
    told = draws[np.isfinite(draws)]
    if math.isnan(value) or not len(told):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(told, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
