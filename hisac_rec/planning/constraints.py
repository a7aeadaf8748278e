"""TorchRec's constraints of a table, from the rules of a planner config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import (
    CacheAlgorithm,
    CacheParams,
    CacheStatistics,
    ModuleSharder,
    ShardingType,
)
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.planning.config import PlannerConfig, TableConstraints
from hisac_rec.planning.model_tables import ModelTable
from hisac_rec.planning.units import GIB

Sharders = Sequence[ModuleSharder[nn.Module]]

MOST_BLOCKS = 1_024
"""Ranks that a managed table can be on (TorchRec 1.8)."""

DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


class PopularRows(CacheStatistics):
    """How often a cache misses where few rows get most lookups.

    With a share c of the rows cached, (1 - c) ** k of the lookups miss; the area under that
    curve is 1 / (k + 1).

    Args:
        cacheability: that area; 0.5 where all rows are as popular.
        lookups: of a step, over all ranks.
    """

    def __init__(self, cacheability: float, lookups: float) -> None:
        self._cacheability, self._lookups = cacheability, lookups

    @property
    def expected_lookups(self) -> float:
        """Of a step."""
        return self._lookups

    def expected_miss_rate(self, clf: float) -> float:
        """Share of lookups that miss with a share ``clf`` of the rows cached."""
        return float((1 - clf) ** (1 / self._cacheability - 1))

    @property
    def cacheability(self) -> float:
        """Area under the curve of misses."""
        return self._cacheability


def constraints_of(
    table: ModelTable,
    config: PlannerConfig,
    pooling_factors: Mapping[str, float],
    bags_per_request: float,
    requests_per_rank: int,
    sharders: Sharders,
) -> ParameterConstraints:
    """TorchRec's constraints of one table, checked against what its module supports.

    Args: as of :func:`~hisac_rec.planning.planner.make_plan`.

    Raises:
        UserError: a rule leaves no way to shard the table, or a pooling factor is missing.
    """
    device = config.topology.device
    rules = config.constraints_of(table.name)
    sharder = _sharder_of(table, sharders)
    if table.managed:
        _require_manageable(table, config)
    supported = [kind for kind in sharder.sharding_types(device) if _works(kind, table, device)]
    by_default = [kind for kind in supported if kind != ShardingType.DATA_PARALLEL.value]
    kinds = _allowed(table, "sharding_types", rules.sharding_types, supported, by_default, device)
    kernels = {kernel for kind in kinds for kernel in sharder.compute_kernels(kind, device)}
    _allowed(table, "compute_kernels", rules.compute_kernels, sorted(kernels), [], device)
    allowed = rules.compute_kernels
    if config.topology.replicas > 1:
        kinds, allowed = _replicated(table, kinds, allowed)
    tokens = _tokens(table, rules, pooling_factors)
    pooled = isinstance(table.module, EmbeddingBagCollection)
    bags = (rules.bags_per_request or bags_per_request) if pooled else 1.0
    requests = rules.requests_per_rank or requests_per_rank
    lookups = sum(tokens) * requests * config.topology.group_size
    return ParameterConstraints(
        sharding_types=kinds,
        compute_kernels=allowed,
        min_partition=rules.min_partition,
        pooling_factors=[factor / bags for factor in tokens],
        num_poolings=[bags] * len(tokens),
        batch_sizes=[requests] * len(tokens),
        is_weighted=bool(getattr(table.module, "is_weighted", bool)()),
        cache_params=_cache(rules, "scale_up" in config.search.proposers, table.rows, lookups),
        enforce_hbm=rules.enforce_hbm,
        stochastic_rounding=rules.stochastic_rounding,
        feature_names=list(table.features),
    )


def _require_manageable(table: ModelTable, config: PlannerConfig) -> None:
    """What a managed table cannot be, found before anything is sharded."""
    cluster = config.topology
    if cluster.replicas > 1:
        raise UserError(
            f"planner config: with a sharding_group, table '{table.name}' cannot have a managed "
            "vocabulary: each group would give its rows to other ids; leave sharding_group out, or "
            f"set tables.vocabulary.{table.name}.kind = 'hashed' in the model file"
        )
    ranks = cluster.world_size
    if ranks > MOST_BLOCKS:
        raise UserError(
            f"tables.vocabulary.{table.name}: TorchRec manages tables on {MOST_BLOCKS:,} ranks at "
            f"most, these are {ranks:,}; choose kind = 'hashed'"
        )
    if (ranks - 1) * -(-table.rows // ranks) >= table.rows - 1:
        raise UserError(
            f"tables.vocabulary.{table.name}.rows = {table.rows}: in equal blocks over {ranks} "
            f"ranks the last one has less than the two rows that it needs; choose "
            f"{max(2, round(table.rows / ranks)) * ranks}"
        )
    if cluster.device == "cuda" and table.optimizer is not RowWiseAdagrad:
        raise UserError(
            f"tables.vocabulary.{table.name}: on a GPU, FBGEMM resets the state of an evicted row "
            "for train.sparse_optimizer = 'rowwise_adagrad' alone; choose that, or kind = 'hashed'"
        )


def _replicated(
    table: ModelTable, kinds: list[str], kernels: list[str] | None
) -> tuple[list[str], list[str]]:
    """What of it can be averaged over replicas: rows that are in the memory of the device."""
    fused = EmbeddingComputeKernel.FUSED.value
    kinds = [kind for kind in kinds if kind != ShardingType.DATA_PARALLEL.value]
    if not kinds or fused not in (kernels or [fused]):
        raise UserError(
            f"planner config: with a sharding_group, table '{table.name}' needs compute_kernels = "
            "['fused'] and a sharding type other than data_parallel: rows in main memory, behind a "
            "cache or in every rank are not averaged over the groups"
        )
    return kinds, [fused]


def _cache(rules: TableConstraints, scaled: bool, rows: int, lookups: float) -> CacheParams | None:
    """Parameters of the cache of fused_uvm_caching; None where the rules say nothing of it."""
    stats: CacheStatistics | None = None
    factor = rules.cache_load_factor
    if scaled or rules.cacheability is not None:
        # The proposer that lets caches grow needs to know where they start and what they bring.
        factor = factor or UVM_CACHING_RATIO
        stats = PopularRows(rules.cacheability or 0.5, min(float(rows), lookups))
    precision = rules.cache_precision
    given = (factor, rules.cache_algorithm, precision, rules.cache_reserved_gib)
    if given == (None, None, None, None):
        return None
    reserved = rules.cache_reserved_gib
    return CacheParams(
        load_factor=factor,
        algorithm=CacheAlgorithm[rules.cache_algorithm.upper()] if rules.cache_algorithm else None,
        reserved_memory=None if reserved is None else reserved * GIB,
        precision=None if precision is None else DATA_TYPES[precision],
        stats=stats,
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


def _tokens(
    table: ModelTable, rules: TableConstraints, measured: Mapping[str, float]
) -> list[float]:
    """Mean tokens per request: of each feature, or one for the whole table."""
    override = rules.pooling_factor
    if isinstance(override, float):
        return [override] * len(table.features)
    for feature in override or ():
        if feature not in table.features:
            raise UserError(
                f"planner config: pooling_factor names feature '{feature}', which does not look up "
                f"table '{table.name}'{did_you_mean(feature, table.features)}"
            )
    known = {**measured, **(override or {})}
    missing = [feature for feature in table.features if feature not in known]
    if not missing:
        return [float(known[feature]) for feature in table.features]
    if table.name in measured and table.name not in table.features:
        return [float(measured[table.name]) / len(table.features)] * len(table.features)
    raise UserError(
        f"table '{table.name}': no pooling factor (mean tokens per request) for feature "
        f"{', '.join(repr(name) for name in missing)}; set pooling_factor under "
        f"[tables.{table.name}] of the planner config"
    )
