"""The figures of a comparison, as SVG text that is the same for the same cells."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import cycle

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from hisac_rec.compare.summary import DataSummary, ModelSummary

MARKS = "osD^v<>Phd*X"
"""With the ten colours of the cycle, enough to tell the models apart."""


def figures(summary: DataSummary) -> dict[str, tuple[str, str]]:
    """File name -> (title, SVG) of every figure of a data set."""
    drawn: dict[str, tuple[str, Callable[[Figure, DataSummary], None], tuple[float, float]]] = {
        "cost": ("AUC against cost", _cost, (9, 4)),
        "history": ("AUC against history length", _by_history, (8, 4.5)),
        "curves": ("Validation AUC during training", _curves, (8, 4.5)),
    }
    return {
        f"{summary.data}-{name}.svg": (title, _svg(f"{summary.data}-{name}", draw, summary, size))
        for name, (title, draw, size) in drawn.items()
    }


def _svg(
    name: str,
    draw: Callable[[Figure, DataSummary], None],
    summary: DataSummary,
    size: tuple[float, float],
) -> str:
    """The figure alone, without prolog and metadata; its ids begin with ``name``."""
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, summary)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    # Several of them share one page, where an id counts once.
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)


def _cost(figure: Figure, summary: DataSummary) -> None:
    by_operations, by_speed = figure.subplots(1, 2, sharey=True)
    shared = set.intersection(*(set(model.costs) for model in summary.models))
    for model, mark in zip(summary.models, cycle(MARKS), strict=False):
        auc = model.metric("auc")
        if auc.mean is None:
            continue
        speeds = [cell.candidates_per_second for cell in model.cells]
        points = [(by_speed, sum(speeds) / len(speeds))]
        if shared:
            points.append((by_operations, max(1, model.costs[max(shared)].read_candidate)))
        for axes, x in points:
            axes.errorbar(x, auc.mean, yerr=auc.deviation, marker=mark, capsize=2, label=model.name)
    length = f"at {max(shared):,} events" if shared else ""
    by_operations.set_xlabel(f"operations of the history per candidate\n{length}".strip())
    by_speed.set_xlabel("candidates scored per second\nby the whole model")
    by_operations.set_ylabel("AUC")
    by_operations.set_xscale("log")
    by_speed.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (by_operations, by_speed):
        axes.grid(alpha=0.3)
    _legend(figure, by_speed)


def _by_history(figure: Figure, summary: DataSummary) -> None:
    axes = figure.subplots()
    names: list[str] = []
    for model, mark in zip(summary.models, cycle(MARKS), strict=False):
        found = model.sliced("history_length", "auc")
        names = list(found)
        means = [float("nan") if one.mean is None else one.mean for one in found.values()]
        axes.plot(range(len(names)), means, marker=mark, label=model.name)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("events in the history")
    axes.set_ylabel("AUC")
    axes.grid(alpha=0.3)
    _legend(figure, axes)


def _curves(figure: Figure, summary: DataSummary) -> None:
    axes = figure.subplots()
    for model, mark in zip(summary.models, cycle(MARKS), strict=False):
        steps, values = _mean_curve(model)
        axes.plot(steps, values, marker=mark, label=model.name)
    axes.set_xlabel("step")
    axes.set_ylabel("validation AUC, mean over seeds")
    axes.grid(alpha=0.3)
    _legend(figure, axes)


def _mean_curve(model: ModelSummary) -> tuple[list[float], list[float]]:
    """Steps that any seed was evaluated at, and the mean over the seeds that got there."""
    found: dict[float, list[float]] = {}
    for cell in model.cells:
        for point in cell.training.curve:
            if "auc" in point:
                found.setdefault(point["step"], []).append(point["auc"])
    steps = sorted(found)
    return steps, [sum(found[step]) / len(found[step]) for step in steps]


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
