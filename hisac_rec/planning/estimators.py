"""TorchRec's estimators and enumerator, with what they leave out or to chance put right."""

from __future__ import annotations

import importlib
import math

from torch import nn
from torchrec.distributed.planner.constants import UVM_CACHING_RATIO
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.estimator.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.estimator.types import HardwarePerfConfig
from torchrec.distributed.planner.shard_estimators import (
    EmbeddingStorageEstimator,
    _get_optimizer_multipler,
)
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    SharderDataMap,
    ShardEstimator,
    ShardingOption,
    Topology,
)
from torchrec.distributed.types import PipelineType
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.managed.modules import mapping_bytes
from hisac_rec.planning.config import EstimatesConfig
from hisac_rec.planning.constraints import Sharders
from hisac_rec.planning.state import fused_optimizer, state_bytes

PIPELINES = {
    "none": PipelineType.NONE,
    "sparse_dist": PipelineType.TRAIN_SPARSE_DIST,
    "prefetch_sparse_dist": PipelineType.TRAIN_PREFETCH_SPARSE_DIST,
}


class OrderedEnumerator(EmbeddingEnumerator):
    """TorchRec's enumerator in a fixed order, with row-wise shards of equal size.

    The original lists options in the order of Python string sets, which differs between
    processes, and the order decides between options of equal cost: ranks would disagree.

    Where ranks differ in memory it cuts rows in proportion to it, but in training ids are sent to
    ranks as if all shards were equal (TorchRec 1.8, ``RwSparseFeaturesDist``; only inference knows
    better): rows of other ids would be looked up, without an error.
    """

    def __init__(
        self,
        topology: Topology,
        batch_size: int,
        constraints: dict[str, ParameterConstraints],
        estimator: list[ShardEstimator],
    ) -> None:
        super().__init__(topology, batch_size, constraints, estimator)
        self._device_memory_sizes = None

    def _get_num_buckets(self, parameter: str, module: nn.Module) -> int | None:
        """Blocks of equal size for managed tables as for any other, on any number of ranks."""
        if isinstance(module, ManagedCollisionEmbeddingCollection):
            return None
        found: int | None = super()._get_num_buckets(parameter, module)
        return found

    def enumerate(self, module: nn.Module, sharders: Sharders) -> list[ShardingOption]:
        """Every way to shard every table under the constraints."""
        options = super().enumerate(module, list(sharders))
        return sorted(options, key=lambda o: (o.fqn, o.sharding_type, o.compute_kernel))


class StorageEstimator(EmbeddingStorageEstimator):
    """TorchRec's estimate of memory, with the optimiser's state as it is.

    The original takes the state of a table in proportion to its bytes: half of it for fp16
    tables, whose state is fp32 all the same, and one number a row for row-wise optimisers however
    many column shards there are. It also takes no notice of ``enforce_hbm``, nor of the mapping of
    a managed table, which lies on the device.
    """

    def estimate(
        self, sharding_options: list[ShardingOption], sharder_data_map: SharderDataMap
    ) -> None:
        """Set ``storage`` of every shard."""
        super().estimate(sharding_options, sharder_data_map)
        on_host = self._topology.compute_device == "cpu"
        for option in sharding_options:
            optimizer = fused_optimizer(option.tensor)
            share = _get_optimizer_multipler(optimizer, option.tensor.shape)
            in_main_memory = "uvm" in option.compute_kernel
            cached = option.compute_kernel.endswith("uvm_caching")
            cache = (option.cache_load_factor or UVM_CACHING_RATIO) if cached else 0.0
            for shard in option.shards:
                rows, columns = shard.size
                counted = math.ceil(rows * columns * option.tensor.element_size() * share)
                missing = state_bytes(optimizer, rows, columns) - counted
                if on_host or in_main_memory:
                    shard.storage.ddr += missing
                    shard.storage.hbm += round(missing * cache)
                else:
                    shard.storage.hbm += missing
                if in_main_memory and option.enforce_hbm and not on_host:
                    shard.storage.hbm += shard.storage.ddr
                    shard.storage.ddr = 0
                collection = option.module[1]
                if isinstance(collection, ManagedCollisionEmbeddingCollection):
                    mapping = mapping_bytes(collection, option.name, rows)
                    if on_host:
                        shard.storage.ddr += mapping
                    else:
                        shard.storage.hbm += mapping


def make_enumerator(
    topology: Topology,
    requests_per_rank: int,
    constraints: dict[str, ParameterConstraints],
    config: EstimatesConfig,
) -> OrderedEnumerator:
    """The enumerator of a planner config, with its estimators.

    Raises:
        UserError: ``estimates.performance`` names nothing.
    """
    storage = StorageEstimator(
        topology,
        constraints,
        pipeline_type=PIPELINES[config.pipeline],
        run_embedding_at_peak_memory=config.at_peak,
    )
    performance = _performance(config.performance, topology, constraints)
    return OrderedEnumerator(topology, requests_per_rank, constraints, [performance, storage])


def _performance(
    name: str, topology: Topology, constraints: dict[str, ParameterConstraints]
) -> ShardEstimator:
    factory = EmbeddingPerfEstimatorFactory
    if ":" not in name:
        if name.lower() not in factory._registry:
            raise UserError(
                f"planner config: key 'estimates.performance' = '{name}': no estimator of that "
                f"name is registered{did_you_mean(name, factory._registry)}"
            )
        return factory.create(name, topology=topology, constraints=constraints)
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"planner config: key 'estimates.performance' = '{name}': {error}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, HardwarePerfConfig)):
        raise UserError(
            f"planner config: key 'estimates.performance' = '{name}' is no subclass of TorchRec's "
            "HardwarePerfConfig"
        )
    return factory.create_with_config(found(), topology=topology, constraints=constraints)
