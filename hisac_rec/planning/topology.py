"""TorchRec's topology of a planner config, with what no table may take already taken off."""

from __future__ import annotations

from torchrec.distributed.planner.types import (
    CustomTopologyData,
    HardwareConfig,
    KernelConfig,
    Topology,
    TopologyFactory,
    TrainerConfig,
)

from hisac_rec.errors import UserError
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.footprint import NOTHING, Footprint
from hisac_rec.planning.units import GIB, human_bytes


def usable_bytes(
    config: PlannerConfig, rank: int, footprint: Footprint = NOTHING
) -> dict[str, int]:
    """Bytes of a rank that tables may take: {"hbm": ..., "ddr": ...}.

    Args:
        config: the cluster; its reserve is taken off both memories.
        rank: which.
        footprint: taken off the memory of the device.
    """
    usable = (1 - config.reserve.percentage / 100) * GIB
    hbm, ddr = (int(gib * usable) for gib in config.topology.memory_gib(rank))
    if config.topology.device == "cuda":
        return {"hbm": hbm - footprint.total, "ddr": ddr}
    return {"hbm": 0, "ddr": ddr - footprint.total}


def make_topology(config: PlannerConfig, footprint: Footprint = NOTHING) -> Topology:
    """TorchRec's topology of the cluster, the reserve taken off.

    Args:
        config: the cluster.
        footprint: what every rank holds besides tables.

    Raises:
        UserError: nothing is left for tables.
    """
    cluster = config.topology
    own = "hbm" if cluster.device == "cuda" else "ddr"
    memory = [usable_bytes(config, rank, footprint) for rank in range(cluster.group_size)]
    for rank, left in enumerate(memory):
        if left[own] <= 0:
            raise UserError(
                f"no sharding plan: the dense part, the batches and the activations of rank {rank} "
                f"take {human_bytes(footprint.total)} ({footprint.describe()}), and with "
                f"{config.reserve.percentage:g} % reserve nothing of {own}_gib is left for tables; "
                "take fewer requests per rank or shorter histories, or say in [reserve] what they "
                "take"
            )
    extra = {}
    if cluster.other_hosts:
        caps = {f"{name}_cap": [left[name] for left in memory] for name in ("hbm", "ddr")}
        extra = {"custom_topology_data": CustomTopologyData(caps, cluster.group_size)}
    return TopologyFactory.create_topology(
        TrainerConfig(
            world_size=cluster.group_size,
            local_world_size=cluster.group_devices_per_host,
            hbm_cap_bytes=memory[0]["hbm"],
            ddr_cap_bytes=memory[0]["ddr"],
            additional_params=extra,
        ),
        HardwareConfig(
            intra_host_bw=_bytes_per_ms(cluster.intra_host_bandwidth),
            inter_host_bw=_bytes_per_ms(cluster.inter_host_bandwidth),
            hbm_mem_bw=_bytes_per_ms(cluster.hbm_bandwidth),
            ddr_mem_bw=_bytes_per_ms(cluster.ddr_bandwidth),
            hbm_to_ddr_mem_bw=_bytes_per_ms(cluster.host_to_device_bandwidth),
        ),
        KernelConfig(
            compute_device=cluster.device,
            bwd_compute_multiplier=config.estimates.backward_multiplier,
            weighted_feature_bwd_compute_multiplier=config.estimates.weighted_backward_multiplier,
            uneven_sharding_perf_multiplier=config.estimates.uneven_multiplier,
            # Without the flag TorchRec ignores the bandwidths above.
            use_hardware_based_bandwidth=True,
        ),
    )


def _bytes_per_ms(gigabytes_per_second: float) -> float:
    return gigabytes_per_second * 1e6
