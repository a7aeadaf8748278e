"""A sharding plan as one table for people, with what each rank has to carry."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hisac_rec.planning.plan_io import Plan, TablePlan
from hisac_rec.planning.units import GIB, human_bytes

WIDTH = 150
"""Columns that the table needs; where there is no terminal, take this many."""

MOST_EXPENSIVE = 3
"""Tables that the summary names, at most."""

LEAST_SHARE = 0.005
"""Of the time: what is less is not worth a word."""

_SHORT_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_BYTES_PER_VALUE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}


def plan_table(plan: Plan) -> Group:
    """Render a plan: one line per table, then the load of the ranks.

    ``per rank`` is the largest load of any one rank from that table (weights, optimiser
    state, buffers), ``ms/step`` the estimated time of its slowest rank. Cost O(shards).
    """
    cluster = plan.planner.topology
    title = (
        f"{cluster.hosts} host{'s' * (cluster.hosts > 1)} x {cluster.devices_per_host} "
        f"{cluster.device}, {plan.requests_per_rank:,} requests per rank"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("table", "rows x dim", "type", "weights", "sharding", "kernel", "ranks"):
        right = name in ("rows x dim", "weights")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for name in ("tokens/request", "per rank", "ms/step"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, name, found in plan.tables():
        table.add_row(
            name,
            f"{found.rows:,} x {found.dim}",
            _SHORT_TYPES.get(found.dtype, found.dtype),
            human_bytes(weight_bytes(found)),
            found.sharding_type,
            found.compute_kernel,
            shorten_ranks(found.ranks),
            _short(sum(found.pooling_factors)),
            human_bytes(max(_per_rank_bytes(found, plan.world_size))),
            _short(max(_per_rank_ms(found, plan.world_size))),
        )
    return Group(table, Text("\n".join(_summary(plan))))


def weight_bytes(table: TablePlan) -> int:
    """Bytes of the table's weights, whole, without optimiser state or buffers."""
    return table.rows * table.dim * _BYTES_PER_VALUE.get(table.dtype, 4)


def rank_bytes(plan: Plan, memory: str) -> list[int]:
    """Estimated bytes on every rank, ``memory`` being "hbm" or "ddr"."""
    load = [0] * plan.world_size
    for _, _, table in plan.tables():
        for shard in table.shards:
            load[shard.rank] += shard.hbm_bytes if memory == "hbm" else shard.ddr_bytes
    return load


def rank_ms(plan: Plan) -> list[float]:
    """Estimated milliseconds per step on every rank, the dense part left out."""
    load = [0.0] * plan.world_size
    for _, _, table in plan.tables():
        for rank, cost in enumerate(_per_rank_ms(table, plan.world_size)):
            load[rank] += cost
    return load


def shorten_ranks(ranks: Sequence[int]) -> str:
    """``[0, 1, 2, 3, 6, 7]`` -> ``0-3,6-7``; a rank with several shards is named once."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


def _summary(plan: Plan) -> list[str]:
    cluster = plan.planner.topology
    usable = 1 - plan.planner.reserve.percentage / 100
    capacity = {
        "hbm": cluster.hbm_gib * GIB * usable,
        "ddr": cluster.ddr_gib / cluster.devices_per_host * GIB * usable,
    }
    lines = []
    for memory in ("hbm", "ddr"):
        load = rank_bytes(plan, memory)
        if not any(load):
            continue
        mean = sum(load) / len(load)
        lines.append(
            f"{memory.upper()} per rank: min {human_bytes(min(load))}, mean {human_bytes(mean)}, "
            f"max {human_bytes(max(load))} (rank {load.index(max(load))}) of "
            f"{human_bytes(capacity[memory])} usable; imbalance {max(load) / mean:.2f}; "
            f"total {human_bytes(sum(load))}"
        )
    cost = rank_ms(plan)
    mean_cost = sum(cost) / len(cost)
    imbalance = f", imbalance {max(cost) / mean_cost:.2f}" if mean_cost else ""
    slowest = cost.index(max(cost))
    parts = rank_parts(plan, slowest)
    told = ", ".join(f"{name} {_short(ms)}" for name, ms in parts.items() if ms)
    lines.append(
        f"embedding time per step (TorchRec's estimate): slowest rank {_short(max(cost))} ms"
        f"{imbalance}" + (f" (rank {slowest}: {told})" if told else "")
    )
    shares = {
        name: sum(shard.step_ms for shard in one.shards) / sum(cost)
        for _, name, one in plan.tables()
        if sum(cost)
    }
    costly = sorted(shares.items(), key=lambda item: -item[1])[:MOST_EXPENSIVE]
    named = [f"'{name}' {share:.0%}" for name, share in costly if share >= LEAST_SHARE]
    if named:
        lines.append("most expensive tables, of the time of all ranks: " + ", ".join(named))
    return lines


PARTS = ("lookup", "rows", "gradients", "update", "prefetch")
"""What an estimated step is made of; see :class:`~hisac_rec.planning.plan_io.Shard`."""


def rank_parts(plan: Plan, rank: int) -> dict[str, float]:
    """Estimated milliseconds of a rank's step, part by part. O(shards)."""
    own = [shard for _, _, table in plan.tables() for shard in table.shards if shard.rank == rank]
    return {part: sum(getattr(shard, f"{part}_ms") for shard in own) for part in PARTS}


def _short(number: float) -> str:
    """Three significant digits, without exponents where people would not write them."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _per_rank_bytes(table: TablePlan, world_size: int) -> list[int]:
    load = [0] * world_size
    for shard in table.shards:
        load[shard.rank] += shard.hbm_bytes + shard.ddr_bytes
    return load


def _per_rank_ms(table: TablePlan, world_size: int) -> list[float]:
    load = [0.0] * world_size
    for shard in table.shards:
        load[shard.rank] += shard.step_ms
    return load
