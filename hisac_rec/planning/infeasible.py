"""Say in plain words why a model does not fit a cluster, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.types import ShardingOption, Storage
from torchrec.distributed.types import ShardingType

from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.units import GIB, human_bytes

_SHOWN = 3


@dataclass(frozen=True)
class _Room:
    """The memory of one rank that the allowed kernels can use, the reserve taken off."""

    hbm: float
    ddr: float
    text: str

    @property
    def total(self) -> float:
        return self.hbm + self.ddr


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
    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        by_table.setdefault(option.name, []).append(option)
    room = _room(options, config)
    ranks = config.topology.world_size
    need = {name: min(map(_total, found)) for name, found in by_table.items()}
    required, capacity = sum(need.values()), ranks * room.total
    stuck = [name for name, found in by_table.items() if not any(_fits(o, room) for o in found)]
    row_wise = ShardingType.ROW_WISE.value
    unsplit = any(row_wise not in {o.sharding_type for o in by_table[name]} for name in stuck)
    reserve = f"less {config.reserve.percentage:g} % reserve"
    where = f"{ranks} rank{'s' * (ranks > 1)} x {room.text}, {reserve}"
    if required > capacity:
        reason = (
            f"the tables need at least {human_bytes(required)}, there are "
            f"{human_bytes(capacity)}: {where}"
        )
    elif stuck:
        name = max(stuck, key=need.__getitem__)
        least = min(_largest_shard(option) for option in by_table[name])
        kinds = sorted({option.sharding_type for option in by_table[name]})
        reason = (
            f"table '{name}' puts at least {human_bytes(least)} on one rank, a rank has "
            f"{room.text}, {reserve}; allowed for it: {', '.join(kinds)}"
        )
    else:
        reason = (
            f"the tables need at least {human_bytes(required)} and no way was found to place "
            f"them on {where}"
        )
    largest = sorted(need, key=lambda name: -need[name])[:_SHOWN]
    sizes = "; ".join(
        f"'{name}' {human_bytes(need[name])} ({_weights(by_table[name][0])} of weights)"
        for name in largest
    )
    return (
        f"no sharding plan: {reason}\n"
        f"largest tables: {sizes}\n"
        f"what helps: {_remedies(config, requests_per_rank, options, unsplit)}"
    )


def _room(options: Sequence[ShardingOption], config: PlannerConfig) -> _Room:
    cluster = config.topology
    left = (1 - config.reserve.percentage / 100) * GIB
    ddr = cluster.ddr_gib / cluster.devices_per_host * left
    if cluster.device == "cpu":
        return _Room(0, ddr, f"{human_bytes(ddr)} of main memory (ddr_gib)")
    hbm = cluster.hbm_gib * left
    text = f"{human_bytes(hbm)} of HBM (hbm_gib)"
    if not _offloads(options):
        return _Room(hbm, 0, text)
    return _Room(hbm, ddr, f"{text} and {human_bytes(ddr)} of main memory (ddr_gib)")


def _offloads(options: Sequence[ShardingOption]) -> bool:
    """True where some allowed kernel keeps rows in main memory."""
    return any(option.total_storage.ddr for option in options)


def _remedies(
    config: PlannerConfig,
    requests_per_rank: int,
    options: Sequence[ShardingOption],
    unsplit: bool,
) -> str:
    remedies = ["more hosts or devices_per_host", "fewer or narrower rows"]
    if unsplit:
        remedies.insert(0, "allow row_wise for the table")
    if config.topology.device == "cuda" and not _offloads(options):
        remedies.append("compute_kernels fused_uvm_caching (tables in main memory)")
    remedies.append(f"fewer requests per rank (now {requests_per_rank:,}) or shorter histories")
    remedies.append("a smaller [reserve] percentage")
    return "; ".join(remedies)


def _storages(option: ShardingOption) -> list[Storage]:
    storages = [shard.storage for shard in option.shards]
    if any(storage is None for storage in storages):
        raise RuntimeError("a sharding option without a storage estimate: a defect, report it")
    return [storage for storage in storages if storage is not None]


def _fits(option: ShardingOption, room: _Room) -> bool:
    return all(s.hbm <= room.hbm and s.ddr <= room.ddr for s in _storages(option))


def _total(option: ShardingOption) -> int:
    return sum(storage.hbm + storage.ddr for storage in _storages(option))


def _largest_shard(option: ShardingOption) -> int:
    return max(storage.hbm + storage.ddr for storage in _storages(option))


def _weights(option: ShardingOption) -> str:
    return human_bytes(option.tensor.numel() * option.tensor.element_size())
