"""From the predictions of one run to what a cell keeps of them.

Legend: n rows, G users, B draws, M metrics.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from hisac_rec.compare.cells import (
    COMPARED,
    Reference,
    Rows,
    Scores,
    Slice,
    named,
    rounded,
)
from hisac_rec.data.contract import PreparedData
from hisac_rec.evaluation.bootstrap import bootstrap_draws
from hisac_rec.evaluation.metrics import METRICS, RowMetrics, auc_per_group
from hisac_rec.evaluation.parts import sigmoid
from hisac_rec.evaluation.predictions import Predictions
from hisac_rec.evaluation.report import ITEM_AND_USER_MEAN, ITEM_MEAN, ORACLE
from hisac_rec.evaluation.slices import buckets, check_ids, slice_metrics, standard_slicings
from hisac_rec.evaluation.trivial import clip_probability, fit_means

DRAW_SEED = 0
"""Of the bootstrap draws of every cell: with the same users, the same users are drawn."""


def describe_rows(predictions: Predictions, data: PreparedData) -> Rows:
    """What was predicted; two cells are comparable where this is equal. O(n log n)."""
    digest = hashlib.sha256()
    for column in (predictions.user, predictions.time, predictions.item, predictions.label):
        digest.update(np.ascontiguousarray(column).tobytes())
    users, group = np.unique(predictions.user, return_inverse=True)
    by_user = auc_per_group(predictions.label, predictions.label, group, len(users))
    return Rows(
        task="" if predictions.task == data.manifest.task else predictions.task,
        digest=digest.hexdigest()[:16],
        rows=len(predictions),
        users=len(users),
        requests=len(np.unique(predictions.request)),
        positive_rate=round(float(predictions.label.mean(dtype=np.float64)), 6),
        left_out_users=by_user.left_out_groups,
    )


def score_model(predictions: Predictions, data: PreparedData, draws: int) -> Scores:
    """Scores of a trained model."""
    logit = predictions.logit.astype(np.float64)
    return score(predictions, data, logit, sigmoid(logit), draws)


def score(
    predictions: Predictions,
    data: PreparedData,
    rank: npt.ArrayLike,
    probability: npt.ArrayLike,
    draws: int,
) -> Scores:
    """Metrics on all rows, their bootstrap draws, and slices. O(n log n + B n).

    Args:
        predictions: the rows: users, items, labels, history lengths.
        data: the prepared data that was predicted.
        rank: [n], what AUC orders by.
        probability: [n], what logloss and calibration read.
        draws: B.
    """
    order, chance = np.asarray(rank), np.asarray(probability)
    users, group = np.unique(predictions.user, return_inverse=True)
    metrics = RowMetrics(predictions.label, order, chance, group, len(users))
    drawn = bootstrap_draws([metrics], draws, DRAW_SEED)[:, 0]
    slices = []
    for slicing in standard_slicings(predictions, data):
        for bucket, at in buckets(slicing):
            label, user = predictions.label[at], predictions.user[at]
            of = slice_metrics(label, order[at], chance[at], user)
            slices.append(
                Slice(
                    axis=slicing.axis,
                    bucket=bucket,
                    rows=len(at),
                    users=len(np.unique(user)),
                    positive_rate=round(float(label.mean(dtype=np.float64)), 4),
                    auc=rounded(of.auc),
                    gauc=rounded(of.gauc),
                    logloss=rounded(of.logloss),
                )
            )
    return Scores(
        metrics=named(metrics()),
        draws={
            metric: [rounded(value) for value in drawn[:, METRICS.index(metric)]]
            for metric in COMPARED
        },
        slices=slices,
    )


def score_reference(
    predictions: Predictions, data: PreparedData, *, name: str, split: str, draws: int
) -> Reference:
    """Item mean, item + user mean, and the oracle where known, on the same rows.

    Raises:
        UserError: an id of the predictions is not in the data.
    """
    check_ids("item", predictions.item, data.manifest.items, data)
    check_ids("user", predictions.user, data.manifest.users, data)
    means = fit_means(data, task=predictions.task)
    item = means.item_mean(predictions.item)
    both = means.item_and_user_mean(predictions.item, predictions.user)
    found = {
        ITEM_MEAN: score(predictions, data, item, clip_probability(item), draws),
        ITEM_AND_USER_MEAN: score(predictions, data, both, clip_probability(both), draws),
    }
    if predictions.probability is not None:
        true = predictions.probability.astype(np.float64)
        found[ORACLE] = score(predictions, data, true, true, draws)
    return Reference(
        data=name, rows=describe_rows(predictions, data), split=split, draws=draws, predictors=found
    )
