"""What TorchRec's planner found, as the body of a :class:`~hisac_rec.planning.plan_io.Plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchrec.distributed.planner.types import ParameterConstraints, ShardingOption
from torchrec.distributed.types import ShardingPlan

from hisac_rec.planning.model_tables import ModelTable
from hisac_rec.planning.plan_io import CacheSettings, Shard, TablePlan
from hisac_rec.planning.state import state_bytes


def plan_body(
    tables: Sequence[ModelTable],
    options: Sequence[ShardingOption],
    constraints: Mapping[str, ParameterConstraints],
    sharding: ShardingPlan,
) -> dict[str, dict[str, TablePlan]]:
    """Module path -> table name -> its plan, tables in the model's order. O(shards).

    Args:
        tables: of the model.
        options: the chosen one of each table, placed.
        constraints: of each table.
        sharding: TorchRec's plan of these options.
    """
    by_table = {(option.path, option.name): option for option in options}
    modules: dict[str, dict[str, TablePlan]] = {}
    for table in tables:
        option = by_table.get((table.path, table.name))
        if option is not None:
            bags = (constraints[table.name].num_poolings or [1.0])[0]
            tokens = [length * bags for length in option.input_lengths]
            modules.setdefault(table.path, {})[table.name] = _table_plan(
                table, option, tokens, sharding
            )
    return modules


def _table_plan(
    table: ModelTable, option: ShardingOption, tokens: Sequence[float], sharding: ShardingPlan
) -> TablePlan:
    spec = sharding.plan[table.path][table.name].sharding_spec
    if spec is None:  # data parallel: a copy on every rank
        placements = [f"rank:{shard.rank}" for shard in option.shards]
    else:
        placements = [str(shard.placement) for shard in spec.shards]
    width = option.tensor.element_size()
    return TablePlan(
        rows=table.rows,
        dim=table.dim,
        dtype=table.dtype,
        features=list(table.features),
        pooling_factors=list(tokens),
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        cache=CacheSettings.of(option.cache_params),
        enforce_hbm=option.enforce_hbm,
        stochastic_rounding=option.stochastic_rounding,
        optimizer=None if table.optimizer is None else table.optimizer.__name__,
        shards=[
            Shard(
                rank=shard.rank,
                placement=placement,
                offset=tuple(shard.offset),
                size=tuple(shard.size),
                weight_bytes=shard.size[0] * shard.size[1] * width,
                state_bytes=state_bytes(table.optimizer, *shard.size),
                hbm_bytes=shard.storage.hbm,
                ddr_bytes=shard.storage.ddr,
                step_ms=shard.perf.total,
                lookup_ms=shard.perf.fwd_compute,
                rows_ms=shard.perf.fwd_comms,
                gradients_ms=shard.perf.bwd_comms,
                update_ms=shard.perf.bwd_compute,
                prefetch_ms=shard.perf.prefetch_compute,
                ids_ms=shard.perf.input_dist_comms,
            )
            for shard, placement in zip(option.shards, placements, strict=True)
        ],
    )
