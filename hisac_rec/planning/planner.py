"""Sharding plans by TorchRec's planner, fed with what its defaults get wrong.

TorchRec assumes one token per feature, 512 samples a step and GPUs of 32 GiB. A history of
10,000 events is four orders of magnitude away from that, so the planner here always gets
measured mean lengths, the real batch size and the real cluster. No GPU, process group or
weight is needed: a model on the meta device is planned for any cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import (
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    ShardingOption,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from hisac_rec.errors import UserError
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.infeasible import explain_infeasible
from hisac_rec.planning.model_tables import ModelTable, model_tables, tables_digest
from hisac_rec.planning.plan_io import Plan, Shard, TablePlan, check_plan
from hisac_rec.planning.units import GIB

log = logging.getLogger(__name__)

MAX_GRID = 1000
"""Exhaustive search up to this many combinations of table options, greedy beyond it."""

Sharders = Sequence[ModuleSharder[nn.Module]]


def default_sharders(
    communication: str = "fp32", device: torch.device | None = None
) -> list[ModuleSharder[nn.Module]]:
    """Sharders of both kinds of embedding collection, without fused parameters.

    Args:
        communication: what rows and gradients travel as: "fp32", "fp16" or "bf16".
        device: where the ranks compute; what cannot send bf16 sends fp16.
    """
    precision = CommType(communication)
    codecs = get_qcomm_codecs_registry(
        QCommsConfig(forward_precision=precision, backward_precision=precision), device=device
    )
    return [
        EmbeddingCollectionSharder(qcomm_codecs_registry=codecs),
        EmbeddingBagCollectionSharder(qcomm_codecs_registry=codecs),
    ]


def make_plan(
    model: nn.Module,
    config: PlannerConfig,
    *,
    requests_per_rank: int,
    pooling_factors: Mapping[str, float],
    bags_per_request: float = 1.0,
    sharders: Sharders | None = None,
) -> Plan:
    """Plan where every embedding table of ``model`` goes.

    Pure: the same arguments give the same plan in every process, so each rank may call it.
    Optimiser state is counted for the parameters that were given a fused optimiser by
    ``apply_optimizer_in_backward``; a frozen table has none and none is counted.

    Args:
        model: the unsharded model, on any device, the meta device included.
        config: the cluster and the rules.
        requests_per_rank: batch size B of one rank, in requests.
        pooling_factors: feature name -> mean tokens per request: mean history length for
            history features, mean candidates for candidate features, 1 for user features;
            or table name -> the sum over its features, where none is named like the table.
        bags_per_request: sums that a request asks of each table of an EmbeddingBagCollection.
        sharders: TorchRec sharders of the job; None: :func:`default_sharders`.

    Returns:
        The plan; ``plan.to_torchrec()`` is what ``DistributedModelParallel`` takes.
        Cost O(proposals * shards): about a second for 128 ranks.

    Raises:
        UserError: a pattern matches no table, a rule leaves a table no way to be sharded, a
            pooling factor is missing, or the tables do not fit.
    """
    if requests_per_rank < 1:
        raise UserError(f"requests_per_rank = {requests_per_rank}: at least 1 is needed")
    sharders = default_sharders() if sharders is None else sharders
    tables = model_tables(model)
    if not tables:
        raise UserError("the model holds no embedding collection: there is nothing to shard")
    config.check_patterns(table.name for table in tables)
    constraints = {
        table.name: _constraints(table, config, pooling_factors, bags_per_request, sharders)
        for table in tables
    }
    topology = make_topology(config)
    enumerator = _OrderedEnumerator(topology, requests_per_rank, constraints=constraints)
    chosen: list[ShardingOption] = []

    def keep(options: list[ShardingOption]) -> list[ShardingOption]:
        chosen.extend(options)
        return options

    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=requests_per_rank,
        enumerator=enumerator,
        constraints=constraints,
        # The topology is already without the reserve: TorchRec's own reserves HBM alone.
        storage_reservation=FixedPercentageStorageReservation(0.0),
        proposer=[
            GridSearchProposer(max_proposals=MAX_GRID),
            GreedyProposer(),
            GreedyProposer(use_depth=False),
            UniformProposer(),
        ],
        stats=[],
        callbacks=[keep],
    )
    try:
        sharding = planner.plan(model, list(sharders))
    except PlannerError as error:
        log.debug("TorchRec's planner: %s", error)
        options = enumerator.enumerate(model, list(sharders))
        raise UserError(explain_infeasible(options, config, requests_per_rank)) from None
    plan = Plan(
        digest=tables_digest(tables),
        requests_per_rank=requests_per_rank,
        planner=config,
        modules=_modules(tables, chosen, constraints, sharding),
    )
    check_plan(plan, model)
    if plan.to_torchrec() != sharding:
        raise RuntimeError("the plan does not convert back to TorchRec's: a defect, report it")
    return plan


def make_topology(config: PlannerConfig) -> Topology:
    """TorchRec's topology of the cluster, with the reserve already taken off."""
    cluster = config.topology
    usable = (1 - config.reserve.percentage / 100) * GIB
    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=cluster.world_size,
            local_world_size=cluster.devices_per_host,
            hbm_cap_bytes=int(cluster.hbm_gib * usable),
            ddr_cap_bytes=int(cluster.ddr_gib / cluster.devices_per_host * usable),
        ),
        HardwareConfig(
            intra_host_bw=_bytes_per_ms(cluster.intra_host_bandwidth),
            inter_host_bw=_bytes_per_ms(cluster.inter_host_bandwidth),
            hbm_mem_bw=_bytes_per_ms(cluster.hbm_bandwidth),
            ddr_mem_bw=_bytes_per_ms(cluster.ddr_bandwidth),
            hbm_to_ddr_mem_bw=_bytes_per_ms(cluster.host_to_device_bandwidth),
        ),
        # Without the flag TorchRec ignores the bandwidths above.
        KernelConfig(compute_device=cluster.device, use_hardware_based_bandwidth=True),
    )


class _OrderedEnumerator(EmbeddingEnumerator):
    """TorchRec's enumerator in a fixed order.

    The original lists options in the order of Python string sets, which differs between
    processes, and the order decides between options of equal cost: ranks would disagree.
    """

    def enumerate(self, module: nn.Module, sharders: Sharders) -> list[ShardingOption]:
        options = super().enumerate(module, list(sharders))
        return sorted(options, key=lambda o: (o.fqn, o.sharding_type, o.compute_kernel))


def _bytes_per_ms(gigabytes_per_second: float) -> float:
    return gigabytes_per_second * 1e6


def _constraints(
    table: ModelTable,
    config: PlannerConfig,
    pooling_factors: Mapping[str, float],
    bags_per_request: float,
    sharders: Sharders,
) -> ParameterConstraints:
    """TorchRec's constraints of one table, checked against what its module supports."""
    device = config.topology.device
    rules = config.constraints_of(table.name)
    sharder = _sharder_of(table, sharders)
    supported = [kind for kind in sharder.sharding_types(device) if _works(kind, table, device)]
    by_default = [kind for kind in supported if kind != ShardingType.DATA_PARALLEL.value]
    kinds = _allowed(table, "sharding_types", rules.sharding_types, supported, by_default, device)
    kernels = {kernel for kind in kinds for kernel in sharder.compute_kernels(kind, device)}
    _allowed(table, "compute_kernels", rules.compute_kernels, sorted(kernels), [], device)
    cache = rules.cache_load_factor
    tokens = _pooling_factors(table, rules.pooling_factor, pooling_factors)
    bags = bags_per_request if isinstance(table.module, EmbeddingBagCollection) else 1.0
    return ParameterConstraints(
        sharding_types=kinds,
        compute_kernels=rules.compute_kernels,
        min_partition=rules.min_partition,
        pooling_factors=[factor / bags for factor in tokens],
        num_poolings=[bags] * len(tokens),
        is_weighted=bool(getattr(table.module, "is_weighted", bool)()),
        cache_params=None if cache is None else CacheParams(load_factor=cache),
        feature_names=list(table.features),
    )


def _sharder_of(table: ModelTable, sharders: Sharders) -> ModuleSharder[nn.Module]:
    for sharder in sharders:
        if type(table.module) is sharder.module_type:
            return sharder
    raise UserError(
        f"table '{table.name}': no sharder for its module '{table.path}' "
        f"({type(table.module).__name__}); it would silently stay unsharded"
    )


def _works(sharding_type: str, table: ModelTable, device: str) -> bool:
    """Data-parallel EmbeddingCollections raise in the backward pass on CPU (TorchRec 1.8)."""
    replicated = sharding_type == ShardingType.DATA_PARALLEL.value
    return not (replicated and device == "cpu" and isinstance(table.module, EmbeddingCollection))


def _allowed(
    table: ModelTable,
    key: str,
    wanted: Sequence[str] | None,
    supported: Sequence[str],
    default: Sequence[str],
    device: str,
) -> list[str]:
    """What of ``wanted`` is supported, sorted; ``default`` where nothing was asked for."""
    if wanted is None:
        return sorted(default)
    both = sorted(set(wanted) & set(supported))
    if not both:
        raise UserError(
            f"planner config: {key} = {list(wanted)} leaves no way to shard table "
            f"'{table.name}': {type(table.module).__name__} on {device} supports "
            f"{', '.join(sorted(supported))}"
        )
    return both


def _pooling_factors(
    table: ModelTable, override: float | None, measured: Mapping[str, float]
) -> list[float]:
    """Mean tokens per request: of each feature, or one for the whole table."""
    if override is not None:
        return [override] * len(table.features)
    missing = [feature for feature in table.features if feature not in measured]
    if not missing:
        return [float(measured[feature]) for feature in table.features]
    if table.name in measured and table.name not in table.features:
        return [float(measured[table.name]) / len(table.features)] * len(table.features)
    raise UserError(
        f"table '{table.name}': no pooling factor (mean tokens per request) for feature "
        f"{', '.join(repr(name) for name in missing)}; set pooling_factor under "
        f"[tables.{table.name}] of the planner config"
    )


def _modules(
    tables: Sequence[ModelTable],
    options: Sequence[ShardingOption],
    constraints: Mapping[str, ParameterConstraints],
    sharding: ShardingPlan,
) -> dict[str, dict[str, TablePlan]]:
    """The plan's body, tables in the model's order."""
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
    return TablePlan(
        rows=table.rows,
        dim=table.dim,
        dtype=table.dtype,
        features=list(table.features),
        pooling_factors=list(tokens),
        sharding_type=option.sharding_type,
        compute_kernel=option.compute_kernel,
        cache_load_factor=option.cache_load_factor,
        shards=[
            Shard(
                rank=shard.rank,
                placement=placement,
                offset=tuple(shard.offset),
                size=tuple(shard.size),
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
