"""Is a plan for this model and this job, and does it hold every value exactly once?"""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from torchrec.distributed.types import ShardingType

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.planning.model_tables import ModelTable, model_tables, tables_digest
from hisac_rec.planning.plan_io import Plan, Shard, TablePlan
from hisac_rec.planning.state import BYTES_PER_VALUE, state_bytes


def check_plan(
    plan: Plan, model: nn.Module, *, world_size: int | None = None, source: str = "plan"
) -> None:
    """Refuse a plan that was made for other tables or another number of ranks.

    Args:
        plan: the plan about to be used.
        model: the unsharded model, on any device.
        world_size: ranks of the running job; None: not compared.
        source: what messages call the plan, usually its file.

    Raises:
        UserError: a table of the model is missing from the plan or the reverse, shapes or
            types differ (both are named), shards do not hold each value of their table exactly
            once, their bytes do not add up, or the world size differs.
    """
    if world_size is not None and world_size != plan.world_size:
        raise UserError(
            f"{source}: made for {plan.world_size} ranks, this job has {world_size}; "
            "plan again with a planner config of that world size"
        )
    mine = {(table.path, table.name): table for table in model_tables(model)}
    theirs = {(path, name): table for path, name, table in plan.tables()}
    again = "the plan is for another model: plan again with 'hisac-rec plan'"
    for key, table in mine.items():
        if key not in theirs:
            raise UserError(
                f"{source}: table '{table.name}' ({table.shape}) of module '{table.path}' "
                f"is not in the plan; {again}"
            )
        if table.shape != theirs[key].shape:
            raise UserError(
                f"{source}: table '{table.name}' of module '{table.path}' is {table.shape} "
                f"in the model and {theirs[key].shape} in the plan; {again}"
            )
        check_shards(table, theirs[key], plan.group_size, source)
    for key in theirs:
        if key not in mine:
            hint = did_you_mean(key[1], [name for _, name in mine])
            raise UserError(
                f"{source}: table '{key[1]}' ({theirs[key].shape}) of module '{key[0]}' is "
                f"in the plan but not in the model{hint}; {again}".replace("?;", "?")
            )


HOST_BOUND = (ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value)
"""Sharding types whose rows lie over the ranks of a host, which TorchRec counts when it shards."""


def check_hosts(plan: Plan, per_host: int, source: str = "plan") -> None:
    """Refuse a plan with shards over hosts where hosts have another number of ranks.

    Args:
        plan: about to be used.
        per_host: ranks on a host of this job.
        source: what messages call the plan.

    Raises:
        UserError: names a table.
    """
    planned = plan.planner.topology.devices_per_host
    for _, name, table in plan.tables():
        if table.sharding_type in HOST_BOUND and planned != per_host:
            raise UserError(
                f"{source}: table '{name}' is {table.sharding_type} over hosts of {planned} ranks, "
                f"this job has {per_host} on a host; plan again with devices_per_host = {per_host}"
            )


def matches(plan: Plan, model: nn.Module) -> bool:
    """True where ``plan`` was made for exactly these tables and features."""
    return plan.digest == tables_digest(model_tables(model))


def check_shards(table: ModelTable, planned: TablePlan, world_size: int, source: str) -> None:
    """Refuse shards that do not hold each value of their table once, or whose bytes do not add up.

    Cost O(shards log shards).

    Args:
        table: of the model.
        planned: its plan.
        world_size: ranks of the plan.
        source: what messages call the plan.

    Raises:
        UserError: names the table and what is wrong with it.
    """
    where = f"{source}: the shards of table '{table.name}'"
    hand = "the file was changed by hand?"
    for shard in planned.shards:
        named = shard.placement.split("/")[0].removeprefix("rank:")
        if not 0 <= shard.rank < world_size or named != str(shard.rank):
            raise UserError(
                f"{where}: one is on rank {shard.rank} at '{shard.placement}', the plan is for "
                f"ranks 0 to {world_size - 1}; {hand}"
            )
    if planned.sharding_type == ShardingType.DATA_PARALLEL.value:
        copies = sorted(shard.rank for shard in planned.shards)
        whole = all(shard.size == (table.rows, table.dim) for shard in planned.shards)
        if copies != list(range(world_size)) or not whole:
            raise UserError(f"{where}: there is not one whole copy on every rank; {hand}")
    else:
        covered = sum(shard.size[0] * shard.size[1] for shard in planned.shards)
        if covered != table.rows * table.dim:
            raise UserError(
                f"{where} hold {covered:,} values, the table "
                f"{table.rows * table.dim:,} ({table.shape}); {hand}"
            )
        if not _tiles(planned.shards, table.rows, table.dim):
            raise UserError(
                f"{where} hold some values more than once and others not at all; {hand}"
            )
        if planned.sharding_type == ShardingType.ROW_WISE.value and not _even(planned, world_size):
            raise UserError(
                f"{where} are not equal blocks of rows in the order of ranks, which is where "
                f"TorchRec looks for them; {hand}"
            )
    width = BYTES_PER_VALUE[table.dtype]
    for shard in planned.shards:
        rows, columns = shard.size
        weights, state = rows * columns * width, state_bytes(table.optimizer, rows, columns)
        if (shard.weight_bytes, shard.state_bytes) != (weights, state):
            raise UserError(
                f"{where}: the one at row {shard.offset[0]:,}, column {shard.offset[1]} has "
                f"{weights:,} bytes of weights and {state:,} of optimiser state, the plan says "
                f"{shard.weight_bytes:,} and {shard.state_bytes:,}; plan again: the optimiser or "
                "the type of the table is another one"
            )


def _even(planned: TablePlan, world_size: int) -> bool:
    """Whether shard r is the r-th block of rows, on rank r."""
    block = -(-planned.rows // world_size)
    wanted = [(r, min(r * block, planned.rows)) for r in range(world_size)]
    return [(shard.rank, shard.offset[0]) for shard in planned.shards] == wanted


def _tiles(shards: list[Shard], rows: int, columns: int) -> bool:
    """Whether shards lie side by side: bands of columns, each cut into runs of rows."""
    bands: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for shard in shards:
        if shard.size[0] and shard.size[1]:
            band = (shard.offset[1], shard.size[1])
            bands[band].append((shard.offset[0], shard.size[0]))
    return _in_line(list(bands), columns) and all(_in_line(cut, rows) for cut in bands.values())


def _in_line(pieces: list[tuple[int, int]], whole: int) -> bool:
    """Whether (begin, length) pieces cover 0 to ``whole`` without a gap or an overlap."""
    end = 0
    for begin, length in sorted(pieces):
        if begin != end:
            return False
        end = begin + length
    return end == whole
