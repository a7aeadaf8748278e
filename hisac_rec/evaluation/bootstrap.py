"""Bootstrap over users: how far a metric would move had other users come by.

Rows of one user are not independent, so whole users are drawn, with replacement. All
predictors see the same draws, which makes every difference a paired one: the luck of
which users were drawn cancels. Legend: B draws, P predictors, M metrics, G users.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), percentile method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hisac_rec.evaluation.metrics import METRICS, Floats, RowMetrics
from hisac_rec.progress import progress

CONFIDENCE = 0.95
"""Coverage that the intervals aim at."""

_MIN_DEFINED = 0.5  # share of draws in which a metric must exist to be given an interval


@dataclass(frozen=True)
class Interval:
    """A percentile interval; both ends nan where the draws do not define one."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True where the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def bootstrap_draws(predictors: Sequence[RowMetrics], draws: int = 200, seed: int = 0) -> Floats:
    """Every metric of every predictor under every draw, [B, P, M].

    Args:
        predictors: P predictors over the same rows and users.
        draws: B.
        seed: of the draws; the same seed and number of users draw the same users.

    Costs O(B P n): nothing is sorted again.
    """
    if len({predictor.groups for predictor in predictors}) > 1:
        raise ValueError("the predictors do not share their users")
    rng = np.random.default_rng(seed)
    values: list[list[Floats]] = []
    with progress("bootstrap", total=draws, unit="draws") as advance:
        for _ in range(draws):
            times = draw_users(predictors[0].groups, rng)
            values.append([predictor(times) for predictor in predictors])
            advance(1)
    return np.array(values).reshape(draws, len(predictors), len(METRICS))


def draw_users(groups: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How often each of G users comes up in G draws with replacement, [G]. O(G)."""
    return np.bincount(rng.integers(0, groups, size=groups), minlength=groups)


def interval(values: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of the draws of one number, [B].

    Draws in which the metric is not defined are left out; where they are more than half,
    so is the interval.
    """
    found = np.asarray(values, dtype=np.float64)
    defined = found[np.isfinite(found)]
    if defined.size == 0 or defined.size < _MIN_DEFINED * found.size:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def difference_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = CONFIDENCE
) -> Interval:
    """The paired interval of ``first - second`` from the same draws, [B] each."""
    return interval(np.asarray(first, float) - np.asarray(second, float), confidence)
