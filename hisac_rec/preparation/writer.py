"""Write the rows of a split to part files of moderate size, and count what is written."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisac_rec.data.contract import SplitCounts, Stats
from hisac_rec.data.parquet import WRITING
from hisac_rec.preparation.blocks import EventBlock, SplitRows

FILE_USERS = 50_000
FILE_BYTES = 64 << 20
"""A part file is closed at either size, so that ranks and workers can share the files."""
GROUP_USERS = 1024
GROUP_VALUES = 131_072
"""A row group holds at most this many users, and about this many events and candidates:
it is what a reader decodes at once."""


class SplitWriter:
    """Writes one split as ``part-00000.parquet``, ``part-00001.parquet``, ...

    Args:
        folder: the split's folder; made here where it is not there.
        schema: of the rows; see ``contract.split_schema``.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._schema = folder, schema
        self._writer: pq.ParquetWriter | None = None
        self._sink: pa.NativeFile | None = None
        self._files = self._users = 0
        self.users = self.events = self.requests = self.candidates = 0
        self.positives = 0.0
        self.first_events = self.drawn_for = 0
        self.labelled: Counter[str] = Counter()
        self.task_positives: dict[str, float] = defaultdict(float)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._close()

    def write(self, rows: SplitRows, user_features: dict[str, NDArray[np.int32]]) -> None:
        """Append rows. O(rows) in memory.

        Args:
            rows: whole users.
            user_features: feature -> value id of every user id.
        """
        table = rows.table(user_features).cast(self._schema)
        values = rows.history_offsets + rows.candidate_offsets[rows.request_offsets]  # [U + 1]
        start = 0
        while start < len(rows.user):
            stop = int(np.searchsorted(values, values[start] + GROUP_VALUES, side="right")) - 1
            stop = min(max(stop, start + 1), start + GROUP_USERS)
            self._write_group(table.slice(start, stop - start))
            start = stop
        self.users += len(rows.user)
        self.events += len(rows.history_item)
        self.requests += len(rows.history_end)
        self.candidates += len(rows.label)
        self.positives += float(rows.label.sum(dtype=np.float64))
        for task, labels in rows.further.items():
            self.labelled[task] += int(np.count_nonzero(~np.isnan(labels)))
            self.task_positives[task] += float(np.nansum(labels, dtype=np.float64))

    def count_first(self, first: int, positives: int) -> None:
        """Count the positives that non-events are drawn for.

        Args:
            first: of them, those that are their item's first event.
            positives: all, those that are left out among them.
        """
        self.first_events += first
        self.drawn_for += positives

    @property
    def counts(self) -> SplitCounts:
        """What was written so far."""
        return SplitCounts(
            users=self.users,
            events=self.events,
            requests=self.requests,
            candidates=self.candidates,
            positives=self.positives,
            first_events=self.first_events / self.drawn_for if self.drawn_for else None,
        )

    def close_file(self) -> dict[str, Any]:
        """Close the part file, so that all rows so far are on disk.

        Returns:
            Counts of files and rows, for :meth:`go_on_from`.
        """
        self._close()
        tasks = {"labelled": dict(self.labelled), "task_positives": dict(self.task_positives)}
        first = {"first_events": self.first_events, "drawn_for": self.drawn_for}
        return {"files": self._files, **self.counts.model_dump(), **tasks, **first}

    def go_on_from(self, saved: dict[str, Any] | None) -> None:
        """Count on from what :meth:`close_file` gave; remove part files that were begun since.

        Args:
            saved: None: from nothing.
        """
        nothing = {**SplitCounts.nothing().model_dump(), "first_events": 0, "drawn_for": 0}
        saved = saved or {"files": 0, **nothing}
        self._files = saved["files"]
        self.users, self.events = saved["users"], saved["events"]
        self.requests, self.candidates = saved["requests"], saved["candidates"]
        self.positives = saved["positives"]
        self.first_events, self.drawn_for = saved["first_events"], saved["drawn_for"]
        self.labelled = Counter(saved.get("labelled", {}))
        self.task_positives = defaultdict(float, saved.get("task_positives", {}))
        for path in sorted(self._folder.glob("part-*.parquet"))[self._files :]:
            path.unlink()

    def _write_group(self, table: pa.Table) -> None:
        if self._writer is None:
            path = self._folder / f"part-{self._files:05d}.parquet"
            self._sink = pa.OSFile(str(path), "wb")
            self._writer = pq.ParquetWriter(self._sink, self._schema, **WRITING)
            self._files, self._users = self._files + 1, 0
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._users += table.num_rows
        assert self._sink is not None
        if self._users + GROUP_USERS > FILE_USERS or self._sink.tell() >= FILE_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None


@dataclass(slots=True)
class TrainTally:
    """What only the training period may tell: item counts, first times, lengths."""

    items: int
    """Rows of the item table, unknown included."""
    train_count: NDArray[np.int64] = field(init=False)
    """[items] training candidates of each item, drawn non-events left out."""
    first_time: NDArray[np.int64] = field(init=False)
    """[items] first time in the training period; the largest integer where never."""
    history_ends: NDArray[np.int64] = field(init=False)
    """Count of training requests by ``history_end``."""
    candidates_max: int = 0
    """Most candidates of a training request."""

    def __post_init__(self) -> None:
        self.train_count = np.zeros(self.items, np.int64)
        self.first_time = np.full(self.items, np.iinfo(np.int64).max)
        self.history_ends = np.zeros(1, np.int64)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """[items] True where the item occurs in the training period."""
        return self.first_time != np.iinfo(np.int64).max

    def add(self, block: EventBlock, logged: SplitRows, rows: SplitRows) -> None:
        """Count one block and its training rows. O(events).

        Args:
            block: whole users.
            logged: its training rows as the log has them.
            rows: the same with the non-events drawn for them, where there are any.
        """
        train = block.split == 0
        np.minimum.at(self.first_time, block.item[train], block.time[train])
        np.add.at(self.train_count, logged.candidate_item, 1)
        if len(rows.history_end):
            ends = np.bincount(rows.history_end, minlength=len(self.history_ends))
            ends[: len(self.history_ends)] += self.history_ends
            self.history_ends = ends
            self.candidates_max = max(
                self.candidates_max, int(np.diff(rows.candidate_offsets).max())
            )

    def stats(self, counts: SplitCounts, feature_values_mean: dict[str, float]) -> Stats:
        """The contents of ``stats.json``.

        Args:
            counts: of the training split, not empty.
            feature_values_mean: item feature -> mean number of values of an item.
        """
        below = np.cumsum(self.history_ends)
        lengths = np.arange(len(self.history_ends))
        quantiles = {
            name: int(np.searchsorted(below, max(1, np.ceil(float(name) * below[-1]))))
            for name in ("0.5", "0.9", "0.95", "0.99", "1.0")
        }
        return Stats(
            history_length_mean=float((lengths * self.history_ends).sum() / below[-1]),
            history_length_quantiles=quantiles,
            candidates_mean=counts.candidates / counts.requests,
            candidates_max=self.candidates_max,
            feature_values_mean=feature_values_mean,
        )
