"""``[search]`` and ``[estimates]`` of a planner config: how a plan is looked for and rated."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from hisac_rec.config import Strict
from hisac_rec.errors import did_you_mean

PROPOSERS = (
    "grid_search",
    "greedy",
    "greedy_sum",
    "uniform",
    "dynamic_programming",
    "scale_up",
)
"""What each is: :class:`SearchConfig`."""


class SearchConfig(Strict):
    """``[search]``: how a plan is looked for. The best of all that any proposer finds wins."""

    proposers: list[str] = ["grid_search", "greedy", "greedy_sum", "uniform"]
    """Who proposes. grid_search: every combination, where there are no more than ``max_grid``.
    greedy: each table's fastest option, then the next one of the table that needs most memory,
    and so on; options ranked by their slowest shard, in greedy_sum by the sum of their shards.
    uniform: the same sharding type for all tables. dynamic_programming: the fastest sum of
    options for every size of device memory. scale_up: the caches of fused_uvm_caching tables
    grow into the device memory that is left (EmbeddingOffloadScaleupProposer)."""
    max_grid: PositiveInt = 1000
    """Most combinations that grid_search tries; it proposes nothing where there are more."""
    patience: PositiveInt | None = None
    """The greedy proposers stop after this many proposals in a row without a faster one; left
    out: when no option is left."""
    hbm_bins: PositiveInt = 100
    """Sizes of a device's memory that dynamic_programming tells apart."""
    partitioner: Literal["greedy", "memory_balanced"] = "greedy"
    """Who places shards: greedy, the largest first, each on the rank that has least to do;
    memory_balanced then looks for a placement with less device memory on the fullest rank."""
    tolerance: NonNegativeFloat = 0.02
    """How much slower memory_balanced may make the slowest rank, as a share."""
    best: Literal["time", "hbm"] = "time"
    """What is kept low: the time of the slowest rank, or the device memory of the fullest."""

    @field_validator("proposers")
    @classmethod
    def _known_proposers(cls, given: list[str]) -> list[str]:
        if not given:
            raise ValueError("names no proposer; leave the key out for the usual ones")
        for name in given:
            if name not in PROPOSERS:
                raise ValueError(f"unknown proposer '{name}'{did_you_mean(name, PROPOSERS)}")
        return given


class EstimatesConfig(Strict):
    """``[estimates]``: TorchRec's estimators of memory and time."""

    pipeline: Literal["none", "sparse_dist", "prefetch_sparse_dist"] = "sparse_dist"
    """Whose copies of the ids are counted, on GPUs: sparse_dist is ``TrainPipelineSparseDist``,
    with which models are trained here (two copies); prefetch_sparse_dist also fetches the rows
    of fused_uvm_caching tables ahead (three, and room to fetch into); none: one."""
    at_peak: bool = True
    """Count looked-up rows before they are sent as well: with long histories they are a large
    part of the memory at its peak."""
    performance: str = "default_estimator"
    """Who estimates time: a name registered with TorchRec's ``EmbeddingPerfEstimatorFactory``,
    or ``package.module:Class`` of a ``HardwarePerfConfig`` with coefficients measured on your
    machines."""
    backward_multiplier: PositiveFloat = 2.0
    """Time of a backward lookup, over that of a forward one."""
    weighted_backward_multiplier: PositiveFloat = 1.0
    """The same for weighted sums, times the above."""
    uneven_multiplier: PositiveFloat = 1.0
    """Time of row-wise shards of unequal size, over that of equal ones."""
