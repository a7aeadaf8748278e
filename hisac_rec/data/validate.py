"""Checks of a prepared data set, vectorised, with messages that say where and what.

Used by ``prepare`` on what it wrote, and by whoever reads Parquet that others may have
written. Every function raises :class:`UserError` and returns nothing of its own accord.

Legend: U rows (users), R requests, N values of a list column.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import (
    SPLITS,
    Manifest,
    PreparedData,
    items_schema,
    task_field,
)
from hisac_rec.data.parquet import DAMAGED, check_schema, damaged, open_parquet
from hisac_rec.errors import UserError
from hisac_rec.progress import progress

Ints = NDArray[Any]
"""Any integer width."""


def check_ids(path: Path, feature: str, ids: Ints, rows: int, row_of: Ints | None = None) -> None:
    """Check that ids lie in ``[0, rows)``. O(N).

    Args:
        path: the file, for the message.
        feature: whose ids they are.
        ids: [N].
        rows: size of the vocabulary or table.
        row_of: [N] row of the file that each id is in; None: the ids are one a row.

    Raises:
        UserError: an id is outside; names feature, id, file and row.
    """
    if len(ids) and (ids.min() < 0 or ids.max() >= rows):
        at = int(np.argmax((ids < 0) | (ids >= rows)))
        row = at if row_of is None else int(row_of[at])
        raise UserError(
            f"{path}, row {row}: id {int(ids[at])} of '{feature}' is outside its table of "
            f"{rows} rows (0 to {rows - 1})"
        )


def check_sorted_history(path: Path, offsets: Ints, times: Ints, first_row: int = 0) -> None:
    """Check that each user's history is oldest first. O(N).

    Args:
        path: the file, for the message.
        offsets: [U + 1] into ``times``.
        times: [N].
        first_row: row of the file that the first user is in.

    Raises:
        UserError: a history goes back in time; names file and row.
    """
    back = np.zeros(max(len(times) - 1, 0), np.bool_)
    np.less(times[1:], times[:-1], out=back)
    inner = offsets[1:-1]
    back[inner[(inner > 0) & (inner < len(times))] - 1] = False  # between users
    if back.any():
        at = int(np.argmax(back))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        event = at - int(offsets[row])
        raise UserError(
            f"{path}, row {first_row + row}: history is not sorted by time: event {event + 1} "
            f"(time {times[at + 1]}) lies before event {event} (time {times[at]})"
        )


def check_split_rows(path: Path, table: pa.Table, manifest: Manifest, first_row: int = 0) -> None:
    """Check the contents of rows of a split file against the contract. O(values).

    Args:
        path: the file, for messages.
        table: some rows of it, of ``contract.split_schema``.
        manifest: whose vocabularies the ids belong to.
        first_row: row of the file that the table starts with.

    Raises:
        UserError: ids outside their table, unsorted histories or requests, a
            ``history_end`` beyond the history, lists of unequal length, labels outside
            [0, 1], an event at or after the request that may see it; names file and row.
    """
    rows = first_row + np.arange(table.num_rows)
    _check_no_nulls(path, table, first_row)
    user = _flat(table["user"])
    check_ids(path, "user", user, manifest.users, rows)
    for feature in manifest.user_features:
        column = f"user_{feature.name}"
        check_ids(path, column, _flat(table[column]), feature.rows, rows)

    offsets, items = _list(table["history_item"])
    event_row = np.repeat(rows, np.diff(offsets))
    check_ids(path, "history_item", items, manifest.items, event_row)
    type_offsets, types = _list(table["history_type"])
    check_ids(path, "history_type", types, len(manifest.event_types), event_row)
    time_offsets, times = _list(table["history_time"])
    same = np.array_equal(offsets, type_offsets) and np.array_equal(offsets, time_offsets)
    if not same:
        raise UserError(f"{path}: history_item, history_type and history_time differ in length")
    check_sorted_history(path, offsets, times, first_row)
    _check_requests(path, table["requests"], rows, offsets, times, manifest)


def validate_prepared(root: Path) -> None:
    """Check a whole prepared folder, row group by row group. O(everything in it).

    Raises:
        UserError: the first thing that breaks the contract, by file and row.
    """
    data = PreparedData(root)
    manifest = data.manifest
    _check_items(root / "items.parquet", manifest)
    expected = manifest.split_schema
    # A validation split may be empty; see hisac_rec.preparation.users.
    there = [split for split in SPLITS if split != "valid" or data.manifest.splits[split].requests]
    files = [(split, path) for split in there for path in data.split_files(split)]
    with progress("check", total=len(files), unit="files") as advance:
        for _, path in files:
            _check_file(path, expected, manifest)
            advance()


def _check_items(path: Path, manifest: Manifest) -> None:
    """Check ids and number of items, a row group at a time: embeddings are not looked at."""
    expected = items_schema(manifest)
    columns = [feature.name for feature in manifest.item_features]
    first_row = 0
    with open_parquet(path) as file:
        check_schema(path, file.schema_arrow, expected)
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=[*columns, "item"])
            except DAMAGED as error:
                raise damaged(path, error) from None
            rows = first_row + np.arange(table.num_rows)
            for feature in manifest.item_features:
                row_of = rows
                if feature.multi:
                    offsets, values = _list(table[feature.name])
                    row_of = np.repeat(rows, np.diff(offsets))
                else:
                    values = _flat(table[feature.name])
                check_ids(path, feature.name, values, feature.rows, row_of)
            first_row += table.num_rows
    if first_row != manifest.items:
        raise UserError(
            f"{path}: {first_row} rows, the manifest says {manifest.items}; "
            "run 'hisac-rec prepare' again"
        )


def _check_file(path: Path, expected: pa.Schema, manifest: Manifest) -> None:
    with open_parquet(path) as file:
        check_schema(path, file.schema_arrow, expected)
        first_row = 0
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=expected.names)
            except DAMAGED as error:
                raise damaged(path, error) from None
            check_split_rows(path, table, manifest, first_row)
            first_row += table.num_rows


def _check_requests(
    path: Path,
    column: pa.ChunkedArray,
    rows: Ints,
    history_offsets: Ints,
    history_times: Ints,
    manifest: Manifest,
) -> None:
    requests = column.combine_chunks()
    offsets = _zero_based(requests.offsets)
    struct = requests.flatten()
    user = np.repeat(np.arange(len(rows)), np.diff(offsets))  # [R] position in rows
    times, ends = _flat(struct.field("time")), _flat(struct.field("history_end"))
    lengths = np.diff(history_offsets)[user]
    _complain(
        path,
        rows[user],
        (ends < 0) | (ends > lengths),
        lambda r: f"history_end {ends[r]} is outside the history of {lengths[r]} events",
    )
    seen = np.flatnonzero(ends > 0)
    newest = np.full(len(ends), np.iinfo(np.int64).min)
    newest[seen] = history_times[history_offsets[user[seen]] + ends[seen] - 1]
    _complain(
        path,
        rows[user],
        newest >= times,
        lambda r: (
            f"the request at time {times[r]} may see an event of time {newest[r]}; only "
            "strictly earlier events are allowed"
        ),
    )
    same_user = user[1:] == user[:-1]
    back = np.append(same_user & ((times[1:] < times[:-1]) | (ends[1:] < ends[:-1])), False)
    _complain(path, rows[user], back[: len(user)], lambda r: "requests are not sorted by time")

    item_offsets, items = _list(struct.field("items"))
    label_offsets, labels = _list(struct.field("labels"))
    if not np.array_equal(item_offsets, label_offsets):
        raise UserError(f"{path}: a request's items and labels differ in number")
    candidate_row = np.repeat(rows[user], np.diff(item_offsets))
    check_ids(path, "requests.items", items, manifest.items, candidate_row)
    _complain(
        path,
        candidate_row,
        ~((labels >= 0) & (labels <= 1)),
        lambda c: f"label {labels[c]} is outside [0, 1]",
    )
    for task in manifest.tasks:
        _check_task(path, struct.field(task_field(task.name)), task.name, candidate_row, items)


def _check_task(path: Path, column: pa.Array, task: str, rows: Ints, items: Ints) -> None:
    """Labels of a further task: one a candidate, in [0, 1] or null."""
    flat = column.flatten()
    if len(flat) != len(items):
        raise UserError(f"{path}: a request's items and {task_field(task)} differ in number")
    labels, known = _flat(flat), _flat(flat.is_valid())
    _complain(
        path,
        rows,
        known & ~((labels >= 0) & (labels <= 1)),
        lambda c: f"label {labels[c]} of task '{task}' is outside [0, 1]",
    )


def _complain(path: Path, rows: Ints, wrong: NDArray[np.bool_], say: Callable[[int], str]) -> None:
    """Raise for the first ``wrong`` place, with ``say(place)`` as the reason."""
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(f"{path}, row {int(rows[at])}: {say(at)}")


def _check_no_nulls(path: Path, table: pa.Table, first_row: int) -> None:
    for name in table.column_names:
        column = table[name].combine_chunks()
        layers = [column]
        if pa.types.is_list(column.type):
            layers.append(column.flatten())
        for layer in layers:
            if layer.null_count:
                raise UserError(
                    f"{path}, rows from {first_row}: column '{name}' holds a null; "
                    "prepare the data again"
                )


def _flat(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.to_numpy(zero_copy_only=False)


def _list(column: pa.ChunkedArray | pa.Array) -> tuple[Ints, NDArray[Any]]:
    """Offsets from 0 [rows + 1] and values of a list column without nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return _zero_based(column.offsets), _flat(column.flatten())


def _zero_based(offsets: pa.Array) -> Ints:
    values = offsets.to_numpy().astype(np.int64)
    return values - values[0]
