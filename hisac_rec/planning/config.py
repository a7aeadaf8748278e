"""Planner configuration: the cluster, the memory kept free, what each table may do.

One file under ``launch/planners/`` is one cluster. Units are those of data sheets: GiB of
memory, GB/s (10^9 bytes a second, one direction) of bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hisac_rec.config import Strict
from hisac_rec.errors import UserError, did_you_mean

Device = Literal["cpu", "cuda"]


def _members(given: list[str], enum: type[Enum], what: str) -> list[str]:
    valid = [member.value for member in enum]
    if not given:
        raise ValueError(f"names no {what}; leave the key out to allow all")
    for name in given:
        if name not in valid:
            raise ValueError(f"unknown {what} '{name}'{did_you_mean(name, valid)}")
    return given


class TopologyConfig(Strict):
    """``[topology]``: the machines. The world size is ``hosts * devices_per_host``."""

    hosts: PositiveInt = 1
    """Machines."""
    devices_per_host: PositiveInt = 1
    """Ranks on each machine: GPUs, or processes where ``device`` is cpu."""
    device: Device = "cuda"
    """Where tables are looked up: "cpu" or "cuda"."""
    hbm_gib: Annotated[float, Field(ge=0)] = 0.0
    """Memory of one GPU, GiB, as ``torch.cuda`` reports it; 0 on cpu."""
    ddr_gib: PositiveFloat = 128.0
    """Main memory of one machine, GiB; its ranks share it evenly."""
    intra_host_bandwidth: PositiveFloat = 600.0
    """Between two devices of one machine, GB/s, one direction."""
    inter_host_bandwidth: PositiveFloat = 12.5
    """Between two machines, GB/s per device, one direction."""
    hbm_bandwidth: PositiveFloat = 2000.0
    """GPU memory, GB/s."""
    ddr_bandwidth: PositiveFloat = 50.0
    """Main memory, GB/s per rank."""
    host_to_device_bandwidth: PositiveFloat = 32.0
    """Main memory to one GPU, GB/s, one direction: what ``fused_uvm`` kernels pay."""

    @model_validator(mode="after")
    def _device_has_memory(self) -> TopologyConfig:
        if self.device == "cuda" and self.hbm_gib <= 0:
            raise ValueError("hbm_gib is required where device = 'cuda' (GiB of one GPU)")
        if self.device == "cpu" and self.hbm_gib > 0:
            raise ValueError("hbm_gib must be left out where device = 'cpu'")
        return self

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.hosts * self.devices_per_host


class ReserveConfig(Strict):
    """``[reserve]``: memory that no table may take."""

    percentage: Annotated[float, Field(ge=0, lt=100)] = 15.0
    """Per cent of each device's memory (of main memory too) kept free for the dense part
    of the model, its activations and the allocator."""


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
    """Narrowest column shard, in columns; a multiple of 4. Left out: TorchRec's 128."""
    cache_load_factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of a table that fused_uvm_caching keeps in device memory. Left out:
    TorchRec's 0.2."""
    pooling_factor: PositiveFloat | None = None
    """Mean tokens per request of each feature of the table; replaces what the data set's
    stats say."""

    @field_validator("sharding_types")
    @classmethod
    def _known_sharding_types(cls, given: list[str] | None) -> list[str] | None:
        if given is None:
            return None
        from torchrec.distributed.types import ShardingType  # slow: not for --help

        return _members(given, ShardingType, "sharding type")

    @field_validator("compute_kernels")
    @classmethod
    def _known_kernels(cls, given: list[str] | None) -> list[str] | None:
        if given is None:
            return None
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel

        return _members(given, EmbeddingComputeKernel, "compute kernel")

    @field_validator("min_partition")
    @classmethod
    def _multiple_of_four(cls, given: int | None) -> int | None:
        if given is not None and given % 4:
            raise ValueError("must be a multiple of 4: kernels read four columns at a time")
        return given

    def over(self, base: TableConstraints) -> TableConstraints:
        """These constraints, with ``base`` where they say nothing."""
        return base.model_copy(update=self.model_dump(exclude_none=True))


class PlannerConfig(Strict):
    """One file of ``launch/planners/``: a cluster and its rules."""

    topology: TopologyConfig
    """The machines."""
    reserve: ReserveConfig = ReserveConfig()
    """Memory kept free."""
    defaults: TableConstraints = TableConstraints()
    """Rules for every table."""
    tables: dict[str, TableConstraints] = {}
    """Rules for tables whose name matches a shell-style pattern, such as ``"item*"``; in
    the order of the file, later ones winning key by key over earlier ones and over
    ``defaults``."""

    def constraints_of(self, table: str) -> TableConstraints:
        """The rules for one table: defaults, then every matching pattern in order."""
        found = self.defaults
        for pattern, rules in self.tables.items():
            if fnmatchcase(table, pattern):
                found = rules.over(found)
        return found

    def check_patterns(self, tables: Iterable[str]) -> None:
        """Refuse a pattern that matches none of ``tables``: it is a typing mistake.

        Raises:
            UserError: names the pattern and the nearest table.
        """
        names = list(tables)
        for pattern in self.tables:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f'planner config: [tables."{pattern}"] matches no table of the model'
                    f"{did_you_mean(pattern, names)}"
                )
