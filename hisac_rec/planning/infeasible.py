"""Say in plain words why a model does not fit a cluster, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.types import ShardingOption, Storage

from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.footprint import Footprint
from hisac_rec.planning.topology import usable_bytes
from hisac_rec.planning.units import human_bytes

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
    options: Sequence[ShardingOption],
    config: PlannerConfig,
    footprint: Footprint,
    remedies: Sequence[str],
) -> str:
    """Explain why no proposal could be placed.

    Args:
        options: every way to shard every table under the constraints, with estimates.
        config: the cluster and the rules.
        footprint: what a rank holds besides tables.
        remedies: changes of which each is enough.

    Returns:
        Required against available bytes, the largest tables, and what to change.
    """
    by_table: dict[str, list[ShardingOption]] = {}
    for option in options:
        by_table.setdefault(option.name, []).append(option)
    room = _room(options, config, footprint)
    ranks = config.topology.group_size
    need = {name: min(map(_total, found)) for name, found in by_table.items()}
    required, capacity = sum(need.values()), ranks * room.total
    stuck = [name for name, found in by_table.items() if not any(_fits(o, room) for o in found)]
    reserve = f"less {config.reserve.percentage:g} % reserve"
    if footprint.total:
        reserve += f" and {human_bytes(footprint.total)} for what is no table"
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
    return f"no sharding plan: {reason}\nlargest tables: {sizes}\n" + _told(remedies)


def _told(remedies: Sequence[str]) -> str:
    if not remedies:
        return (
            "no single change was found that is enough; together: more hosts, fewer or narrower "
            "rows, fewer requests per rank or shorter histories"
        )
    return "any one of these makes it feasible (each was planned with):" + "".join(
        f"\n  {remedy}" for remedy in remedies
    )


def _room(options: Sequence[ShardingOption], config: PlannerConfig, footprint: Footprint) -> _Room:
    """Of the rank that has most."""
    cluster = config.topology
    ranks = [usable_bytes(config, rank, footprint) for rank in range(cluster.group_size)]
    ddr = max(one["ddr"] for one in ranks)
    if cluster.device == "cpu":
        return _Room(0, ddr, f"{human_bytes(ddr)} of main memory (ddr_gib)")
    hbm = max(one["hbm"] for one in ranks)
    text = f"{human_bytes(hbm)} of HBM (hbm_gib)"
    if not any(option.total_storage.ddr for option in options):
        return _Room(hbm, 0, text)
    return _Room(hbm, ddr, f"{text} and {human_bytes(ddr)} of main memory (ddr_gib)")


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
