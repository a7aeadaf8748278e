from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import log_loss, roc_auc_score

from hisac_rec.evaluation.metrics import (
    METRICS,
    RowMetrics,
    WeightedAuc,
    auc,
    auc_per_group,
    calibration,
    entropy,
    expected_calibration_error,
    gauc,
    logloss,
    normalised_entropy,
)


@st.composite
def rows(draw, users: int = 6):
    """Labels, scores with many ties, and users of up to 60 rows."""
    n = draw(st.integers(1, 60))
    label = draw(hnp.arrays(np.float32, n, elements=st.sampled_from([0.0, 1.0])))
    few = st.sampled_from([0.1, 0.25, 0.5, 0.9])
    fine = st.floats(0.001, 0.999)
    score = draw(hnp.arrays(np.float64, n, elements=draw(st.sampled_from([few, fine]))))
    user = draw(hnp.arrays(np.int64, n, elements=st.integers(0, users - 1)))
    return label, score, user


def looped_gauc(label, score, user):
    """The plain loop over users: weighted by rows, equal per user, users left out."""
    weights, values, left_out = [], [], 0
    for one in np.unique(user):
        of = user == one
        if 0 < label[of].mean() < 1:
            weights.append(of.sum())
            values.append(roc_auc_score(label[of], score[of]))
        else:
            left_out += 1
    if not values:
        return np.nan, np.nan, left_out
    return np.average(values, weights=weights), np.mean(values), left_out


@given(rows())
@settings(deadline=None)
def test_auc_equals_scikit_learn_with_ties(sample):
    label, score, _ = sample
    if label.min() == label.max():
        assert np.isnan(auc(label, score))
    else:
        assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_auc_equals_scikit_learn_on_many_rows():
    rng = np.random.default_rng(0)
    score = np.round(rng.normal(size=200_000), 2)
    label = (rng.random(200_000) < 1 / (1 + np.exp(3 - score))).astype(np.float32)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-9)


@given(rows())
@settings(deadline=None)
def test_gauc_equals_a_loop_over_users(sample):
    label, score, user = sample
    weighted, macro, left_out = looped_gauc(label, score, user)
    found = auc_per_group(label, score, user, groups=6)
    absent = 6 - len(np.unique(user))
    assert found.weighted() == pytest.approx(weighted, abs=1e-12, nan_ok=True)
    assert found.macro() == pytest.approx(macro, abs=1e-12, nan_ok=True)
    assert found.left_out_groups == left_out + absent
    assert gauc(label, score, user * 7 + 3) == pytest.approx(weighted, abs=1e-12, nan_ok=True)


def test_one_class_users_are_left_out_and_counted():
    label = np.array([1, 1, 1, 0, 1, 0])
    user = np.array([5, 5, 9, 9, 2, 2])
    found = auc_per_group(label, np.arange(6), np.unique(user, return_inverse=True)[1])
    assert (found.left_out_groups, found.left_out_rows) == (1, 2)
    assert found.weighted() == 0.0


@given(rows(), hnp.arrays(np.int64, 6, elements=st.integers(0, 4)))
@settings(deadline=None)
def test_multiplicities_equal_rows_repeated(sample, times):
    """Counting a user twice is the same as having every row of hers twice, as two users."""
    label, score, user = sample
    metrics = dict(zip(METRICS, RowMetrics(label, score, score, user, 6)(times), strict=True))
    repeat = times[user]
    label2, score2 = np.repeat(label, repeat), np.repeat(score, repeat)
    copy = np.concatenate([np.arange(r) for r in repeat]) if len(repeat) else repeat
    user2 = np.repeat(user, repeat) + 10 * copy
    expected = dict.fromkeys(METRICS, np.nan)
    if len(label2):
        weighted, macro, _ = looped_gauc(label2, score2, user2)
        expected |= {
            "auc": auc(label2, score2),
            "gauc": weighted,
            "gauc_macro": macro,
            "logloss": logloss(label2, score2),
            "normalised_entropy": normalised_entropy(label2, score2),
            "calibration": calibration(label2, score2),
        }
    assert metrics == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(rows())
@settings(deadline=None)
def test_row_metrics_without_multiplicities_are_the_plain_functions(sample):
    label, score, user = sample
    found = dict(zip(METRICS, RowMetrics(label, score, score, user, 6)(), strict=True))
    expected = {
        "auc": auc(label, score),
        "gauc": gauc(label, score, user),
        "gauc_macro": looped_gauc(label, score, user)[1],
        "logloss": logloss(label, score),
        "normalised_entropy": normalised_entropy(label, score),
        "calibration": calibration(label, score),
        "ece": expected_calibration_error(label, score),
    }
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_weights_of_one_change_nothing():
    rng = np.random.default_rng(1)
    label, score, user = rng.integers(0, 2, 500), rng.integers(0, 9, 500), rng.integers(0, 20, 500)
    order = WeightedAuc(label, score, user)
    assert order(np.ones(20)) == pytest.approx(order(), abs=1e-15)


def test_logloss_equals_scikit_learn_and_stays_finite():
    rng = np.random.default_rng(2)
    label, score = rng.integers(0, 2, 1000), rng.random(1000)
    assert logloss(label, score) == pytest.approx(log_loss(label, score), abs=1e-12)
    assert np.isfinite(logloss([1, 0], [0.0, 1.0]))


def test_base_rate_has_normalised_entropy_one():
    label = np.array([1, 0, 0, 0])
    assert normalised_entropy(label, np.full(4, 0.25)) == pytest.approx(1.0)
    assert np.isnan(normalised_entropy(np.ones(4), np.full(4, 0.9)))
    assert np.isnan(entropy(0.0))


def test_calibration_is_expected_over_seen_clicks():
    assert calibration([1, 0, 1, 0], [0.5, 0.5, 0.25, 0.25]) == pytest.approx(0.75)
    assert np.isnan(calibration([0, 0], [0.5, 0.5]))


def test_expected_calibration_error_of_a_planted_gap():
    rng = np.random.default_rng(3)
    chance = rng.random(400_000) * 0.8
    label = (rng.random(400_000) < chance).astype(np.float32)
    assert expected_calibration_error(label, chance) < 0.005
    assert expected_calibration_error(label, chance + 0.1) == pytest.approx(0.1, abs=0.005)


@given(rows())
@settings(deadline=None, max_examples=30)
def test_expected_calibration_error_ignores_the_order_of_rows(sample):
    label, score, _ = sample
    back = expected_calibration_error(label[::-1], score[::-1])
    assert expected_calibration_error(label, score) == pytest.approx(back, abs=1e-12)
