"""AUC against history length, from one or several reports (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hisac_rec.errors import UserError
from hisac_rec.evaluation.results import Report
from hisac_rec.evaluation.table import AXES, TITLES


def plot_slices(
    reports: Sequence[Report],
    path: str | Path,
    *,
    axis: str = "history_length",
    metric: str = "auc",
    predictors: Collection[str] | None = None,
) -> Path:
    """Draw one line per predictor over the buckets of one slicing.

    Args:
        reports: of the same data and buckets; a predictor that several hold is drawn once.
        path: where the picture goes; its ending (.png, .svg, .pdf) chooses the format.
        axis: ``history_length``, ``item_popularity`` or ``item_age``.
        metric: ``auc``, ``gauc`` or ``logloss``.
        predictors: only these; all where absent.

    Raises:
        UserError: matplotlib is not installed, the reports are of other data or buckets,
            or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install matplotlib") from None
    names, lines = _lines(reports, axis, metric, predictors)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, values in lines.items():
        numbers = [float("nan") if value is None else value for value in values]
        axes.plot(range(len(names)), numbers, marker="o", label=name)
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 7 else 0)
    axes.set_xlabel(AXES.get(axis, axis).removeprefix("By "))
    axes.set_ylabel(TITLES[metric])
    axes.set_title(reports[0].data)
    axes.grid(alpha=0.3)
    axes.legend()
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        figure.savefig(temporary, format=target.suffix.removeprefix(".") or "png", dpi=150)
    except ValueError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{target}: {error}") from None
    return temporary.replace(target)


def _lines(
    reports: Sequence[Report], axis: str, metric: str, predictors: Collection[str] | None
) -> tuple[list[str], dict[str, list[float | None]]]:
    """Bucket names, and predictor -> one value per bucket."""
    names: list[str] = []
    lines: dict[str, list[float | None]] = {}
    for report in reports:
        rows = [row for row in report.slices if row.axis == axis]
        buckets = [row.bucket for row in rows]
        if report.fingerprint != reports[0].fingerprint or (names and buckets != names):
            raise UserError(
                f"reports on '{reports[0].data}' and '{report.data}' differ in their data or in "
                f"their buckets of {axis}; evaluate both on the same prepared data"
            )
        names = buckets
        for predictor in report.predictors:
            if predictors is None or predictor.name in predictors:
                values = [getattr(row.predictors[predictor.name], metric) for row in rows]
                lines.setdefault(predictor.name, values)
    if not names or not lines:
        raise UserError(f"nothing to draw: no report has slices by '{axis}' for these predictors")
    return names, lines
