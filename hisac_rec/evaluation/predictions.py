"""Predictions on disk: one row per candidate, written by many ranks, read as one table.

Each rank writes one part under a temporary name and renames it when it is complete, so a
folder never holds half a part. Legend: n rows (candidates over all requests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.data.parquet import WRITING
from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.evaluation.parts import (
    FINGERPRINT_KEY,
    ORACLE_COLUMN,
    PART_NAME,
    PREDICTION_SCHEMA,
    RUN_KEY,
    TASKS_KEY,
    WHERE,
    PathsLike,
    check_one_run,
    find_parts,
    read_part,
    schema_with,
    shown,
    sigmoid,
    task_columns,
    tasks_of,
)

__all__ = [
    "ORACLE_COLUMN",
    "PREDICTION_SCHEMA",
    "PathsLike",
    "PredictionWriter",
    "Predictions",
    "check_same_rows",
    "predicted_tasks",
    "read_predictions",
    "sigmoid",
]

ROWS_PER_GROUP = 1 << 17
"""Rows buffered before a Parquet row group is written."""


@dataclass(frozen=True)
class Predictions:
    """Predictions in memory, ordered by user, time, item, label, request; arrays of n rows.

    That order depends on the data alone, not on which rank wrote a row: two models that
    predicted the same split have their rows in the same places.
    """

    user: npt.NDArray[np.int32]
    time: npt.NDArray[np.int64]
    item: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    logit: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    history_length: npt.NDArray[np.int32]
    request: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32] | None = None
    fingerprint: str = ""
    """Fingerprint of the prepared data that was predicted; empty: not recorded."""
    task: str = ""
    """Whose labels and logits they are; empty: the main one of the data set."""

    def __len__(self) -> int:
        return len(self.user)


class PredictionWriter:
    """Writes the part of one rank; use as a context manager.

    Nothing appears in ``folder`` unless the block ends without an exception. Rank 0 first
    removes the parts that an earlier run with another number of ranks left there.

    Args:
        folder: where the parts go; made if absent.
        rank: this process.
        world_size: how many processes write.
        oracle: whether rows carry the true probability.
        fingerprint: ``Manifest.fingerprint`` of the data, kept in the file.
        run: any text that differs between runs (checkpoint and step); parts of different
            runs are refused when read together.
        tasks: names of the model's tasks, that of ``label`` and ``logit`` first; none: it is
            the data set's main one, and the only one.

    Example::

        with PredictionWriter(out, rank=rank, world_size=world_size) as writer:
            for batch in batches:
                writer.write(user=..., time=..., item=..., label=..., logit=...,
                             history_length=..., request=...)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        rank: int = 0,
        world_size: int = 1,
        oracle: bool = False,
        fingerprint: str = "",
        run: str = "",
        tasks: Sequence[str] = (),
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        self.path = Path(folder) / f"part-{rank:05d}-of-{world_size:05d}.parquet"
        self.rows = 0
        self._temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._rank, self._world_size, self._oracle = rank, world_size, oracle
        metadata = {RUN_KEY: run.encode(), FINGERPRINT_KEY: fingerprint.encode()}
        if tasks:
            metadata[TASKS_KEY] = ",".join(tasks).encode()
        self._schema = schema_with(tasks, oracle=oracle).with_metadata(metadata)
        self._tasks = tuple(tasks)
        self._buffer: list[pa.Table] = []
        self._buffered = 0

    def __enter__(self) -> PredictionWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            for path in self.path.parent.glob("part-*-of-*.parquet"):
                match = PART_NAME.fullmatch(path.name)
                if match is not None and int(match[2]) != self._world_size:
                    path.unlink(missing_ok=True)
        self._file = pq.ParquetWriter(self._temporary, self._schema, **WRITING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._file.close()
            if kind is None:
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(
        self,
        *,
        user: npt.ArrayLike,
        time: npt.ArrayLike,
        item: npt.ArrayLike,
        label: npt.ArrayLike,
        logit: npt.ArrayLike,
        history_length: npt.ArrayLike,
        request: npt.ArrayLike,
        probability: npt.ArrayLike | None = None,
        further: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]] | None = None,
    ) -> None:
        """Add candidates, [n] each; arrays or CPU tensors. The score is computed here.

        Args:
            user: dense id.
            time: of the request.
            item: dense id.
            label: of the main task; nan where it does not apply.
            logit: of the main task.
            history_length: events that the request could see.
            request: its number.
            probability: the true one.
            further: task -> its labels and logits.

        Raises:
            UserError: a logit is not finite; names request, user and item.
            ValueError: lengths differ, or ``probability`` does not match ``oracle``.
        """
        if (probability is not None) != self._oracle:
            raise ValueError("give 'probability' exactly where the writer has oracle=True")
        columns: dict[str, Any] = {
            "user": user,
            "time": time,
            "item": item,
            "label": label,
            "logit": logit,
            "history_length": history_length,
            "request": request,
        }
        if probability is not None:
            columns["probability"] = probability
        logits, may_be_null = ["logit"], ["label"] if self._tasks else []
        for task in self._tasks[1:]:
            names = task_columns(task)
            columns |= dict(zip(names, (further or {})[task], strict=True))
            may_be_null.append(names[0])
            logits.append(names[1])
        arrays = {
            name: np.asarray(values).astype(self._schema.field(name).type.to_pandas_dtype())
            for name, values in columns.items()
        }
        if len({array.shape for array in arrays.values()}) != 1:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"columns of different shapes: {shapes}")
        for name in logits:
            bad = np.flatnonzero(~np.isfinite(arrays[name]))
            if bad.size:
                where = ", ".join(f"{key} {arrays[key][bad[0]]}" for key in WHERE)
                raise UserError(
                    f"{self.path}: the model predicted {arrays[name][bad[0]]} for {where} "
                    f"({bad.size} of {len(arrays[name])} rows of this batch); the training has "
                    "diverged: lower the learning rate or take an earlier checkpoint"
                )
        arrays["score"] = sigmoid(arrays["logit"]).astype(np.float32)
        filled = {
            name: pa.array(values, mask=np.isnan(values) if name in may_be_null else None)
            for name, values in arrays.items()
        }
        self._buffer.append(pa.table(filled, schema=self._schema))
        self._buffered += len(arrays["user"])
        self.rows += len(arrays["user"])
        if self._buffered >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._buffered:
            self._file.write_table(pa.concat_tables(self._buffer))
        self._buffer, self._buffered = [], 0


def predicted_tasks(paths: PathsLike) -> tuple[str, ...]:
    """Names of the tasks of which there are predictions, the model's main one first; none where
    they are of the data set's main task alone.
    """
    return tasks_of(pq.read_schema(find_parts(paths)[0]))


def read_predictions(paths: PathsLike, task: str | None = None) -> Predictions:
    """Read and check predictions. O(n log n) time, about 44 bytes of memory a row.

    Args:
        paths: a Parquet file, a folder of parts, or a list of either.
        task: whose labels and logits; None: those of the model's main task. Rows of candidates
            that the task does not apply to are left out.

    Raises:
        UserError: nothing there, a part missing or of another run, a damaged file, a
            column missing or of another type, no row at all, a request in two parts, or a
            value that no model should predict; names the file and the row.
    """
    files = find_parts(paths)
    tables = [read_part(path) for path in files]
    check_one_run(files, tables)
    schema = tables[0].schema
    own, further = _names_of(task, schema, shown(files))
    oracle = all(ORACLE_COLUMN.name in table.column_names for table in tables) and not further
    names = [*PREDICTION_SCHEMA.names, *([ORACLE_COLUMN.name] if oracle else [])]
    stored = dict(zip(("label", "logit"), task_columns(own), strict=True)) if further else {}
    columns = {
        name: np.concatenate([table[stored.get(name, name)].to_numpy() for table in tables])
        for name in names
    }
    if further:
        columns["score"] = sigmoid(columns["logit"]).astype(np.float32)
    known = ~np.isnan(columns["label"])
    if not known.all():
        columns = {name: column[known] for name, column in columns.items()}
        if not len(columns["user"]):
            raise UserError(f"{shown(files)}: task '{own}' applies to no candidate of the split")
    if len(columns["user"]) == 0:
        raise UserError(f"{shown(files)}: no prediction at all; is the split empty?")
    order = np.lexsort([columns[name] for name in ("request", "label", "item", "time", "user")])
    metadata = schema.metadata or {}
    return Predictions(
        **{name: column[order] for name, column in columns.items()},
        fingerprint=metadata.get(FINGERPRINT_KEY, b"").decode(),
        task=own,
    )


def _names_of(task: str | None, schema: pa.Schema, where: str) -> tuple[str, bool]:
    """(the task's name, empty for the data set's main one; whether it is not the main one of
    the file).
    """
    there = tasks_of(schema)
    if task is None or not there:
        # A file of one task does not always say its name: whoever asks for one has looked.
        return (there[0] if there else ""), False
    if task not in there:
        raise UserError(
            f"{where}: no predictions of task '{task}'{did_you_mean(task, there)}; the model has "
            f"learned: {', '.join(there)}"
        )
    return task, task != there[0]


def check_same_rows(first: Predictions, second: Predictions, names: tuple[str, str]) -> None:
    """Refuse two predictors that did not predict the same candidates.

    Raises:
        UserError: the number of rows, or a user, time, item or label differs; names the
            first such row.
    """
    if len(first) != len(second):
        raise UserError(
            f"'{names[0]}' has {len(first):,} predictions and '{names[1]}' {len(second):,}; "
            "predict the same split of the same prepared data with both"
        )
    for column in ("user", "time", "item", "label"):
        differs = np.flatnonzero(getattr(first, column) != getattr(second, column))
        if differs.size:
            row = differs[0]
            values = [f"{getattr(side, column)[row]}" for side in (first, second)]
            raise UserError(
                f"'{names[0]}' and '{names[1]}' predicted different rows: sorted by user and "
                f"time, row {row} has {column} {values[0]} in the one and {values[1]} in the "
                "other; predict the same split of the same prepared data with both"
            )
