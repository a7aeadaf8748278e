"""Exact ranking and calibration metrics: whole set, no bins, no windows, ties included.

Everything is numpy in float64 and vectorised over users. Legend: n rows, G groups
(users); labels are 0 or 1. A metric that is not defined (one class only) is nan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METRICS = ("auc", "gauc", "gauc_macro", "logloss", "normalised_entropy", "calibration", "ece")
"""What :class:`RowMetrics` computes, in this order."""

PROBABILITY_FLOOR = 1e-15
"""Probabilities are kept this far from 0 and 1 in the logloss, as float64 allows."""

CALIBRATION_BINS = 20
"""Bins of equal row count in the expected calibration error."""


class WeightedAuc:
    """AUC from one sort, afterwards for any multiplicities of the groups.

    The Mann-Whitney form: the share of (positive, negative) pairs in which the positive
    has the larger score, a tie counting one half. O(n log n) to build, O(n) a call.

    Args:
        label: [n], 0 or 1.
        score: [n], any order-preserving form (logit or probability).
        group: [n], in 0..G-1.
    """

    def __init__(self, label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike) -> None:
        positive = np.asarray(label) > 0.5
        values, groups = np.asarray(score, dtype=np.float64), np.asarray(group)
        order = np.argsort(values)
        positives, negatives = order[positive[order]], order[~positive[order]]
        # Negatives strictly below each positive, and those that it ties with on top.
        self._below = np.searchsorted(values[negatives], values[positives], side="left")
        self._through = np.searchsorted(values[negatives], values[positives], side="right")
        self._positive_group, self._negative_group = groups[positives], groups[negatives]

    def __call__(self, multiplicity: npt.ArrayLike | None = None) -> float:
        """AUC where each row of group g counts ``multiplicity[g]`` times ([G])."""
        negatives, positives = len(self._negative_group), len(self._positive_group)
        if multiplicity is None:
            wins = float(self._below.sum() + self._through.sum()) / 2
            pairs = float(positives) * negatives
        else:
            times = np.asarray(multiplicity, dtype=np.float64)
            seen = np.zeros(negatives + 1)
            np.cumsum(times[self._negative_group], out=seen[1:])
            weight = times[self._positive_group]
            wins = float(weight @ (seen[self._below] + seen[self._through])) / 2
            pairs = float(weight.sum() * seen[-1])
        return wins / pairs if pairs > 0 else float("nan")


def auc(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Exact area under the ROC curve, mid-ranks for ties; nan with one class. O(n log n).

    Args:
        label: [n], 0 or 1.
        score: [n].
    """
    return WeightedAuc(label, score, np.zeros(np.size(label), dtype=np.int64))()


@dataclass(frozen=True)
class GroupedAuc:
    """AUC within each group; see :func:`auc_per_group`."""

    auc: Floats
    """[G], nan for a group with one class."""
    rows: Ints
    """[G], rows of each group."""

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """[G], the groups with both classes."""
        return ~np.isnan(self.auc)

    @property
    def left_out_groups(self) -> int:
        """Groups (users) with one class only: no AUC is defined for them."""
        return int((~self.counted).sum())

    @property
    def left_out_rows(self) -> int:
        """Rows of those groups."""
        return int(self.rows[~self.counted].sum())

    def weighted(self, multiplicity: npt.ArrayLike | None = None) -> float:
        """Mean over the counted groups, each weighing its rows: the GAUC of DIN's paper."""
        return self._mean(self.rows.astype(np.float64), multiplicity)

    def macro(self, multiplicity: npt.ArrayLike | None = None) -> float:
        """Mean over the counted groups, each weighing the same."""
        return self._mean(np.ones(len(self.rows)), multiplicity)

    def _mean(self, weight: Floats, multiplicity: npt.ArrayLike | None) -> float:
        if multiplicity is not None:
            weight = weight * np.asarray(multiplicity, dtype=np.float64)
        weight = np.where(self.counted, weight, 0.0)
        total = float(weight.sum())
        return float(weight @ np.nan_to_num(self.auc)) / total if total > 0 else float("nan")


def auc_per_group(
    label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike, groups: int | None = None
) -> GroupedAuc:
    """Exact AUC within every group, by one sort and segment sums. O(n log n).

    Args:
        label: [n], 0 or 1.
        score: [n].
        group: [n], in 0..G-1.
        groups: G; the largest group + 1 where absent.
    """
    of, values = np.asarray(group, dtype=np.int64), np.asarray(score, dtype=np.float64)
    size = groups if groups is not None else int(of.max(initial=-1)) + 1
    rows = np.bincount(of, minlength=size)
    order = np.lexsort((values, of))
    of, values = of[order], values[order]
    positive = (np.asarray(label) > 0.5)[order]

    changes = np.ones(len(of) + 1, dtype=bool)  # where a run of tied rows begins, and the end
    changes[1:-1] = (of[1:] != of[:-1]) | (values[1:] != values[:-1])
    edges = np.flatnonzero(changes)
    start, end = edges[:-1], edges[1:]
    seen_negative = np.concatenate(([0], np.cumsum(~positive)))
    seen_positive = np.concatenate(([0], np.cumsum(positive)))
    tied_positive = seen_positive[end] - seen_positive[start]
    tie_group = of[start]

    first = np.concatenate(([0], np.cumsum(rows)))  # groups are contiguous after the sort
    before = seen_negative[first[:-1]][tie_group]
    wins = tied_positive * ((seen_negative[start] + seen_negative[end]) / 2 - before)
    total = np.bincount(tie_group, weights=wins, minlength=size)
    positives = np.diff(seen_positive[first])
    pairs = positives.astype(np.float64) * (rows - positives)
    with np.errstate(invalid="ignore", divide="ignore"):
        return GroupedAuc(auc=np.where(pairs > 0, total / pairs, np.nan), rows=rows)


def gauc(label: npt.ArrayLike, score: npt.ArrayLike, user: npt.ArrayLike) -> float:
    """Mean of the users' exact AUCs, weighted by their rows; one-class users left out.

    Args:
        label: [n], 0 or 1.
        score: [n].
        user: [n], any ids.

    Source: Zhu et al., "Optimized Cost per Click in Taobao Display Advertising" (2017).
    """
    return auc_per_group(label, score, np.unique(user, return_inverse=True)[1]).weighted()


def row_loss(label: npt.ArrayLike, probability: npt.ArrayLike) -> Floats:
    """Binary cross-entropy of each row, [n], in nats. O(n)."""
    chance = np.asarray(probability, dtype=np.float64)
    of_label = np.where(np.asarray(label) > 0.5, chance, 1.0 - chance)
    return -np.log(np.clip(of_label, PROBABILITY_FLOOR, None))


def logloss(label: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Mean binary cross-entropy in nats; nan without rows. O(n)."""
    return float(row_loss(label, probability).mean()) if np.size(label) else float("nan")


def entropy(rate: float) -> float:
    """Entropy in nats of a coin with this rate; nan at 0 and 1, where it normalises nothing."""
    if not 0.0 < rate < 1.0:
        return float("nan")
    return -(rate * np.log(rate) + (1.0 - rate) * np.log(1.0 - rate))


def normalised_entropy(label: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Logloss over the entropy of the base rate: 1 is no better than the base rate. O(n).

    Source: He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook" (2014).
    """
    return logloss(label, probability) / entropy(float(np.asarray(label, dtype=np.float64).mean()))


def calibration(label: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Sum of the probabilities over the sum of the labels: 1 is right on average. O(n)."""
    positives = float(np.sum(label, dtype=np.float64))
    total = float(np.sum(probability, dtype=np.float64))
    return total / positives if positives > 0 else float("nan")


def expected_calibration_error(
    label: npt.ArrayLike, probability: npt.ArrayLike, bins: int = CALIBRATION_BINS
) -> float:
    """Mean over bins of |mean probability - mean label|. O(n log n).

    The bins hold equal numbers of rows in order of probability (equal widths would put
    almost every row of a click log into the first), and equal probabilities share a bin,
    so the order of the rows does not matter.
    """
    chance = np.asarray(probability, dtype=np.float64)
    if not chance.size:
        return float("nan")
    edges = np.quantile(chance, np.arange(1, bins) / bins)
    of_bin = np.searchsorted(edges, chance, side="right")
    gap = np.bincount(of_bin, weights=chance - np.asarray(label, dtype=np.float64))
    return float(np.abs(gap).sum()) / chance.size


def defined_metrics(
    label: npt.ArrayLike, logit: npt.ArrayLike, user: npt.ArrayLike
) -> dict[str, float]:
    """AUC, GAUC, logloss and calibration of rows by their logits, as far as they are defined.

    Args:
        label: [n], 0 or 1, or nan where there is none: such rows do not count.
        logit: [n].
        user: [n], any ids.
    """
    labels, logits = np.asarray(label), np.asarray(logit)
    known = ~np.isnan(labels)
    labels, logits, users = labels[known], logits[known], np.asarray(user)[known]
    chance = np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
    found = {
        "auc": auc(labels, logits),
        "gauc": gauc(labels, logits, users),
        "logloss": logloss(labels, chance),
        "calibration": calibration(labels, chance),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


class RowMetrics:
    """All of :data:`METRICS` of one predictor, for any multiplicities of the users.

    Args:
        label: [n], 0 or 1.
        rank: [n], what AUC orders by (a logit: it saturates later than its sigmoid).
        probability: [n], what logloss and calibration read.
        group: [n], index of the user in 0..G-1.
        groups: G.

    Built in O(n log n). A call costs O(n) for the AUC and O(G) for all the others, which
    are sums over users.
    """

    def __init__(
        self,
        label: npt.ArrayLike,
        rank: npt.ArrayLike,
        probability: npt.ArrayLike,
        group: npt.ArrayLike,
        groups: int,
    ) -> None:
        truth = np.asarray(label, dtype=np.float64)
        chance = np.asarray(probability, dtype=np.float64)

        def per_group(values: Floats) -> Floats:
            sums = np.bincount(np.asarray(group), weights=values, minlength=groups)
            return sums.astype(np.float64, copy=False)

        self.groups = groups
        self.by_group = auc_per_group(truth, rank, group, groups)
        self._auc = WeightedAuc(truth, rank, group)
        self._rows = self.by_group.rows.astype(np.float64)
        self._sums = np.stack([per_group(v) for v in (truth, chance, row_loss(truth, chance))])
        self._ece = expected_calibration_error(truth, chance)

    def __call__(self, multiplicity: npt.ArrayLike | None = None) -> Floats:
        """[len(METRICS)] values where user g counts ``multiplicity[g]`` times ([G]).

        The expected calibration error is nan under multiplicities: resampling adds noise
        to every bin and so only ever raises it; an interval from that would mislead.
        """
        times = np.ones(self.groups) if multiplicity is None else np.asarray(multiplicity, float)
        rows = float(self._rows @ times)
        positives, expected, loss = (self._sums @ times).tolist()
        nan = float("nan")
        mean_loss = loss / rows if rows > 0 else nan
        return np.array(
            [
                self._auc(multiplicity),
                self.by_group.weighted(multiplicity),
                self.by_group.macro(multiplicity),
                mean_loss,
                mean_loss / entropy(positives / rows) if rows > 0 else nan,
                expected / positives if positives > 0 else nan,
                self._ece if multiplicity is None else nan,
            ]
        )
