from __future__ import annotations

import numpy as np
import pytest

from hisac_rec.evaluation.bootstrap import (
    Interval,
    bootstrap_draws,
    difference_interval,
    draw_users,
    interval,
)
from hisac_rec.evaluation.metrics import METRICS, RowMetrics

AUC = METRICS.index("auc")
LOGLOSS = METRICS.index("logloss")


def sample(rng: np.random.Generator, users: int = 120, rows: int = 8):
    """Clicks with a user effect, which makes rows of a user alike; scores know half of it."""
    effect = np.repeat(rng.normal(size=users), rows)
    signal = rng.normal(size=users * rows)
    label = (rng.random(users * rows) < 1 / (1 + np.exp(-effect - signal))).astype(float)
    return label, signal + effect / 2, np.repeat(np.arange(users), rows)


def metrics_of(label, logit, user) -> RowMetrics:
    return RowMetrics(label, logit, 1 / (1 + np.exp(-logit)), user, int(user.max()) + 1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    truth = metrics_of(*sample(np.random.default_rng(99), users=40_000))()
    rng = np.random.default_rng(0)
    hits = np.zeros(len(METRICS))
    for trial in range(120):
        draws = bootstrap_draws([metrics_of(*sample(rng))], draws=100, seed=trial)
        for m, value in enumerate(truth):
            found = interval(draws[:, 0, m])
            hits[m] += found.low <= value <= found.high
    coverage = dict(zip(METRICS, hits / 120, strict=True))
    for metric in ("auc", "gauc", "gauc_macro", "logloss", "normalised_entropy", "calibration"):
        assert 0.87 <= coverage[metric] <= 1.0, coverage


def test_the_same_seed_draws_the_same():
    one = metrics_of(*sample(np.random.default_rng(1)))
    first, again = (bootstrap_draws([one], draws=20, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:, :, AUC], bootstrap_draws([one], 20, seed=8)[:, :, AUC])


def test_paired_difference_is_narrower_than_the_intervals():
    rng = np.random.default_rng(2)
    label, logit, user = sample(rng, users=300)
    worse = logit + rng.normal(scale=0.3, size=len(logit))
    draws = bootstrap_draws([metrics_of(label, logit, user), metrics_of(label, worse, user)], 200)
    paired = difference_interval(draws[:, 0, AUC], draws[:, 1, AUC])
    alone = interval(draws[:, 0, AUC])
    assert paired.excludes_zero
    assert paired.high - paired.low < (alone.high - alone.low) / 2


def test_a_predictor_does_not_differ_from_itself():
    one = metrics_of(*sample(np.random.default_rng(3)))
    draws = bootstrap_draws([one, one], draws=30)
    found = difference_interval(draws[:, 0, LOGLOSS], draws[:, 1, LOGLOSS])
    assert (found.low, found.high) == (0.0, 0.0)
    assert not found.excludes_zero


def test_draws_resample_whole_users():
    times = draw_users(1000, np.random.default_rng(0))
    assert times.sum() == 1000
    assert (times == 0).mean() == pytest.approx(np.exp(-1), abs=0.05)


def test_interval_needs_half_of_its_draws():
    nan = float("nan")
    assert interval([1.0, nan, 2.0]) == Interval(1.025, 1.975)
    assert np.isnan(interval([1.0, nan, nan]).low)
    assert np.isnan(interval([]).high)


def test_no_draws_are_an_empty_array():
    one = metrics_of(*sample(np.random.default_rng(4)))
    assert bootstrap_draws([one], draws=0).shape == (0, 1, len(METRICS))


def test_predictors_of_other_users_are_refused():
    rng = np.random.default_rng(5)
    small, large = metrics_of(*sample(rng, users=10)), metrics_of(*sample(rng, users=11))
    with pytest.raises(ValueError, match="share their users"):
        bootstrap_draws([small, large])
