"""Say in plain words why a model does not fit a cluster, and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec.distributed.planner.types import ShardingOption, Storage

from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.units import GIB, human_bytes

_SHOWN = 3


def explain_infeasible(
    options: Sequence[ShardingOption], config: PlannerConfig, requests_per_rank: int
) -> str:
    """Explain why no proposal could be placed.

    Args:
        options: every way to shard every table under the constraints, with estimates.
        config: the cluster and the rules.
        requests_per_rank: batch size of one rank, in requests.

    Returns:
        Required against available bytes, the largest tables, and what to change.
    """
    cluster = config.topology
    on_gpu = cluster.device == "cuda"
    memory, key = ("HBM", "hbm_gib") if on_gpu else ("DDR", "ddr_gib")
    per_rank = cluster.hbm_gib if on_gpu else cluster.ddr_gib / cluster.devices_per_host
    available = per_rank * GIB * (1 - config.reserve.percentage / 100)

    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        by_table.setdefault(option.name, []).append(option)
    total, shard = {}, {}  # table -> least bytes over all ways to shard it
    for name, found in by_table.items():
        total[name] = min(_bytes(option.total_storage, on_gpu) for option in found)
        shard[name] = min(_largest_shard(option, on_gpu) for option in found)
    where = (
        f"{cluster.world_size} ranks x {human_bytes(available)} of {memory} "
        f"({key} less {config.reserve.percentage:g} % reserve)"
    )
    required, capacity = sum(total.values()), cluster.world_size * available
    too_big = sorted((n for n in shard if shard[n] > available), key=lambda n: -shard[n])
    if required > capacity:
        reason = (
            f"the tables need at least {human_bytes(required)} of {memory}, there are "
            f"{human_bytes(capacity)}: {where}"
        )
    elif too_big:
        name = too_big[0]
        kinds = sorted({option.sharding_type for option in by_table[name]})
        reason = (
            f"table '{name}' puts at least {human_bytes(shard[name])} on one rank, a rank has "
            f"{human_bytes(available)} of {memory}; allowed for it: {', '.join(kinds)}"
        )
    else:
        reason = (
            f"the tables need at least {human_bytes(required)} of {memory} and no way was "
            f"found to place them on {where}"
        )
    largest = sorted(total, key=lambda name: -total[name])[:_SHOWN]
    sizes = "; ".join(
        f"'{name}' {human_bytes(total[name])} ({_weights(by_table[name][0])} of weights)"
        for name in largest
    )
    return (
        f"no sharding plan: {reason}\n"
        f"largest tables: {sizes}\n"
        f"what helps: {_remedies(config, requests_per_rank, bool(too_big))}"
    )


def _remedies(config: PlannerConfig, requests_per_rank: int, too_big: bool) -> str:
    remedies = ["more hosts or devices_per_host", "fewer or narrower rows"]
    if too_big:
        remedies.insert(0, "allow row_wise for the table")
    if config.topology.device == "cuda":
        remedies.append("compute_kernels fused_uvm_caching (tables in main memory)")
    remedies.append(f"fewer requests per rank (now {requests_per_rank:,}) or shorter histories")
    remedies.append("a smaller [reserve] percentage")
    return "; ".join(remedies)


def _bytes(storage: Storage | None, on_gpu: bool) -> int:
    if storage is None:
        raise RuntimeError("a sharding option without a storage estimate: a defect, report it")
    return storage.hbm if on_gpu else storage.ddr


def _largest_shard(option: ShardingOption, on_gpu: bool) -> int:
    return max(_bytes(shard.storage, on_gpu) for shard in option.shards)


def _weights(option: ShardingOption) -> str:
    return human_bytes(option.tensor.numel() * option.tensor.element_size())
