"""A sharding plan as a readable JSON file, and back, exactly.

:class:`Plan` holds what TorchRec needs to shard (it converts to and from its
``ShardingPlan``), what the planner estimated, and what it was planned for: the tables'
shapes and the cluster. A plan for another model or another world size is refused by
:func:`~hisac_rec.planning.check.check_plan` with the names of what differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec
from torchrec.distributed.types import (
    CacheAlgorithm,
    CacheParams,
    EmbeddingModuleShardingPlan,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)
from torchrec.modules.embedding_configs import DataType

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.files import replace_text
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.footprint import NOTHING, Footprint
from hisac_rec.planning.model_tables import describe_shape

_LINE = 400
"""Width of the JSON: one shard fits."""


class Shard(Strict):
    """One piece of a table on one rank."""

    rank: int
    placement: str
    """TorchRec's ``rank:<rank>/<device>``."""
    offset: tuple[int, int]
    """First row, first column."""
    size: tuple[int, int]
    """Rows, columns."""
    weight_bytes: int
    """Weights alone, exactly."""
    state_bytes: int
    """Optimiser state alone, exactly."""
    hbm_bytes: int
    """Estimated device memory: weights, optimiser state, input and output buffers."""
    ddr_bytes: int
    """Estimated main memory, likewise."""
    step_ms: float
    """Estimated time per step, forward and backward, lookups and communication: the sum of the
    next five."""
    lookup_ms: float = 0.0
    """Reading and summing rows."""
    rows_ms: float = 0.0
    """Rows or sums on their way back to who asked."""
    gradients_ms: float = 0.0
    """Their gradients on the way to the shard."""
    update_ms: float = 0.0
    """Backward lookup and optimiser."""
    prefetch_ms: float = 0.0
    """Filling the cache of a table in main memory."""
    ids_ms: float = 0.0
    """Ids on their way to the shard, during the step before."""


class CacheSettings(Strict):
    """Cache of a table in main memory; what is None is FBGEMM's default."""

    load_factor: float | None = None
    algorithm: Literal["LRU", "LFU"] | None = None
    precision: Literal["FP32", "FP16"] | None = None
    reserved_bytes: float | None = None

    @classmethod
    def of(cls, params: CacheParams | None) -> CacheSettings | None:
        """From TorchRec's form."""
        if params is None:
            return None
        return cls(
            load_factor=params.load_factor,
            algorithm=None if params.algorithm is None else params.algorithm.name,
            precision=None if params.precision is None else params.precision.name,
            reserved_bytes=params.reserved_memory,
        )

    def to_torchrec(self) -> CacheParams:
        """TorchRec's form."""
        return CacheParams(
            load_factor=self.load_factor,
            algorithm=None if self.algorithm is None else CacheAlgorithm[self.algorithm],
            precision=None if self.precision is None else DataType[self.precision],
            reserved_memory=self.reserved_bytes,
        )


class TablePlan(Strict):
    """How one table is sharded."""

    rows: int
    dim: int
    dtype: str
    features: list[str]
    pooling_factors: list[float]
    """Mean tokens per request that the plan was made for, per feature."""
    sharding_type: str
    compute_kernel: str
    cache: CacheSettings | None = None
    enforce_hbm: bool | None = None
    stochastic_rounding: bool | None = None
    optimizer: str | None = None
    """Class of the fused optimiser; None: the table is frozen."""
    shards: list[Shard]

    @property
    def shape(self) -> str:
        """``1,000 x 64 float32``."""
        return describe_shape(self.rows, self.dim, self.dtype)

    @property
    def ranks(self) -> list[int]:
        """The rank of each shard."""
        return [shard.rank for shard in self.shards]

    def to_torchrec(self, first: int = 0, local: int = 1) -> ParameterSharding:
        """TorchRec's form of this table's sharding.

        Args:
            first: rank that rank 0 of the plan is.
            local: ranks of a host.
        """
        return ParameterSharding(
            sharding_type=self.sharding_type,
            compute_kernel=self.compute_kernel,
            ranks=[first + rank for rank in self.ranks],
            sharding_spec=self._sharding_spec(first, local),
            cache_params=None if self.cache is None else self.cache.to_torchrec(),
            enforce_hbm=self.enforce_hbm,
            stochastic_rounding=self.stochastic_rounding,
        )

    def _sharding_spec(self, first: int, local: int) -> EnumerableShardingSpec | None:
        if self.sharding_type == ShardingType.DATA_PARALLEL.value:
            return None
        return EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=list(shard.offset),
                    shard_sizes=list(shard.size),
                    placement=_shifted(shard.placement, first, local) if first else shard.placement,
                )
                for shard in self.shards
            ]
        )


class Plan(Strict):
    """Where every table of one model goes on one cluster."""

    version: Literal[2] = 2
    """Version of this schema."""
    digest: str
    """:func:`~hisac_rec.planning.model_tables.tables_digest` of the model."""
    requests_per_rank: int
    """Batch size that the estimates are for."""
    planner: PlannerConfig
    """The configuration that made it; ``planner.topology`` is the cluster."""
    footprint: Footprint = NOTHING
    """What every rank holds on its device besides tables."""
    modules: dict[str, dict[str, TablePlan]]
    """Module path -> table name -> how it is sharded."""

    @property
    def world_size(self) -> int:
        """Ranks that the plan is for."""
        return self.planner.topology.world_size

    @property
    def group_size(self) -> int:
        """Ranks that tables are sharded over; ``rank`` of a shard counts within a group."""
        return self.planner.topology.group_size

    def tables(self) -> Iterator[tuple[str, str, TablePlan]]:
        """Yield (module path, table name, plan) of every table."""
        for path, tables in self.modules.items():
            for name, table in tables.items():
                yield path, name, table

    def to_torchrec(self, group: int = 0) -> ShardingPlan:
        """What ``DistributedModelParallel(plan=...)`` takes. Cost O(shards).

        Args:
            group: number of the sharding group, where there are several.
        """
        first, local = group * self.group_size, self.planner.topology.devices_per_host
        return ShardingPlan(
            {
                path: EmbeddingModuleShardingPlan(
                    {name: table.to_torchrec(first, local) for name, table in tables.items()}
                )
                for path, tables in self.modules.items()
            }
        )

    def to_json(self) -> str:
        """JSON with one line per shard."""
        return _pretty(self.model_dump(mode="json", exclude_none=True)) + "\n"

    def save(self, path: Path) -> None:
        """Write the plan; the file appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, self.to_json())


def _shifted(placement: str, first: int, local: int) -> str:
    """``rank:1/cuda:1`` of the first group -> ``rank:5/cuda:1`` of one that begins at rank 4."""
    rank, _, device = placement.removeprefix("rank:").partition("/")
    shifted = first + int(rank)
    kind = device.split(":")[0]
    return f"rank:{shifted}/{kind}:{shifted % local}" if ":" in device else f"rank:{shifted}/{kind}"


def load_plan(path: Path) -> Plan:
    """Read a plan that :meth:`Plan.save` wrote.

    Raises:
        UserError: the file is absent, not JSON, or not a plan; names the file and the key.
    """
    try:
        return Plan.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"{path}: no such plan; make one with 'hisac-rec plan'") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: not a sharding plan: key '{key}': {first['msg']}; "
            "make it again with 'hisac-rec plan'"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None


def _pretty(node: Any, indent: int = 0) -> str:
    """JSON that puts on one line what fits on one line."""
    flat = json.dumps(node)
    if not isinstance(node, (dict, list)) or not node or len(flat) + indent <= _LINE:
        return flat
    pad = " " * (indent + 2)
    if isinstance(node, dict):
        lines = [f"{pad}{json.dumps(key)}: {_pretty(node[key], indent + 2)}" for key in node]
        return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
    lines = [pad + _pretty(value, indent + 2) for value in node]
    return "[\n" + ",\n".join(lines) + "\n" + " " * indent + "]"
