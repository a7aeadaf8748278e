"""TorchRec's sharder of managed tables, on CPUs too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.mc_embedding import (
    ManagedCollisionEmbeddingCollectionSharder,
    ShardedManagedCollisionEmbeddingCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection


class _ResetOnHost:
    """Resets the optimiser's state of rows whose id was evicted.

    FBGEMM's own operator for it (1.8) has no CPU form, and knows row-wise Adagrad alone.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def reset_embedding_weight_momentum(
        self,
        pruned_indices: Tensor,
        pruned_indices_offsets: Tensor,
        logical_table_ids: Tensor,
        buffer_ids: Tensor,
    ) -> None:
        """As FBGEMM's: the rows ``pruned_indices`` of one table. The caller fills the weights."""
        for state in self._kernel.split_optimizer_states()[int(logical_table_ids)]:
            state[pruned_indices] = 0


class ManagedSharder(ManagedCollisionEmbeddingCollectionSharder):
    """Shards managed tables row-wise; evicted rows start anew on every device."""

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Those of the rows that the device has; the original names those of a GPU for a CPU."""
        kernels = [EmbeddingComputeKernel.FUSED.value]
        if compute_device_type == "cuda":
            kernels += ["fused_uvm", "fused_uvm_caching"]
        return kernels

    def shard(
        self,
        module: ManagedCollisionEmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedCollisionEmbeddingCollection:
        """The sharded collection."""
        sharded = super().shard(module, params, env, device, module_fqn)
        if device is not None and device.type == "cpu":
            kernels = sharded._table_to_tbe_and_index
            for table, (kernel, index) in kernels.items():
                kernels[table] = (_ResetOnHost(kernel), index)
        return sharded
