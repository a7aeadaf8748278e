"""TorchRec's proposers, partitioner and rating of a planner config."""

from __future__ import annotations

from torchrec.distributed.planner.partitioners import (
    GreedyPerfPartitioner,
    MemoryBalancedPartitioner,
)
from torchrec.distributed.planner.perf_models import NoopPerfModel, NoopStorageModel
from torchrec.distributed.planner.proposers import (
    DynamicProgrammingProposer,
    EmbeddingOffloadScaleupProposer,
    GreedyProposer,
    GridSearchProposer,
    UniformProposer,
)
from torchrec.distributed.planner.types import Partitioner, PerfModel, Proposer, Topology

from hisac_rec.planning.search import SearchConfig


def make_proposers(config: SearchConfig) -> list[Proposer]:
    """In the order of the config."""
    made: dict[str, Proposer] = {
        "grid_search": GridSearchProposer(max_proposals=config.max_grid),
        "greedy": GreedyProposer(threshold=config.patience),
        "greedy_sum": GreedyProposer(use_depth=False, threshold=config.patience),
        "uniform": UniformProposer(),
        "dynamic_programming": DynamicProgrammingProposer(config.hbm_bins),
        "scale_up": EmbeddingOffloadScaleupProposer(),
    }
    return [made[name] for name in config.proposers]


def make_partitioner(config: SearchConfig) -> Partitioner:
    """Who places shards."""
    if config.partitioner == "memory_balanced":
        return MemoryBalancedPartitioner(tolerance=config.tolerance)
    return GreedyPerfPartitioner()


def make_rating(config: SearchConfig, topology: Topology) -> PerfModel:
    """What plans are compared by."""
    return NoopPerfModel(topology) if config.best == "time" else NoopStorageModel(topology)
