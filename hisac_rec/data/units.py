"""Units of reading: a slice of the users of one Parquet row group, as flat arrays.

Legend: U users, R requests, L stored history events, N candidates (all of the unit).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import ORACLE_FIELD, Manifest, PreparedData, Split
from hisac_rec.data.inputs import InputSpec
from hisac_rec.data.jagged import Ints, offsets_of, take_ranges
from hisac_rec.data.parquet import DAMAGED, check_schema, damaged, open_parquet
from hisac_rec.data.tasks import Task
from hisac_rec.errors import UserError

UNITS_PER_SHARD = 4
"""Row groups are sliced until each shard has about this many units, so that shards end
close together even where a split has few row groups."""


@dataclass(frozen=True)
class Unit:
    """Part ``part`` of ``parts`` of the users of one row group.

    ``first_row`` counts the rows of the file before the row group, ``earlier_rows`` those of
    the split's files before this one.
    """

    path: Path
    row_group: int
    first_row: int
    earlier_rows: int
    part: int
    parts: int


@dataclass(frozen=True)
class RequestTable:
    """Requests in memory. History is held once per user; requests point into it.

    ``history_*`` are [L]; ``history_start``, ``history_end``, ``candidate_start``,
    ``candidate_end``, ``visible``, ``time``, ``number`` and ``user_row`` are [R];
    ``candidate_*`` are [N]; ``visible`` counts the events that a request may see, also those
    that ``max_history`` leaves out; ``users`` maps each user-side column to [U].
    """

    users: dict[str, NDArray[np.int32]]
    history_item: NDArray[np.int32]
    history_type: NDArray[np.int8]
    history_time: Ints
    user_row: Ints
    history_start: Ints
    history_end: Ints
    candidate_start: Ints
    candidate_end: Ints
    visible: Ints
    time: Ints
    number: Ints
    candidate_item: NDArray[np.int32]
    candidate_label: NDArray[np.float32]
    candidate_oracle: NDArray[np.float32]
    candidate_tasks: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Further task of the model -> [N] labels; nan where it does not apply."""

    @property
    def num_requests(self) -> int:
        """R."""
        return len(self.time)

    def history_lengths(self) -> Ints:
        """[R] events each request sees."""
        return self.history_end - self.history_start

    def candidate_lengths(self) -> Ints:
        """[R] candidates of each request."""
        return self.candidate_end - self.candidate_start

    def take(self, requests: NDArray[np.int64]) -> RequestTable:
        """Only these requests, holding only the history and candidates they point to."""
        users, user_row = np.unique(self.user_row[requests], return_inverse=True)
        # Keep for each user the span from the first to the last event any request needs.
        first = np.full(len(users), np.iinfo(np.int64).max)
        last = np.zeros(len(users), dtype=np.int64)
        np.minimum.at(first, user_row, self.history_start[requests])
        np.maximum.at(last, user_row, self.history_end[requests])
        lengths = np.maximum(last - first, 0)
        events = take_ranges(first, lengths)
        shift = (offsets_of(lengths)[:-1] - first)[user_row]
        counts = self.candidate_lengths()[requests]
        candidates = take_ranges(self.candidate_start[requests], counts)
        bounds = offsets_of(counts)
        oracle = self.candidate_oracle
        return RequestTable(
            users={name: values[users] for name, values in self.users.items()},
            history_item=self.history_item[events],
            history_type=self.history_type[events],
            history_time=self.history_time[events],
            user_row=user_row.astype(np.int64),
            history_start=self.history_start[requests] + shift,
            history_end=self.history_end[requests] + shift,
            candidate_start=bounds[:-1],
            candidate_end=bounds[1:],
            visible=self.visible[requests],
            time=self.time[requests],
            number=self.number[requests],
            candidate_item=self.candidate_item[candidates],
            candidate_label=self.candidate_label[candidates],
            candidate_oracle=oracle[candidates] if len(oracle) else oracle,
            candidate_tasks={k: v[candidates] for k, v in self.candidate_tasks.items()},
        )


def list_units(data: PreparedData, split: Split, *, shards: int) -> list[Unit]:
    """The units of a split, in file order; the same on every rank. Reads footers alone.

    Raises:
        UserError: a file is damaged or the split is empty.
    """
    groups: list[tuple[Path, int, int, int]] = []
    earlier = 0
    for path in data.split_files(split):
        metadata = open_parquet(path).metadata
        row = 0
        for group in range(metadata.num_row_groups):
            groups.append((path, group, row, earlier))
            row += metadata.row_group(group).num_rows
        earlier += row
    parts = max(1, -(-UNITS_PER_SHARD * shards // max(1, len(groups))))
    return [Unit(*group, part, parts) for group in groups for part in range(parts)]


def read_unit(unit: Unit, manifest: Manifest, spec: InputSpec) -> RequestTable:
    """Read one unit. O(bytes of the unit); arrays are views of Arrow memory where possible.

    Raises:
        UserError: damaged file, wrong columns, or an id beyond its table.
    """
    schema = manifest.split_schema
    file = open_parquet(unit.path)
    check_schema(unit.path, file.schema_arrow, schema)
    try:
        table = file.read_row_group(unit.row_group, columns=schema.names)
    except DAMAGED as error:
        raise damaged(unit.path, error) from None
    begin = table.num_rows * unit.part // unit.parts
    end = table.num_rows * (unit.part + 1) // unit.parts
    # Numbers that are the same however files are sliced, and that run on within a row group:
    # the group's first row in the split leaves room for 2^24 requests a user.
    before = int(_offsets(_column(table.slice(0, begin).combine_chunks(), "requests"))[-1])
    first_number = ((unit.earlier_rows + unit.first_row) << 24) + before
    table = table.slice(begin, end - begin).combine_chunks()
    first_row = unit.first_row + begin
    arrays = _to_arrays(table, spec, first_number)
    history_offsets = _offsets(_column(table, "history_item"))
    return _check_ids(arrays, history_offsets, spec, unit.path, first_row)


def concat_tables(tables: list[RequestTable]) -> RequestTable:
    """Join tables; positions are shifted. O(bytes)."""
    if len(tables) == 1:
        return tables[0]
    history = offsets_of(np.array([len(t.history_item) for t in tables]))
    users = offsets_of(np.array([len(t.users["user"]) for t in tables]))
    candidates = offsets_of(np.array([len(t.candidate_item) for t in tables]))

    def join(name: str, shifts: Ints | None = None) -> NDArray[Any]:
        parts = [getattr(t, name) for t in tables]
        if shifts is not None:
            parts = [part + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
        return np.concatenate(parts)

    return RequestTable(
        users={name: np.concatenate([t.users[name] for t in tables]) for name in tables[0].users},
        history_item=join("history_item"),
        history_type=join("history_type"),
        history_time=join("history_time"),
        user_row=join("user_row", users),
        history_start=join("history_start", history),
        history_end=join("history_end", history),
        candidate_start=join("candidate_start", candidates),
        candidate_end=join("candidate_end", candidates),
        visible=join("visible"),
        time=join("time"),
        number=join("number"),
        candidate_item=join("candidate_item"),
        candidate_label=join("candidate_label"),
        candidate_oracle=join("candidate_oracle"),
        candidate_tasks={
            name: np.concatenate([t.candidate_tasks[name] for t in tables])
            for name in tables[0].candidate_tasks
        },
    )


def _to_arrays(table: pa.Table, spec: InputSpec, first_number: int) -> RequestTable:
    history = _column(table, "history_item")
    requests = _column(table, "requests")
    offsets = _offsets(history)
    request_offsets = _offsets(requests)
    struct = requests.values.slice(requests.offsets[0].as_py(), int(request_offsets[-1]))
    items = struct.field("items")
    candidate_offsets = _offsets(items)
    user_row = np.repeat(np.arange(table.num_rows), np.diff(request_offsets))
    visible = struct.field("history_end").to_numpy().astype(np.int64)
    end = offsets[user_row] + visible
    start = offsets[user_row]
    if spec.max_history is not None:
        start = np.maximum(start, end - spec.max_history)
    names = [lookup.column for lookup in spec.of_side("user") if lookup.key != "user"]
    users = {"user": _column(table, "user").to_numpy()}
    users |= {name: _column(table, f"user_{name}").to_numpy() for name in names}
    oracle = np.zeros(0, dtype=np.float32)
    if struct.type.get_field_index(ORACLE_FIELD) >= 0:
        oracle = _flat(struct.field(ORACLE_FIELD)).to_numpy()
    return RequestTable(
        users=users,
        history_item=_flat(history).to_numpy(),
        history_type=_flat(_column(table, "history_type")).to_numpy(),
        history_time=_flat(_column(table, "history_time")).to_numpy(),
        user_row=user_row,
        history_start=start,
        history_end=end,
        candidate_start=candidate_offsets[:-1],
        candidate_end=candidate_offsets[1:],
        visible=visible,
        time=struct.field("time").to_numpy(),
        number=first_number + np.arange(len(user_row)),
        candidate_item=_flat(items).to_numpy(),
        candidate_label=_labels(struct, spec.tasks[0]),
        candidate_oracle=oracle,
        candidate_tasks={task.name: _labels(struct, task) for task in spec.tasks[1:]},
    )


def _labels(requests: pa.StructArray, task: Task) -> NDArray[np.float32]:
    """[N] labels; nan where the task does not apply."""
    labels: NDArray[np.float32] = _flat(requests.field(task.field)).to_numpy(zero_copy_only=False)
    return labels


def _check_ids(
    table: RequestTable, history_offsets: Ints, spec: InputSpec, path: Path, first_row: int
) -> RequestTable:
    """Ids beyond their table: an error naming feature, id, file and row, or the unknown id."""
    fixed: dict[str, Any] = {}
    columns: dict[str, tuple[NDArray[np.integer], int]] = {
        "history_item": (table.history_item, spec.items),
        "history_type": (table.history_type, spec.event_types),
        "candidate_item": (table.candidate_item, spec.items),
    }
    users = dict(table.users)
    rows = {lookup.column: lookup.ids for lookup in spec.of_side("user")}
    columns |= {f"users.{n}": (v, rows[n]) for n, v in users.items() if n in rows}
    for name, (ids, limit) in columns.items():
        bad = (ids < 0) | (ids >= limit)
        if not bad.any():
            continue
        if spec.out_of_range == "error":
            at = int(np.argmax(bad))
            row = first_row + _row_of(table, history_offsets, name, at)
            raise UserError(
                f"{path}: row {row}: {name.removeprefix('users.')} = {int(ids[at])} is outside "
                f"its table of {limit:,} rows; prepare the data again, or set "
                "inputs.out_of_range=unknown to send such ids to the unknown row"
            )
        mended = np.where(bad, 0, ids).astype(ids.dtype)
        if name.startswith("users."):
            users[name.removeprefix("users.")] = mended
        else:
            fixed[name] = mended
    return replace(table, users=users, **fixed)


def _row_of(table: RequestTable, history_offsets: Ints, name: str, at: int) -> int:
    """The user row (within the unit) that element ``at`` of a column belongs to."""
    if name.startswith("users."):
        return at
    if name == "candidate_item":
        return int(table.user_row[np.searchsorted(table.candidate_end, at, side="right")])
    return int(np.searchsorted(history_offsets, at, side="right")) - 1


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)


def _offsets(array: pa.ListArray) -> Ints:
    """[n+1] offsets from 0, whatever slice the array is of."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def _flat(array: pa.ListArray) -> pa.Array:
    """The values of exactly these lists (``.values`` alone ignores slicing)."""
    first, last = array.offsets[0].as_py(), array.offsets[len(array)].as_py()
    return array.values.slice(first, last - first)
