"""From cells to statements: means over seeds, paired differences, distance to the oracle.

Legend: S seeds of a model on a data set, B bootstrap draws, M metrics.

Every cell keeps its metrics under B draws over users, and draw b takes the same users in
all cells. A difference under draw b is the mean over the seeds that both models have of
(metric of the model - metric of the baseline); its interval is the percentile interval
over b. So it speaks of other users, for the mean over these seeds; what another seed would
do shows in the spread over seeds and in how many seeds agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev

import numpy as np

from hisac_rec.compare.cells import COMPARED, Cell, Cost, Layout, Reference, Scores, read
from hisac_rec.compare.grid import check_baseline
from hisac_rec.errors import UserError
from hisac_rec.evaluation.bootstrap import Interval, difference_interval, interval
from hisac_rec.evaluation.metrics import Floats
from hisac_rec.evaluation.report import ITEM_AND_USER_MEAN, ORACLE, distance_closed
from hisac_rec.evaluation.results import Estimate


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float | None
    """None where a seed does not define it."""
    deviation: float | None
    """Sample standard deviation; None with one seed."""


@dataclass(frozen=True)
class Difference:
    """A model minus the baseline, over the seeds that both have."""

    estimate: Estimate
    ahead: int
    """Seeds in which the model is better."""
    seeds: int


@dataclass(frozen=True)
class ModelSummary:
    """One model on one data set, over its seeds."""

    cells: tuple[Cell, ...]
    """By seed."""
    differences: dict[str, Difference]
    """Metric -> to the baseline; empty for the baseline itself."""
    closed: Estimate | None
    """Share of the AUC distance from the floor to the oracle."""

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.cells[0].name

    @property
    def costs(self) -> dict[int, Cost]:
        """History length -> cost; the same for all seeds."""
        return {cost.length: cost for cost in self.cells[0].costs}

    def metric(self, name: str) -> Spread:
        """One metric on all rows."""
        return spread([cell.scores.metrics[name] for cell in self.cells])

    def sliced(self, axis: str, metric: str) -> dict[str, Spread]:
        """Bucket -> one metric, in the order of the buckets."""
        found: dict[str, list[float | None]] = {}
        for cell in self.cells:
            for one in cell.scores.slices:
                if one.axis == axis:
                    found.setdefault(one.bucket, []).append(getattr(one, metric))
        return {bucket: spread(values) for bucket, values in found.items()}


@dataclass(frozen=True)
class DataSummary:
    """All models on one data set, the best AUC first."""

    data: str
    models: tuple[ModelSummary, ...]
    reference: Reference | None
    baseline: str | None
    """Name of the model that differences are taken to; None where it has no cell here."""
    floor: str
    """What the distance to the oracle is counted from."""

    @property
    def first(self) -> Cell:
        """Any cell: what all share is read from it."""
        return self.models[0].cells[0]


def summarise(layout: Layout, baseline: str | None = None) -> list[DataSummary]:
    """Read all cells and compare them.

    Args:
        layout: of the comparison.
        baseline: stem or name of the model that differences are taken to. Where absent, the
            model without history; else the first by its file's name.

    Raises:
        UserError: no cell, an unknown baseline, or cells of other data, split or draws than
            their neighbours.
    """
    cells = layout.read_cells()
    names = {cell.model: cell.name for cell in cells}
    check_baseline(baseline, names)
    given = next((stem for stem, name in names.items() if baseline in (stem, name)), None)
    stem = given or next((c.model for c in cells if not c.uses_history), min(names))
    return [
        _summarise_data(layout, list(group), stem) for _, group in groupby(cells, lambda c: c.data)
    ]


def spread(values: Sequence[float | None]) -> Spread:
    """Mean and sample deviation over seeds."""
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return Spread(None, None)
    return Spread(fmean(found), stdev(found) if len(found) > 1 else None)


def _summarise_data(layout: Layout, cells: list[Cell], baseline: str) -> DataSummary:
    _check_alike(layout, cells)
    data = cells[0].data
    path = layout.reference(data)
    reference = read(path, Reference) if path.is_file() else None
    if reference is not None and reference.rows != cells[0].rows:
        raise UserError(f"{path}: is of other rows than the cells beside it; remove it")
    models = {stem: tuple(group) for stem, group in groupby(cells, lambda cell: cell.model)}
    base = models.get(baseline)
    floor, floor_scores = _floor(models, reference)
    summaries = [
        ModelSummary(
            cells=of,
            differences=differences(of, base) if base is not None and of is not base else {},
            closed=_closed([c.scores for c in of], floor_scores, reference)
            if of[0].name != floor
            else None,
        )
        for of in models.values()
    ]
    return DataSummary(
        data=data,
        models=tuple(sorted(summaries, key=lambda one: -(one.metric("auc").mean or 0.0))),
        reference=reference,
        baseline=base[0].name if base is not None else None,
        floor=floor,
    )


def _check_alike(layout: Layout, cells: list[Cell]) -> None:
    first = cells[0]
    for cell in cells:
        same = (
            (cell.rows, cell.identity.split, cell.identity.draws)
            == (first.rows, first.identity.split, first.identity.draws)
        )  # fmt: skip
        if not same:
            raise UserError(
                f"{layout.cell(cell.data, cell.model, cell.seed)}: predicted other rows (data, "
                f"split or draws) than {layout.cell(first.data, first.model, first.seed)}; run "
                "the older of them again with --redo, or remove it"
            )


def _floor(
    models: dict[str, tuple[Cell, ...]], reference: Reference | None
) -> tuple[str, list[Scores]]:
    """The model without history where there is one, else item + user mean."""
    for of in models.values():
        if not of[0].uses_history:
            return of[0].name, [cell.scores for cell in of]
    trivial = reference.predictors.get(ITEM_AND_USER_MEAN) if reference is not None else None
    return ITEM_AND_USER_MEAN, [trivial] if trivial is not None else []


def differences(cells: tuple[Cell, ...], base: tuple[Cell, ...]) -> dict[str, Difference]:
    """Metric -> ``cells`` minus ``base``, models on the same rows; empty without a common seed."""
    theirs = {cell.seed: cell.scores for cell in base}
    pairs = [(cell.scores, theirs[cell.seed]) for cell in cells if cell.seed in theirs]
    if not pairs:
        return {}
    found = {}
    for metric in COMPARED:
        gaps = [_value(a, metric) - _value(b, metric) for a, b in pairs]
        of = difference_interval(
            _mean_draws([a for a, _ in pairs], metric), _mean_draws([b for _, b in pairs], metric)
        )
        sign = -1 if metric == "logloss" else 1
        found[metric] = Difference(
            estimate=_estimate(fmean(gaps), of),
            ahead=sum(sign * gap > 0 for gap in gaps),
            seeds=len(gaps),
        )
    return found


def _closed(
    scores: list[Scores], floor: list[Scores], reference: Reference | None
) -> Estimate | None:
    oracle = reference.predictors.get(ORACLE) if reference is not None else None
    if oracle is None or not floor:
        return None
    share = distance_closed(
        fmean(_value(one, "auc") for one in scores),
        fmean(_value(one, "auc") for one in floor),
        _value(oracle, "auc"),
    )
    shares = distance_closed(
        _mean_draws(scores, "auc"), _mean_draws(floor, "auc"), oracle.drawn("auc")
    )
    return _estimate(float(share), interval(shares))


def _mean_draws(scores: list[Scores], metric: str) -> Floats:
    """[B] mean over seeds, draw by draw."""
    return np.mean([one.drawn(metric) for one in scores], axis=0)


def _value(scores: Scores, metric: str) -> float:
    found = scores.metrics[metric]
    return float("nan") if found is None else found


def _estimate(value: float, of: Interval) -> Estimate:
    def defined(number: float) -> float | None:
        return float(number) if np.isfinite(number) else None

    return Estimate(value=defined(value), low=defined(of.low), high=defined(of.high))
