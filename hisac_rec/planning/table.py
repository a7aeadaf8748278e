"""A sharding plan as one table for people, with what each rank has to carry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hisac_rec.planning.plan_io import Plan, Shard, TablePlan
from hisac_rec.planning.state import BYTES_PER_VALUE
from hisac_rec.planning.topology import usable_bytes
from hisac_rec.planning.units import human_bytes

WIDTH = 150
"""Columns that the table needs; where there is no terminal, take this many."""

MOST_EXPENSIVE = 3
"""Tables that the summary names, at most."""

LEAST_SHARE = 0.005
"""Of the time: what is less is not worth a word."""

_SHORT_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


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
            human_bytes(max(_per_rank_bytes(found, plan.group_size))),
            _short(max(_per_rank_ms(found, plan.group_size))),
        )
    return Group(table, rank_table(plan), Text("\n".join(_summary(plan))))


def weight_bytes(table: TablePlan) -> int:
    """Bytes of the table's weights, whole, without optimiser state or buffers."""
    return table.rows * table.dim * BYTES_PER_VALUE[table.dtype]


def rank_bytes(plan: Plan, memory: str) -> list[int]:
    """Estimated bytes on every rank, ``memory`` being "hbm" or "ddr"."""
    load = [0] * plan.group_size
    for _, _, table in plan.tables():
        for shard in table.shards:
            load[shard.rank] += shard.hbm_bytes if memory == "hbm" else shard.ddr_bytes
    return load


def rank_ms(plan: Plan) -> list[float]:
    """Estimated milliseconds per step on every rank, the dense part left out."""
    load = [0.0] * plan.group_size
    for _, _, table in plan.tables():
        for rank, cost in enumerate(_per_rank_ms(table, plan.group_size)):
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
    cost = rank_ms(plan)
    lines = []
    cluster = plan.planner.topology
    if cluster.replicas > 1:
        lines.append(_of_replicas(plan))
    if plan.footprint.total:
        lines.append(f"besides tables, on every rank: {plan.footprint.describe()}")
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


PARTS = {
    "lookup": "forward: lookup",
    "rows": "forward: rows sent",
    "gradients": "backward: gradients sent",
    "update": "backward: update",
    "prefetch": "prefetch into the cache",
}
"""What an estimated step is made of; see :class:`~hisac_rec.planning.plan_io.Shard`."""


def rank_parts(plan: Plan, rank: int) -> dict[str, float]:
    """Estimated milliseconds of a rank's step, part by part. O(shards)."""
    own = [shard for _, _, table in plan.tables() for shard in table.shards if shard.rank == rank]
    return {part: sum(getattr(shard, f"{part}_ms") for shard in own) for part in PARTS}


def _of_replicas(plan: Plan) -> str:
    """What averaging the replicas moves, by the slowest link that it takes."""
    cluster = plan.planner.topology
    moved = (
        2
        * (1 - 1 / cluster.replicas)
        * max(
            sum(s.weight_bytes + s.state_bytes for s in shards)
            for shards in _trained_shards(plan).values()
        )
    )
    one_host = cluster.world_size <= cluster.devices_per_host
    bandwidth = cluster.intra_host_bandwidth if one_host else cluster.inter_host_bandwidth
    return (
        f"{cluster.replicas} replicas of {cluster.group_size} ranks, the table above is of one: "
        f"averaging them moves {human_bytes(moved)} per rank, {_short(moved / bandwidth / 1e6)} ms "
        f"every {cluster.sync_every} steps"
    )


def _trained_shards(plan: Plan) -> dict[int, list[Shard]]:
    """Rank -> its shards of tables that are trained."""
    found: dict[int, list[Shard]] = {rank: [] for rank in range(plan.group_size)}
    for _, _, table in plan.tables():
        for shard in table.shards if table.optimizer else ():
            found[shard.rank].append(shard)
    return found


def rank_table(plan: Plan) -> Table:
    """What the ranks carry: least, mean and most of each quantity, and on which rank. O(shards)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("each rank", no_wrap=True)
    for name in ("least", "mean", "most", "imbalance", "usable"):
        table.add_column(name, justify="right", no_wrap=True)
    usable = [usable_bytes(plan.planner, rank, plan.footprint) for rank in range(plan.group_size)]
    for memory in ("hbm", "ddr"):
        load = rank_bytes(plan, memory)
        if any(load):
            fullest = max(range(plan.group_size), key=lambda r: load[r] / usable[r][memory])
            room = human_bytes(usable[fullest][memory])
            table.add_row(memory.upper(), *_spread(load, human_bytes), room)
    for title, what in (("  of it weights", "weight_bytes"), ("  of it state", "state_bytes")):
        held = _of_ranks(plan, what)
        if any(held):
            table.add_row(title, *_spread(held, human_bytes), "")
    table.add_section()
    table.add_row("ms a step", *_spread(rank_ms(plan), _short), "")
    for part, title in PARTS.items():
        spent = _of_ranks(plan, f"{part}_ms")
        if any(spent):
            table.add_row(f"  {title}", *_spread(spent, _short), "")
    return table


def _of_ranks(plan: Plan, what: str) -> list[float]:
    """The sum over a rank's shards of one of their fields."""
    load = [0.0] * plan.group_size
    for _, _, table in plan.tables():
        for shard in table.shards:
            load[shard.rank] += getattr(shard, what)
    return load


def _spread(load: Sequence[float], shown: Callable[[float], str]) -> list[str]:
    """Least with its rank, mean, most with its rank, most over mean."""
    least, most = min(load), max(load)
    mean = sum(load) / len(load)
    return [
        f"{shown(least)} (rank {load.index(least)})",
        shown(mean),
        f"{shown(most)} (rank {load.index(most)})",
        f"{most / mean:.2f}" if mean else "-",
    ]


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
