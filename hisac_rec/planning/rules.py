"""``[defaults]`` and ``[tables.<pattern>]`` of a planner config: what a table may do."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from hisac_rec.config import Strict
from hisac_rec.errors import did_you_mean


def members(given: list[str], enum: type[Enum], what: str) -> list[str]:
    """``given``, where all are values of ``enum``.

    Raises:
        ValueError: one is not, or there is none; names the nearest.
    """
    valid = [member.value for member in enum]
    if not given:
        raise ValueError(f"names no {what}; leave the key out to allow all")
    for name in given:
        if name not in valid:
            raise ValueError(f"unknown {what} '{name}'{did_you_mean(name, valid)}")
    return given


class TableConstraints(Strict):
    """``[defaults]`` and ``[tables.<pattern>]``: what the planner may do with a table."""

    sharding_types: list[str] | None = None
    """Allowed ways to split a table, TorchRec's names: row_wise, table_wise, column_wise,
    table_row_wise, ... Left out: all that the module supports, except data_parallel."""
    compute_kernels: list[str] | None = None
    """Allowed kernels, TorchRec's names: fused (device memory), fused_uvm (main memory),
    fused_uvm_caching (main memory behind a cache in device memory), ... Left out: all that
    the module supports on the device."""
    min_partition: PositiveInt | None = None
    """Narrowest column shard, in columns; a multiple of 4. Shards have the least width from here
    on that divides the table's and is a multiple of 4. Left out: TorchRec's 128. The rows of a
    shard follow from the ranks: all of them (row_wise) or those of a host (table_row_wise,
    grid_shard)."""
    pooling_factor: PositiveFloat | dict[str, PositiveFloat] | None = None
    """Mean tokens per request of each feature of the table, one number for all or a table of
    feature = number; replaces what the data set's stats say."""
    bags_per_request: PositiveFloat | None = None
    """Sums a request asks of the table, where it is summed where its rows are
    (``tables.pool``); replaces what the first batch says."""
    requests_per_rank: PositiveInt | None = None
    """Requests of a rank's batch that look the table up; replaces the batch size of the plan."""
    cache_load_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a table that fused_uvm_caching keeps in device memory. Left out:
    TorchRec's 0.2."""
    cache_algorithm: Literal["lru", "lfu"] | None = None
    """Which row leaves a full cache: the one not used for longest or the one used least. Left
    out: FBGEMM's default, lru."""
    cache_precision: Literal["fp32", "fp16"] | None = None
    """Type of the rows in the cache. Left out: that of the table."""
    cache_reserved_gib: PositiveFloat | None = None
    """Device memory that the cache leaves free, GiB. Left out: FBGEMM's default, 0."""
    cacheability: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """How little a cache helps: the area under the curve of the share of lookups that miss over
    the share of rows cached. 0.5: all rows are as popular; less: few rows get most lookups. Given,
    the time of cache misses is part of the estimate; ``scale_up`` takes 0.5 where it is not."""
    enforce_hbm: bool | None = None
    """Keep rows and optimiser state of a fused_uvm or fused_uvm_caching table in device memory
    all the same; the plan counts them there."""
    stochastic_rounding: bool | None = None
    """Round the updates of an fp16 table at random, so that small ones are not lost. Left out:
    FBGEMM's default, on."""

    @field_validator("sharding_types")
    @classmethod
    def _known_sharding_types(cls, given: list[str] | None) -> list[str] | None:
        if given is None:
            return None
        from torchrec.distributed.types import ShardingType  # slow: not for --help

        return members(given, ShardingType, "sharding type")

    @field_validator("compute_kernels")
    @classmethod
    def _known_kernels(cls, given: list[str] | None) -> list[str] | None:
        if given is None:
            return None
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel

        return members(given, EmbeddingComputeKernel, "compute kernel")

    @field_validator("min_partition")
    @classmethod
    def _multiple_of_four(cls, given: int | None) -> int | None:
        if given is not None and given % 4:
            raise ValueError("must be a multiple of 4: kernels read four columns at a time")
        return given

    def over(self, base: TableConstraints) -> TableConstraints:
        """These constraints, with ``base`` where they say nothing."""
        return base.model_copy(update=self.model_dump(exclude_none=True))
