"""Planner configuration: the cluster, the memory kept free, what each table may do.

One file under ``launch/planners/`` is one cluster. Units are those of data sheets: GiB of
memory, GB/s (10^9 bytes a second, one direction) of bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field, NonNegativeInt, model_validator

from hisac_rec.config import Strict
from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.planning.cluster import OtherHosts, TopologyConfig
from hisac_rec.planning.rules import TableConstraints
from hisac_rec.planning.search import EstimatesConfig, SearchConfig

__all__ = [
    "EstimatesConfig",
    "OtherHosts",
    "PlannerConfig",
    "ReserveConfig",
    "SearchConfig",
    "TableConstraints",
    "TopologyConfig",
]


class ReserveConfig(Strict):
    """``[reserve]``: memory that no table may take. What of it is left out is counted from the
    model and its first batch, see docs/planning.md.
    """

    percentage: Annotated[float, Field(ge=0, lt=100)] = 15.0
    """Per cent of each device's memory (of main memory too) kept free for what is not counted:
    the allocator, temporaries, other processes."""
    dense_gib: Annotated[float, Field(ge=0)] | None = None
    """Weights of the dense part, their gradients and optimiser state on each rank, GiB. Left
    out: counted, four times the weights with AdamW. 0: nothing is kept for them."""
    batches: NonNegativeInt = 3
    """Batches on the device at once: ``TrainPipelineSparseDist`` works on one while the next
    two are on their way."""
    activation_kib: Annotated[float, Field(ge=0)] | None = None
    """What the dense part keeps for its backward pass, KiB for each history event and each
    candidate. Left out: measured on the first batch."""


class PlannerConfig(Strict):
    """One file of ``launch/planners/``: a cluster and its rules."""

    topology: TopologyConfig
    """The machines."""
    reserve: ReserveConfig = ReserveConfig()
    """Memory kept free."""
    search: SearchConfig = SearchConfig()
    """How a plan is looked for."""
    estimates: EstimatesConfig = EstimatesConfig()
    """How memory and time are estimated."""
    defaults: TableConstraints = TableConstraints()
    """Rules for every table."""
    tables: dict[str, TableConstraints] = {}
    """Rules for tables whose name matches a shell-style pattern, such as ``"item*"``; in
    the order of the file, later ones winning key by key over earlier ones and over
    ``defaults``."""

    @model_validator(mode="after")
    def _searches_what_the_device_has(self) -> PlannerConfig:
        if self.topology.device == "cuda":
            return self
        if "dynamic_programming" in self.search.proposers:
            raise ValueError(
                "search.proposers: dynamic_programming divides up the memory of GPUs; "
                "on device = 'cpu' use greedy"
            )
        if self.search.best == "hbm" or self.search.partitioner == "memory_balanced":
            raise ValueError(
                "search: best = 'hbm' and partitioner = 'memory_balanced' look at the memory of "
                "GPUs alone; leave them out where device = 'cpu'"
            )
        return self

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
