"""The smallest single change that makes an infeasible plan feasible: found by planning with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingType

from hisac_rec.planning.config import PlannerConfig, TableConstraints
from hisac_rec.planning.topology import usable_bytes

SECONDS = 10.0
"""Time for the whole search; what was found until then is told."""

MOST_RANKS = 512
"""Hosts are added up to so many ranks."""

LEAST_RESERVE = 5
"""Per cent: less is not proposed, something always needs it."""

MOST_MEMORY = 8
"""Memory is tried up to this many times what there is."""

CACHING = "fused_uvm_caching"


@dataclass(frozen=True)
class Attempt:
    """What is planned for.

    Args:
        config: the cluster and the rules.
        requests: of a rank's batch.
        history: share of the length of histories that is left.
    """

    config: PlannerConfig
    requests: int
    history: float = 1.0


Feasible = Callable[[Attempt], bool]
"""Whether a plan is found."""


class _OutOfTimeError(Exception):
    pass


def find_remedies(
    now: Attempt, options: Sequence[ShardingOption], feasible: Feasible, seconds: float = SECONDS
) -> list[str]:
    """Single changes that make a plan feasible, each as small as it can be.

    Args:
        now: for which there is no plan.
        options: every way to shard every table at present.
        feasible: plans.
        seconds: no attempt starts later than that.

    Returns:
        One line a change, ``key = value (now value)``; none where no single one is enough.
        Cost: at most about sixty plans.
    """
    deadline = time.monotonic() + seconds

    def tried(attempt: Attempt) -> bool:
        if time.monotonic() > deadline:
            raise _OutOfTimeError
        return feasible(attempt)

    found: list[str] = []
    for search in (_kernels, _sharding_types, _reserve, _requests, _histories, _hosts, _memory):
        try:
            found += search(now, options, tried)
        except _OutOfTimeError:
            break
    return found


def least(bad: int, good: int, ok: Callable[[int], bool]) -> int:
    """The least number above ``bad`` that is ok, where ``good`` is: by halves."""
    while good - bad > 1:
        middle = (bad + good) // 2
        if ok(middle):
            good = middle
        else:
            bad = middle
    return good


def grown(start: int, most: int, ok: Callable[[int], bool]) -> int | None:
    """The least number above ``start``, which is not ok, up to ``most`` that is: doubled first."""
    bad = start
    while bad < most:
        good = min(2 * bad, most)
        if ok(good):
            return least(bad, good, ok)
        bad = good
    return None


def _kernels(now: Attempt, options: Sequence[ShardingOption], feasible: Feasible) -> Iterator[str]:
    """The fewest tables, largest first, that may lie in main memory behind a cache."""
    if now.config.topology.device == "cpu":
        return
    without = _by_size([o for o in options if CACHING not in _kernels_of(now.config, o, options)])
    for count in range(1, len(without) + 1):
        names = without[:count]
        kernels = {name: sorted({*_kernels_named(options, name), CACHING}) for name in names}
        rules = {name: TableConstraints(compute_kernels=kernels[name]) for name in names}
        if feasible(replace(now, config=_with_rules(now.config, rules))):
            told = "; ".join(f"tables.{name}.compute_kernels = {kernels[name]}" for name in names)
            yield f"{told}: main memory behind a cache"
            return


def _sharding_types(
    now: Attempt, options: Sequence[ShardingOption], feasible: Feasible
) -> Iterator[str]:
    """The table that would have to be split by rows."""
    row_wise = ShardingType.ROW_WISE.value
    by_rows = {option.name for option in options if option.sharding_type == row_wise}
    for name in _by_size([option for option in options if option.name not in by_rows]):
        kinds = sorted({o.sharding_type for o in options if o.name == name} | {row_wise})
        rules = {name: TableConstraints(sharding_types=kinds)}
        if feasible(replace(now, config=_with_rules(now.config, rules))):
            yield f"tables.{name}.sharding_types = {kinds}"
            return


def _reserve(now: Attempt, _: Sequence[ShardingOption], feasible: Feasible) -> Iterator[str]:
    """The largest whole percentage that leaves enough."""
    percentage = int(now.config.reserve.percentage)
    most = percentage - LEAST_RESERVE

    def ok(less: int) -> bool:
        return feasible(replace(now, config=_changed(now.config, "reserve", percentage - less)))

    if most > 0 and ok(most):
        left = percentage - least(0, most, ok)
        yield f"reserve.percentage = {left} (now {now.config.reserve.percentage:g})"


def _requests(now: Attempt, _: Sequence[ShardingOption], feasible: Feasible) -> Iterator[str]:
    def ok(fewer: int) -> bool:
        return feasible(replace(now, requests=now.requests - fewer))

    if now.requests > 1 and ok(now.requests - 1):
        left = now.requests - least(0, now.requests - 1, ok)
        yield f"{left:,} requests per rank (now {now.requests:,}): loader.batch_tokens"


def _histories(now: Attempt, _: Sequence[ShardingOption], feasible: Feasible) -> Iterator[str]:
    """In per cent of the present length."""

    def ok(less: int) -> bool:
        return feasible(replace(now, history=1 - less / 100))

    if ok(99):
        yield f"histories of {100 - least(0, 99, ok)} % of their length: inputs.max_history"


def _hosts(now: Attempt, options: Sequence[ShardingOption], feasible: Feasible) -> Iterator[str]:
    cluster = now.config.topology
    if not all(_spreads(now.config, name, options) for name in _by_size(options)):
        return

    def ok(hosts: int) -> bool:
        return feasible(replace(now, config=_changed(now.config, "hosts", hosts)))

    found = grown(cluster.hosts, MOST_RANKS // cluster.devices_per_host, ok)
    if found is not None:
        yield f"topology.hosts = {found} (now {cluster.hosts})"


def _spreads(config: PlannerConfig, name: str, options: Sequence[ShardingOption]) -> bool:
    """Whether more ranks can help a table: it is cut into more shards, or one fits a rank."""
    room = usable_bytes(config, 0)
    own = [option for option in options if option.name == name]
    return any(option.sharding_type == ShardingType.ROW_WISE.value for option in own) or any(
        all(s.storage.hbm <= room["hbm"] and s.storage.ddr <= room["ddr"] for s in option.shards)
        for option in own
    )


def _memory(now: Attempt, _: Sequence[ShardingOption], feasible: Feasible) -> Iterator[str]:
    cluster = now.config.topology
    for key in ("hbm_gib", "ddr_gib"):
        if key == "hbm_gib" and cluster.device == "cpu":
            continue
        present = getattr(cluster, key)

        def ok(size: int, key: str = key) -> bool:
            return feasible(replace(now, config=_changed(now.config, key, size)))

        found = grown(int(present), MOST_MEMORY * max(1, int(present)), ok)
        if found is not None:
            yield f"topology.{key} = {found} (now {present:g})"


def _changed(config: PlannerConfig, key: str, value: float) -> PlannerConfig:
    """The config with one number of ``[topology]``, or the reserve, replaced."""
    if key == "reserve":
        reserve = config.reserve.model_copy(update={"percentage": float(value)})
        return config.model_copy(update={"reserve": reserve})
    topology = config.topology.model_copy(update={key: value})
    return config.model_copy(update={"topology": topology})


def _with_rules(config: PlannerConfig, rules: dict[str, TableConstraints]) -> PlannerConfig:
    """The config with these rules of tables after its own."""
    merged = {name: rule.over(config.constraints_of(name)) for name, rule in rules.items()}
    kept = {name: rule for name, rule in config.tables.items() if name not in merged}
    return config.model_copy(update={"tables": {**kept, **merged}})


def _kernels_named(options: Sequence[ShardingOption], name: str) -> set[str]:
    return {option.compute_kernel for option in options if option.name == name}


def _kernels_of(
    config: PlannerConfig, option: ShardingOption, options: Sequence[ShardingOption]
) -> set[str]:
    """Kernels that a table may have: what its rules name, or what was found."""
    named = config.constraints_of(option.name).compute_kernels
    return set(named) if named else _kernels_named(options, option.name)


def _by_size(options: Sequence[ShardingOption]) -> list[str]:
    """Names of their tables, the largest first."""
    sizes = {o.name: o.tensor.numel() * o.tensor.element_size() for o in options}
    return sorted(sizes, key=lambda name: -sizes[name])
