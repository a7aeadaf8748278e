"""A file of requests: who is to be ranked what, when.

A Parquet file with the columns ``user``, ``time`` and ``items`` (a list), in the data set's raw
ids, which are text in its vocabularies: numbers are read as their digits. The histories are those
of a split of the prepared data.

Legend: n requests of the file, N candidates of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.jagged import Ints, offsets_of, take_ranges
from hisac_rec.data.units import RequestTable
from hisac_rec.errors import UserError
from hisac_rec.serving.moments import events_before

COLUMNS = ("user", "time", "items")


@dataclass(frozen=True)
class Asked:
    """Requests by user, each at its moment, in dense ids.

    Args:
        user: [n] ascending.
        time: [n].
        number: [n] the request's row in the file.
        offsets: [n+1] of the candidates.
        items: [N]; those that the data set does not know are 0, the unknown item.
        unknown_items: how many those are.
    """

    user: Ints
    time: Ints
    number: Ints
    offsets: Ints
    items: NDArray[np.int32]
    unknown_items: int

    def of_unit(self, table: RequestTable, max_history: int | None = None) -> RequestTable:
        """These requests in place of the ones that a unit holds of the same users."""
        users = table.users["user"].astype(np.int64)
        first = np.searchsorted(self.user, users, side="left")
        counts = np.searchsorted(self.user, users, side="right") - first
        # Users of the split without a request there have no place that is known here.
        begin = np.full(len(users), np.iinfo(np.int64).max)
        end = np.zeros(len(users), np.int64)
        np.minimum.at(begin, table.user_row, table.history_end - table.visible)
        np.maximum.at(end, table.user_row, table.history_end)
        counts = np.where(begin <= end, counts, 0)
        chosen = take_ranges(first, counts)
        user_row = np.repeat(np.arange(len(users)), counts)
        lengths = np.diff(self.offsets)[chosen]
        candidates = take_ranges(self.offsets[chosen], lengths)
        bounds = offsets_of(lengths)
        whole = replace(
            table,
            user_row=user_row,
            history_start=begin[user_row],
            history_end=end[user_row],
            visible=end[user_row] - begin[user_row],
            time=self.time[chosen],
            number=self.number[chosen],
            candidate_start=bounds[:-1],
            candidate_end=bounds[1:],
            candidate_item=self.items[candidates],
            candidate_label=np.zeros(len(candidates), np.float32),
            candidate_oracle=np.zeros(0, np.float32),
            candidate_tasks={
                name: np.zeros(len(candidates), np.float32) for name in table.candidate_tasks
            },
        )
        until = np.minimum(events_before(whole, whole.time), whole.history_end)
        start = whole.history_start
        if max_history is not None:
            start = np.maximum(start, until - max_history)
        seen = until - whole.history_start
        return replace(whole, history_start=start, history_end=until, visible=seen)


def read_requests(path: Path, data: PreparedData, split: Split) -> Asked:
    """Read a file of requests.

    Args:
        path: the Parquet file.
        data: whose ids.
        split: whose histories.

    Raises:
        UserError: the file is not readable, lacks a column, or names a user without a history in
            the split; says which row.
    """
    table = _read(path)
    names = data.read_parquet("vocab/user.parquet", ["id", "value"])
    user = _ids(table["user"], names)
    known = np.unique(
        np.concatenate(
            [pq.read_table(p, columns=["user"])["user"] for p in data.split_files(split)]
        )
    )
    absent = ~np.isin(user, known)
    if absent.any():
        row = int(np.argmax(absent))
        raise UserError(
            f"{path}: row {row}: user '{table['user'][row]}' has no history in the split '{split}' "
            f"of {data.root} ({int(absent.sum()):,} such requests); leave them out, or choose "
            "another --split"
        )
    lists = table["items"].combine_chunks()
    raw = data.items.select(["item", "raw_id"]).rename_columns(["id", "value"])
    items = _ids(pa.chunked_array([lists.flatten()]), raw)
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    order = np.argsort(user, kind="stable")
    starts = offsets_of(lengths)[:-1]
    return Asked(
        user=user[order],
        time=table["time"].to_numpy().astype(np.int64)[order],
        number=order,
        offsets=offsets_of(lengths[order]),
        items=items[take_ranges(starts[order], lengths[order])].astype(np.int32),
        unknown_items=int((items == 0).sum()),
    )


def _read(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of requests") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{path}: column '{missing[0]}' is missing; a file of requests has "
            f"{', '.join(COLUMNS)}, this one {', '.join(table.column_names)}"
        )
    kinds = {"time": pa.types.is_integer, "items": pa.types.is_list}
    for name, fits in kinds.items():
        kind = table.schema.field(name).type
        if not fits(kind):
            wanted = "whole numbers" if name == "time" else "lists"
            raise UserError(f"{path}: column '{name}' is of type {kind}; expected {wanted}")
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise UserError(f"{path}: row {row}: '{name}' is null")
    return table


def _ids(raw: pa.ChunkedArray, vocabulary: pa.Table) -> Ints:
    """[n] dense ids; 0 where a raw id is not in the vocabulary. O(n + vocabulary)."""
    names = vocabulary["value"].cast(pa.string())
    ids = vocabulary["id"].to_numpy()
    at = pc.index_in(raw.cast(pa.string()), value_set=names)
    found: Ints = np.where(at.is_null(), 0, ids[at.fill_null(0).to_numpy()]).astype(np.int64)
    return found
