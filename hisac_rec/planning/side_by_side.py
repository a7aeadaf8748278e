"""Two plans of one model, side by side: what another cluster or other rules would change."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from hisac_rec.planning.plan_io import Plan, TablePlan
from hisac_rec.planning.table import rank_bytes, rank_ms, shorten_ranks
from hisac_rec.planning.units import human_bytes


def compare_plans(plans: Sequence[Plan], names: Sequence[str]) -> Table:
    """One line per table, then the ranks' load, one column per plan. O(shards).

    Args:
        plans: of the same model.
        names: of the planner configs.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("table", no_wrap=True)
    for name in names:
        table.add_column(name)
    first, *_ = plans
    for path, name, _ in first.tables():
        table.add_row(name, *[_one(plan.modules[path][name]) for plan in plans])
    table.add_section()
    for title, cells in _loads(plans).items():
        table.add_row(title, *cells)
    return table


def _one(table: TablePlan) -> str:
    each = sum(shard.step_ms for shard in table.shards) / len(table.shards)
    return (
        f"{table.sharding_type}, {table.compute_kernel}, ranks {shorten_ranks(table.ranks)}, "
        f"{each:.3g} ms a shard"
    )


def _loads(plans: Sequence[Plan]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {
        "ranks": [str(plan.world_size) for plan in plans],
        "requests per rank": [f"{plan.requests_per_rank:,}" for plan in plans],
    }
    for memory in ("hbm", "ddr"):
        loads = [rank_bytes(plan, memory) for plan in plans]
        if any(map(any, loads)):
            rows[f"{memory.upper()}, fullest rank"] = [human_bytes(max(one)) for one in loads]
            rows[f"{memory.upper()}, total"] = [human_bytes(sum(one)) for one in loads]
    times = [rank_ms(plan) for plan in plans]
    rows["ms a step, slowest rank"] = [f"{max(one):.3g}" for one in times]
    rows["imbalance of time"] = [
        f"{max(one) * len(one) / sum(one):.2f}" if sum(one) else "-" for one in times
    ]
    return rows
