"""The tables of a comparison, before they are drawn as Markdown or on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from hisac_rec.compare.budget import budget_differences
from hisac_rec.compare.cells import COMPARED, Scores
from hisac_rec.compare.cost import LENGTHS
from hisac_rec.compare.summary import DataSummary, Difference, ModelSummary, Spread
from hisac_rec.evaluation.results import Estimate
from hisac_rec.evaluation.table import AXES, NOTHING, TITLES, Cells

SHOWN = ("auc", "gauc", "logloss", "calibration")
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def metric_table(summary: DataSummary) -> Cells:
    """Metrics of every model, mean and spread over seeds; then what needs no training."""
    oracle = any(model.closed for model in summary.models)
    rows = []
    for model in summary.models:
        row = [model.name, str(len(model.cells))]
        row += [_spread(model.metric(metric)) for metric in SHOWN]
        rows.append([*row, _share(model.closed)] if oracle else row)
    for name, scores in _reference(summary):
        row = [name, NOTHING]
        row += [_number(scores.metrics[metric]) for metric in SHOWN]
        rows.append([*row, NOTHING] if oracle else row)
    header = ["model", "seeds", *(TITLES[metric] for metric in SHOWN)]
    return Cells(
        title="Metrics",
        header=[*header, "to the oracle"] if oracle else header,
        rows=rows,
        caption="Mean over seeds ± sample standard deviation over seeds."
        + (f" To the oracle: from '{summary.floor}', in AUC." if oracle else ""),
    )


def difference_table(summary: DataSummary) -> Cells | None:
    """Paired differences to the baseline; None where it has no cell on this data set."""
    if summary.baseline is None:
        return None
    rows = []
    for model in summary.models:
        if model.differences:
            cells = [_difference(model.differences[metric]) for metric in COMPARED]
            rows.append([model.name, *cells])
    return Cells(
        title=f"Difference to '{summary.baseline}'",
        header=["model", *(TITLES[metric] for metric in COMPARED)],
        rows=rows,
        caption="Mean over seeds (interval over users, the same users for both, seeds averaged "
        "in every draw); * where it excludes zero; in how many of the seeds the model is better.",
    )


def cost_table(summary: DataSummary) -> Cells:
    """Parameters, training, speed, and what a cache would hold."""
    rows = []
    for model in summary.models:
        cell = model.cells[0]
        p = cell.parameters
        rows.append(
            [
                model.name,
                "yes" if cell.candidate_independent else "no",
                _short(p.tables + p.frozen),
                _short(p.dense),
                _short(p.method),
                f"{fmean(c.training.seconds for c in model.cells):,.0f}",
                f"{fmean(c.training.epochs for c in model.cells):.1f}",
                f"{fmean(c.candidates_per_second for c in model.cells):,.0f}",
            ]
        )
    return Cells(
        title="Size and speed",
        header=[
            "model",
            "candidate-independent",
            "in tables",
            "dense",
            "of these the method",
            "training, s",
            "epochs",
            "candidates/s",
        ],
        rows=rows,
        caption="Numbers in the tables, frozen ones included, and outside them. Means over seeds. "
        "Candidates/s: in prediction of the split, reading included.",
    )


def history_table(summary: DataSummary) -> Cells:
    """Operations and bytes by history length."""
    lengths = " / ".join(f"{length:,}" for length in LENGTHS)
    rows = []
    for model in summary.models:
        costs = [model.costs.get(length) for length in LENGTHS]
        fields = ("compress", "read_request", "read_candidate", "memory_bytes")
        rows.append(
            [
                model.name,
                *(
                    " / ".join(_short(getattr(c, field)) if c else NOTHING for c in costs)
                    for field in fields
                ),
            ]
        )
    return Cells(
        title="Cost of the history",
        header=[
            "model",
            "compress, a request",
            "read, a request",
            "read, a candidate",
            "bytes between them, a user",
        ],
        rows=rows,
        caption=f"Operations at histories of {lengths} events; the bytes are what a cache holds "
        "where the method is candidate-independent. '-': not affordable.",
    )


def slice_tables(summary: DataSummary) -> Iterator[Cells]:
    """One table per axis, one row per bucket, AUC / GAUC of every model."""
    for axis, title in AXES.items():
        buckets = [one for one in summary.first.scores.slices if one.axis == axis]
        found = [
            (model.sliced(axis, "auc"), model.sliced(axis, "gauc")) for model in summary.models
        ]
        yield Cells(
            title=title,
            header=["bucket", "rows", "positive", *(model.name for model in summary.models)],
            rows=[
                [
                    one.bucket,
                    f"{one.rows:,}",
                    f"{one.positive_rate:.3f}",
                    *(f"{_mean(a[one.bucket])} / {_mean(g[one.bucket])}" for a, g in found),
                ]
                for one in buckets
            ],
            caption=f"AUC / GAUC, mean over seeds; '{NOTHING}' where a bucket holds one class.",
        )


def budget_table(models: Sequence[ModelSummary]) -> Cells | None:
    """Where the models do not get the same; None where they do."""
    configs = {model.name: model.cells[0].identity.config for model in models}
    rows = [
        [key, "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())]
        for key, values in budget_differences(configs).items()
    ]
    if not rows:
        return None
    return Cells(title="Where the models' budgets differ", header=["key", "values"], rows=rows)


def _reference(summary: DataSummary) -> Iterator[tuple[str, Scores]]:
    if summary.reference is not None:
        yield from summary.reference.predictors.items()


def _spread(of: Spread) -> str:
    text = _number(of.mean)
    return text if of.deviation is None else f"{text} ± {of.deviation:.4f}"


def _mean(of: Spread) -> str:
    return _number(of.mean)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _difference(of: Difference) -> str:
    found = of.estimate
    if found.value is None:
        return NOTHING
    text = f"{found.value:+.4f}{'*' if found.excludes_zero else ''}"
    if found.low is not None and found.high is not None:
        text += f" ({found.low:+.4f} to {found.high:+.4f})"
    return f"{text} {of.ahead}/{of.seeds}"


def _share(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return NOTHING
    text = f"{found.value:.1%}"
    if found.low is None or found.high is None:
        return text
    return f"{text} ({found.low:.1%} to {found.high:.1%})"


def _short(value: int) -> str:
    """Three digits and a unit: 12.3M."""
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)
