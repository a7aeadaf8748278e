"""Non-events for logs that hold positives alone, as ``[requests.negatives]`` asks for them.

A pool lists all positives of the log, oldest first. Drawing one of those before a request and
taking its item *is* drawing items by their popularity so far; with each item's first positive
alone in the pool, it is drawing uniformly. Draws are hashes of the request and the number of
the draw, so they depend on neither blocks, threads nor the order of raw rows.

Legend: R requests, C candidates, P positives in a pool, S places to fill with a draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import SPLITS, Split
from hisac_rec.data.hashing import Words, mix
from hisac_rec.data.jagged import Ints, offsets_of, take_ranges
from hisac_rec.preparation.blocks import EventBlock, SplitRows
from hisac_rec.preparation.definition import DatasetDefinition, NegativesConfig
from hisac_rec.preparation.first_events import FirstEvents, open_moments, write_moments
from hisac_rec.preparation.sql import Engine

ATTEMPTS = 64
"""Draws for one place before it stays empty: all that could be drawn is in the request."""
BATCH_POSITIVES = 1_000_000
POSITIVES = "prepared.positives"
SCHEMA = pa.schema([("item", pa.int32()), ("moment", pa.int64()), ("split", pa.int8())])


@dataclass(frozen=True, slots=True)
class Pool:
    """What can be drawn, oldest first; on disk where it is large."""

    item: NDArray[np.int32]
    """[P]"""
    moment: Ints
    """[P] ascending: the positive's time, or its split where times are no clock."""

    def before(self, moment: Ints, window: int | None) -> tuple[Ints, Ints]:
        """First place and number of the positives strictly before each moment, [R] each."""
        end = np.searchsorted(self.moment, moment)
        start = np.zeros_like(end)
        if window is not None:
            start = np.searchsorted(self.moment, moment - window)
        return start, end - start


class NegativeSampler:
    """Adds drawn non-events to requests.

    Args:
        config: how many, and by which rule.
        pools: of each split: the positives of it and of the splits before it.
        items: rows of the item table.
        clock: moments of the pools are times; otherwise splits.
    """

    def __init__(
        self, config: NegativesConfig, pools: list[Pool], items: int, *, clock: bool
    ) -> None:
        self._config, self._pools, self._items, self._clock = config, pools, items, clock

    def add(self, rows: dict[Split, SplitRows]) -> dict[Split, SplitRows]:
        """The rows of all splits, each as :meth:`add_to_split` makes them."""
        return {name: self.add_to_split(rows[name], at) for at, name in enumerate(SPLITS)}

    def add_to_split(self, rows: SplitRows, split: int) -> SplitRows:
        """The same requests with ``per_positive`` draws, label 0, behind their candidates. Further
        tasks do not apply to them: nobody saw whether they would have.

        No item is drawn twice for a request, nor one that is its candidate. Where too few
        are left to draw from, as in the first moments of a log, a request gets fewer.

        Args:
            rows: of one block.
            split: 0, 1 or 2.

        Returns:
            Rows with more candidates. O((C + S) log (C + S)) for a bounded number of attempts.
        """
        requests = len(rows.request_time)
        owner = np.repeat(np.arange(requests), np.diff(rows.candidate_offsets))  # [C]
        positives = np.bincount(owner[_positive(rows.label)], minlength=requests)
        request, item = self._draw(rows, split, owner, positives * self._config.per_positive)
        order = np.argsort(np.concatenate([owner, request]), kind="stable")
        none = np.zeros((len(item), *rows.label.shape[1:]), np.float32)
        return replace(
            rows,
            candidate_offsets=rows.candidate_offsets
            + offsets_of(np.bincount(request, minlength=requests)),
            candidate_item=np.concatenate([rows.candidate_item, item])[order],
            label=np.concatenate([rows.label, none])[order],
            further={
                task: np.concatenate([labels, np.full(len(item), np.nan, np.float32)])[order]
                for task, labels in rows.further.items()
            },
        )

    def _draw(
        self, rows: SplitRows, split: int, owner: Ints, wanted: Ints
    ) -> tuple[Ints, NDArray[np.int32]]:
        """Request and item of every place that could be filled, request after request."""
        pool, requests = self._pools[split], len(wanted)
        moment = rows.request_time if self._clock else np.full(requests, split + 1)
        start, count = pool.before(moment, self._config.window)
        request = np.repeat(np.arange(requests), np.where(count > 0, wanted, 0))  # [S]
        place = np.arange(len(request)) - np.searchsorted(request, request)
        user = np.repeat(rows.user, np.diff(rows.request_offsets))
        first = rows.candidate_item[rows.candidate_offsets[:-1]]
        seed = np.full(requests, self._config.seed)
        base = hashed(seed, user, rows.request_time, first)  # [R]
        seen = None if self._config.consumed else _Seen(rows, self._items)

        item = np.zeros(len(request), np.int32)
        empty = np.arange(len(request))
        taken = np.sort(owner * self._items + rows.candidate_item)
        for attempt in range(ATTEMPTS):
            of = request[empty]
            number = below(hashed(base[of], place[empty], np.full(len(of), attempt)), count[of])
            found = pool.item[start[of] + number]
            key = of * self._items + found
            good = _first_of_its_kind(key) & ~_among(taken, key)
            if seen is not None:
                good &= ~seen.holds(of, found)
            item[empty[good]] = found[good]
            empty = empty[~good]
            if not len(empty):
                break
            waiting = np.zeros(requests, np.bool_)
            waiting[request[empty]] = True
            taken = np.concatenate([taken, key[good]])
            taken = np.sort(taken[waiting[taken // self._items]])
        filled = item > 0
        return request[filled], item[filled]


def write_pools(
    engine: Engine, blocks: Iterable[EventBlock], definition: DatasetDefinition, folder: Path
) -> None:
    """Write the pools of a log to files. O(positives) on disk; DuckDB sorts them.

    Args:
        engine: gains a table.
        blocks: the whole log.
        definition: with ``[requests.negatives]``.
        folder: for the files; what is in it is replaced.
    """
    config, clock = _config(definition), definition.clock
    engine.take_in(POSITIVES, SCHEMA.empty_table())
    for block in blocks:
        chosen = block.is_candidate & _positive(block.label)
        split = block.split[chosen]
        moment = block.time[chosen] if clock else split.astype(np.int64)
        columns = {"item": block.item[chosen], "moment": moment, "split": split}
        engine.append(POSITIVES, pa.table(columns, schema=SCHEMA))
    folder.mkdir(exist_ok=True)
    moment_of, group = "moment", ""
    if config.by == "uniform":
        moment_of, group = "min(moment)", "GROUP BY item"
    for last in set(_last_splits(definition)):
        query = f"""SELECT item, {moment_of} AS moment FROM {POSITIVES} WHERE split <= {last}
            {group} ORDER BY moment, item"""
        item_file, moment_file = _files(folder, last)
        with item_file.open("wb") as items, moment_file.open("wb") as moments:
            for batch in engine.arrow_batches(query, BATCH_POSITIVES):
                batch["item"].to_numpy().tofile(items)
                batch["moment"].to_numpy().tofile(moments)
        if clock:
            write_moments(engine, POSITIVES, last, folder, window=config.window)


@dataclass(frozen=True, slots=True)
class Negatives:
    """What ``[requests.negatives]`` does to requests."""

    first: FirstEvents
    """Asked before anything is drawn."""
    sampler: NegativeSampler


def open_negatives(definition: DatasetDefinition, folder: Path, items: int) -> Negatives:
    """What works on the files that :func:`write_pools` wrote; they stay on disk.

    Args:
        definition: with ``[requests.negatives]``.
        folder: of the files.
        items: rows of the item table.
    """
    config, clock, splits = _config(definition), definition.clock, _last_splits(definition)
    moments = {last: open_moments(folder, last, items) for last in set(splits) if clock}
    drop = config.first_events == "drop"
    of_splits = [moments[last] for last in splits if clock]
    pools = [_open(*_files(folder, last)) for last in splits]
    return Negatives(
        FirstEvents(of_splits, window=config.window, clock=clock, drop=drop),
        NegativeSampler(config, pools, items, clock=clock),
    )


def _config(definition: DatasetDefinition) -> NegativesConfig:
    assert definition.requests is not None
    assert definition.requests.negatives is not None
    return definition.requests.negatives


def _last_splits(definition: DatasetDefinition) -> list[int]:
    """The pool of each split by the last split in it.

    Where moments follow the splits, what is earlier is of no later split: one pool is enough.
    """
    return [2, 2, 2] if not definition.clock or definition.split.by == "time" else [0, 1, 2]


def _files(folder: Path, last: int) -> tuple[Path, Path]:
    return folder / f"item-{last}", folder / f"moment-{last}"


def _open(item: Path, moment: Path) -> Pool:
    if not item.stat().st_size:  # an empty file cannot be mapped
        return Pool(np.zeros(0, np.int32), np.zeros(0, np.int64))
    return Pool(np.memmap(item, np.int32, "r"), np.memmap(moment, np.int64, "r"))


class _Seen:
    """Which items each request sees in its history.

    Args:
        rows: of one block.
        items: rows of the item table.
    """

    def __init__(self, rows: SplitRows, items: int) -> None:
        users, lengths = len(rows.user), np.diff(rows.history_offsets)
        keys = np.repeat(np.arange(users), lengths) * items + rows.history_item
        position = take_ranges(np.zeros(users, np.int64), lengths)
        self._keys, first = np.unique(keys, return_index=True)
        self._first = position[first]  # an item is seen from its first event on
        self._user = np.repeat(np.arange(users), np.diff(rows.request_offsets))
        self._end, self._items = rows.history_end, items

    def holds(self, request: Ints, item: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each item is in the history of its request."""
        key = self._user[request] * self._items + item
        at = np.searchsorted(self._keys, key)
        known = _among(self._keys, key)
        result = np.zeros(len(key), np.bool_)
        result[known] = self._first[at[known]] < self._end[request[known]]
        return result


def hashed(*columns: NDArray[np.generic]) -> Words:
    """One well-mixed 64-bit value a row, from integer columns of equal length (SplitMix64)."""
    state = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        state = mix(state + column.astype(np.int64, copy=False).view(np.uint64))
    return state


def below(values: Words, bounds: Ints) -> Ints:
    """Map each hash evenly to 0 ... bound - 1; bounds are below 2^32."""
    high, bits = values >> np.uint64(32), np.uint64(32)
    return ((high * bounds.astype(np.uint64)) >> bits).astype(np.int64)


def _positive(label: NDArray[np.float32]) -> NDArray[np.bool_]:
    return label > 0


def _among(ordered: Ints, values: Ints) -> NDArray[np.bool_]:
    """Whether each value is in the ascending ``ordered``."""
    at = np.searchsorted(ordered, values)
    inside = at < len(ordered)
    result = np.zeros(len(values), np.bool_)
    result[inside] = ordered[at[inside]] == values[inside]
    return result


def _first_of_its_kind(values: Ints) -> NDArray[np.bool_]:
    """True at the first place of each distinct value."""
    result = np.zeros(len(values), np.bool_)
    result[np.unique(values, return_index=True)[1]] = True
    return result
