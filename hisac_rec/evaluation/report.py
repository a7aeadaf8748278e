"""Every predictor on the same rows, with intervals, paired differences and slices.

:func:`evaluate_predictions` is the one entry point; :mod:`hisac_rec.evaluation.table`
shows what it returns. Legend: n rows, B draws, P predictors, M metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hisac_rec.data.contract import MAIN_TASK, PreparedData
from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.evaluation.bootstrap import (
    CONFIDENCE,
    Interval,
    bootstrap_draws,
    difference_interval,
    interval,
)
from hisac_rec.evaluation.metrics import METRICS, Floats, RowMetrics
from hisac_rec.evaluation.parts import PathsLike, sigmoid
from hisac_rec.evaluation.predictions import (
    Predictions,
    check_same_rows,
    predicted_tasks,
    read_predictions,
)
from hisac_rec.evaluation.results import (
    ITEM_AND_USER_MEAN,
    ITEM_MEAN,
    ORACLE,
    Estimate,
    Kind,
    PredictorReport,
    Report,
    SliceReport,
    SliceValues,
)
from hisac_rec.evaluation.slices import buckets, check_ids, slice_metrics, standard_slicings
from hisac_rec.evaluation.trivial import clip_probability, fit_means

log = logging.getLogger(__name__)

__all__ = [
    "ITEM_AND_USER_MEAN",
    "ITEM_MEAN",
    "ORACLE",
    "Report",
    "distance_closed",
    "evaluate_predictions",
]


@dataclass(frozen=True)
class _Scored:
    """One predictor's numbers for every row: ``rank`` orders, ``probability`` calibrates."""

    name: str
    kind: Kind
    rank: Floats
    probability: Floats


def evaluate_predictions(
    predictions: PathsLike,
    data: PreparedData,
    *,
    name: str = "model",
    baseline_predictions: Mapping[str, PathsLike] | None = None,
    baseline: str | None = None,
    draws: int = 200,
    seed: int = 0,
    history_quantiles: int | None = None,
    task: str | None = None,
) -> Report:
    """Evaluate a model beside the trivial predictors, the oracle and any other model.

    Args:
        predictions: a file, a folder of parts, or a list of either.
        data: the prepared data that was predicted; its training split fits the trivial
            predictors.
        name: what the model is called in the tables.
        baseline_predictions: further models, name -> predictions of the same rows.
        baseline: the predictor that differences are taken to; the first of
            ``baseline_predictions`` where absent, else item + user mean.
        draws: bootstrap draws over users; 0 leaves the intervals out.
        seed: of the draws.
        history_quantiles: history-length buckets of equal row count, instead of fixed ones.
        task: what is evaluated, of all predictors alike; None: the model's main task.

    Returns:
        The report; nothing is written (``report.save`` does that).

    Raises:
        UserError: bad predictions, predictions of other rows or other data, two predictors
            of one name, an unknown baseline, or a task that a model has not learned.

    Costs O(P n log n + B P n) time, and about 44 + 40 P bytes of memory a row.
    """
    others = dict(baseline_predictions or {})
    names = [name, *others, ITEM_MEAN, ITEM_AND_USER_MEAN]
    _check_names(names, baseline)
    task = task or next(iter(predicted_tasks(predictions)), data.manifest.task)
    rows = _read(predictions, data, task)
    scored = [_model(name, rows)]
    for other, paths in others.items():
        table = _read(paths, data, task)
        check_same_rows(rows, table, (name, other))
        scored.append(_model(other, table))
    scored += _trivial(rows, data, task)
    if rows.probability is not None:
        true = rows.probability.astype(np.float64)
        scored.append(_Scored(ORACLE, "oracle", true, true))
    reference = baseline or (next(iter(others)) if others else ITEM_AND_USER_MEAN)
    if reference not in {predictor.name for predictor in scored}:  # "oracle" without one
        raise UserError(f"baseline '{reference}': the predictions hold no true probability")
    found = _report(rows, data, scored, reference, draws, seed, history_quantiles)
    return (
        found
        if data.manifest.task_names == [MAIN_TASK]
        else found.model_copy(update={"task": task})
    )


def distance_closed(
    model_auc: float | Floats, floor_auc: float | Floats, oracle_auc: float | Floats
) -> float | Floats:
    """Share of the way from a floor (no history) to the oracle that a model goes.

    0 is no better than the floor, 1 is as good as knowing the true probabilities; nan
    where the oracle is no better than the floor. Numbers or arrays of one shape.
    """
    gap = np.asarray(oracle_auc, dtype=np.float64) - floor_auc
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(gap > 0, (np.asarray(model_auc) - floor_auc) / gap, np.nan)
    return float(share) if share.ndim == 0 else share


def _check_names(names: list[str], baseline: str | None) -> None:
    for position, given in enumerate(names):
        if given in names[:position] or given == ORACLE:
            raise UserError(f"two predictors are called '{given}'; give each a name of its own")
    if baseline is not None and baseline not in [*names, ORACLE]:
        raise UserError(f"baseline '{baseline}' is no predictor{did_you_mean(baseline, names)}")


def _read(paths: PathsLike, data: PreparedData, task: str) -> Predictions:
    there = predicted_tasks(paths) or (data.manifest.task,)
    if task not in there:
        raise UserError(
            f"{paths}: no predictions of task '{task}'{did_you_mean(task, there)}; that model has "
            f"learned: {', '.join(there)}"
        )
    rows = read_predictions(paths, task)
    if rows.fingerprint and rows.fingerprint != data.manifest.fingerprint:
        raise UserError(
            f"{paths}: predictions of other data (fingerprint {rows.fingerprint[:12]}, "
            f"{data.root} has {data.manifest.fingerprint[:12]}); name the data folder that was "
            "predicted, or predict again"
        )
    return rows


def _model(name: str, rows: Predictions) -> _Scored:
    logit = rows.logit.astype(np.float64)
    return _Scored(name, "model", rank=logit, probability=sigmoid(logit))


def _trivial(rows: Predictions, data: PreparedData, task: str) -> list[_Scored]:
    check_ids("item", rows.item, data.manifest.items, data)
    check_ids("user", rows.user, data.manifest.users, data)
    means = fit_means(data, task=task)
    item = means.item_mean(rows.item)
    both = means.item_and_user_mean(rows.item, rows.user)
    return [
        _Scored(ITEM_MEAN, "trivial", item, clip_probability(item)),
        _Scored(ITEM_AND_USER_MEAN, "trivial", both, clip_probability(both)),
    ]


def _report(
    rows: Predictions,
    data: PreparedData,
    scored: list[_Scored],
    baseline: str,
    draws: int,
    seed: int,
    history_quantiles: int | None,
) -> Report:
    users, group = np.unique(rows.user, return_inverse=True)
    metrics = [RowMetrics(rows.label, s.rank, s.probability, group, len(users)) for s in scored]
    by_user = metrics[0].by_group
    log.info("evaluating %s rows of %s users", f"{len(rows):,}", f"{len(users):,}")
    return Report(
        data=data.manifest.name,
        fingerprint=data.manifest.fingerprint,
        rows=len(rows),
        users=len(users),
        requests=len(np.unique(rows.request)),
        positive_rate=float(rows.label.mean(dtype=np.float64)),
        left_out_users=by_user.left_out_groups,
        left_out_rows=by_user.left_out_rows,
        draws=draws,
        seed=seed,
        confidence=CONFIDENCE,
        baseline=baseline,
        predictors=_predictors(scored, metrics, baseline, draws, seed),
        slices=_slices(rows, data, scored, history_quantiles),
    )


def _predictors(
    scored: list[_Scored], metrics: list[RowMetrics], baseline: str, draws: int, seed: int
) -> list[PredictorReport]:
    values = np.array([metric() for metric in metrics])  # [P, M]
    drawn = bootstrap_draws(metrics, draws, seed)  # [B, P, M]
    names = [predictor.name for predictor in scored]
    floor = names.index(baseline)
    oracle = names.index(ORACLE) if ORACLE in names else None
    found = []
    for p, predictor in enumerate(scored):
        differences = closed = None
        if p != floor:
            differences = {
                metric: _estimate(
                    values[p, m] - values[floor, m],
                    difference_interval(drawn[:, p, m], drawn[:, floor, m]),
                )
                for m, metric in enumerate(METRICS)
            }
        if oracle is not None and p not in (floor, oracle) and predictor.kind == "model":
            share = distance_closed(values[p, _AUC], values[floor, _AUC], values[oracle, _AUC])
            shares = distance_closed(
                drawn[:, p, _AUC], drawn[:, floor, _AUC], drawn[:, oracle, _AUC]
            )
            closed = _estimate(share, interval(shares))
        found.append(
            PredictorReport(
                name=predictor.name,
                kind=predictor.kind,
                metrics={
                    metric: _estimate(values[p, m], interval(drawn[:, p, m]))
                    for m, metric in enumerate(METRICS)
                },
                differences=differences,
                distance_closed=closed,
            )
        )
    return found


def _slices(
    rows: Predictions, data: PreparedData, scored: list[_Scored], history_quantiles: int | None
) -> list[SliceReport]:
    found = []
    for slicing in standard_slicings(rows, data, history_quantiles):
        for bucket, at in buckets(slicing):
            label, user = rows.label[at], rows.user[at]
            values = {}
            for predictor in scored:
                of = slice_metrics(label, predictor.rank[at], predictor.probability[at], user)
                values[predictor.name] = SliceValues(
                    auc=_number(of.auc), gauc=_number(of.gauc), logloss=_number(of.logloss)
                )
            found.append(
                SliceReport(
                    axis=slicing.axis,
                    bucket=bucket,
                    rows=len(at),
                    users=len(np.unique(user)),
                    positive_rate=float(label.mean(dtype=np.float64)),
                    predictors=values,
                )
            )
    return found


def _estimate(value: float | Floats, of: Interval) -> Estimate:
    return Estimate(value=_number(value), low=_number(of.low), high=_number(of.high))


def _number(value: float | Floats) -> float | None:
    return float(value) if np.isfinite(value) else None


_AUC = METRICS.index("auc")
