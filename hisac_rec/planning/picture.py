"""A picture of a plan: what every rank holds, and how long it works a step."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from hisac_rec.errors import UserError
from hisac_rec.planning.plan_io import Plan
from hisac_rec.planning.units import GIB

MOST_TABLES = 12
"""Tables with a colour of their own; the smallest others share one."""


def draw_plan(plan: Plan, path: Path) -> None:
    """Stacked bars of each rank: estimated bytes above, milliseconds a step below, by table.

    Args:
        plan: what to draw.
        path: the file; its ending (.png, .svg, .pdf) chooses the format.

    Raises:
        UserError: the ending is of no known format.
    """
    held: dict[str, list[float]] = defaultdict(lambda: [0.0] * plan.group_size)
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0] * plan.group_size)
    total = {
        name: sum(s.hbm_bytes + s.ddr_bytes for s in one.shards) for _, name, one in plan.tables()
    }
    shown = set(sorted(total, key=lambda name: -total[name])[:MOST_TABLES])
    for _, name, table in plan.tables():
        key = name if name in shown else "others"
        for shard in table.shards:
            held[key][shard.rank] += (shard.hbm_bytes + shard.ddr_bytes) / GIB
            spent[key][shard.rank] += shard.step_ms
    with rc_context({"svg.hashsalt": "plan", "svg.fonttype": "none"}):
        figure = Figure(figsize=(max(6.0, min(16.0, plan.group_size / 8)), 6), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        for axes, parts, title in ((above, held, "GiB"), (below, spent, "ms a step, estimated")):
            bottom = [0.0] * plan.group_size
            for name, values in parts.items():
                axes.bar(range(plan.group_size), values, bottom=bottom, width=0.9, label=name)
                bottom = [one + other for one, other in zip(bottom, values, strict=True)]
            axes.set_ylabel(title)
        below.set_xlabel("rank")
        figure.legend(*above.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
        temporary = path.with_name(f".{path.name}.partial")
        try:
            figure.savefig(
                temporary, format=path.suffix.removeprefix(".") or "png", metadata=_undated(path)
            )
        except ValueError as error:
            raise UserError(f"--picture {path}: {error}; end it in .png or .svg") from None
    temporary.replace(path)


def _undated(path: Path) -> dict[str, None] | None:
    """An SVG without the day it was made: the same plan gives the same file."""
    return {"Date": None} if path.suffix == ".svg" else None
