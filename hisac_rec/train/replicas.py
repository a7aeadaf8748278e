"""Two-dimensional parallelism: tables sharded over a group of ranks, every group a replica.

Lookups stay within a group; every ``sync_every`` steps the groups' tables and their optimiser
state are averaged. Gradients of the dense part are averaged over all ranks in every step, as ever.
See docs/parallelism.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
from torchrec.distributed.types import ModuleSharder, ShardingEnv2D

from hisac_rec.planning.plan_io import Plan
from hisac_rec.train.kernels import kernel_buffers


class ReplicatedModelParallel(DMPCollection):
    """TorchRec's ``DMPCollection``, on CPUs too and with checkpoints like any other.

    Its constructor asserts a GPU; everything behind it works on gloo. So the process groups and
    the :class:`ShardingEnv2D` are made here, by TorchRec's own classes, and its training pipeline
    calls :meth:`sync` as it does for a ``DMPCollection``. Besides, frozen tables are left out of
    the averages (where three replicas would round them), and state comes as ``ShardedTensor``,
    so that a checkpoint is the same as that of any other plan.

    Args:
        module: the unsharded model; has ``trained_collections()``.
        device: of this rank.
        plan: with a ``topology.sharding_group``.
        sharders: of its collections.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        plan: Plan,
        sharders: Sequence[ModuleSharder[nn.Module]],
    ) -> None:
        cluster = plan.planner.topology
        world = dist.group.WORLD
        assert world is not None
        ranks = torch.arange(dist.get_world_size()).view(cluster.replicas, cluster.group_size)
        mesh = DeviceMesh(device.type, ranks, mesh_dim_names=("replicate", "shard"))
        env = ShardingEnv2D(
            sharding_pg=mesh.get_group("shard"),
            replica_pg=mesh.get_group("replicate"),
            global_pg=world,
            device_mesh=mesh,
            # Ranks of a host within the group: what table_row_wise and grid_shard split rows over.
            node_group_size=cluster.group_devices_per_host,
            # A group's ranks are consecutive: lookups stay on a host where the group does.
            use_inter_host_allreduce=True,
        )
        env.output_dtensor = False
        self._submodule_ctxs: list[Any] = []  # plans of single modules: there are none
        group = dist.get_rank() // cluster.group_size
        DistributedModelParallel.__init__(
            self, module, env, device, plan.to_torchrec(group), list(sharders)
        )
        self.sync_every = cluster.sync_every
        self._replicas = env.replica_pg

    @torch.no_grad()
    def sync(self, include_optimizer_state: bool = True) -> None:
        """Average trained tables, and their optimiser state, over the replicas.

        Called on every rank. Moves about twice a rank's tables over the network.
        """
        tensors = self._averaged(include_optimizer_state)
        works = [dist.all_reduce(one, group=self._replicas, async_op=True) for one in tensors]
        for work in works:
            work.wait()
        if tensors:  # gloo knows no mean
            torch._foreach_div_(tensors, float(dist.get_world_size(self._replicas)))

    def _averaged(self, state: bool) -> list[Tensor]:
        """Rows, and their state, of the trained tables on this rank."""
        found: list[Tensor] = []
        for collection in self.module.trained_collections():
            found += kernel_buffers(collection, ("weights",))
            found += kernel_buffers(collection, ("momentum1", "momentum2")) if state else []
        return found


def sync_replicas(model: nn.Module) -> None:
    """Make the replicas of a model's tables equal, where it has some. Called on every rank."""
    if isinstance(model, ReplicatedModelParallel):
        model.sync()


def sync_interval(model: nn.Module) -> int:
    """Steps between two averages; 1 where there are no replicas."""
    return model.sync_every if isinstance(model, ReplicatedModelParallel) else 1
