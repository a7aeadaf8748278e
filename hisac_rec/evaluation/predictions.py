"""Predictions on disk: one row per candidate, written by many ranks, read as one table.

Each rank writes one part under a temporary name and renames it when it is complete, so a
folder never holds half a part. Legend: n rows (candidates over all requests).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.data.parquet import WRITING
from hisac_rec.errors import UserError
from hisac_rec.evaluation.parts import (
    FINGERPRINT_KEY,
    ORACLE_COLUMN,
    PART_NAME,
    PREDICTION_SCHEMA,
    RUN_KEY,
    WHERE,
    PathsLike,
    check_one_run,
    find_parts,
    read_part,
    shown,
    sigmoid,
)

__all__ = [
    "ORACLE_COLUMN",
    "PREDICTION_SCHEMA",
    "PathsLike",
    "PredictionWriter",
    "Predictions",
    "check_same_rows",
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
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in 0..{world_size - 1}")
        self.path = Path(folder) / f"part-{rank:05d}-of-{world_size:05d}.parquet"
        self.rows = 0
        self._temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._rank, self._world_size, self._oracle = rank, world_size, oracle
        schema = PREDICTION_SCHEMA.append(ORACLE_COLUMN) if oracle else PREDICTION_SCHEMA
        self._schema = schema.with_metadata(
            {RUN_KEY: run.encode(), FINGERPRINT_KEY: fingerprint.encode()}
        )
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
    ) -> None:
        """Add candidates, [n] each; arrays or CPU tensors. The score is computed here.

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
        arrays = {
            name: np.asarray(values).astype(self._schema.field(name).type.to_pandas_dtype())
            for name, values in columns.items()
        }
        if len({array.shape for array in arrays.values()}) != 1:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"columns of different shapes: {shapes}")
        bad = np.flatnonzero(~np.isfinite(arrays["logit"]))
        if bad.size:
            where = ", ".join(f"{name} {arrays[name][bad[0]]}" for name in WHERE)
            raise UserError(
                f"{self.path}: the model predicted {arrays['logit'][bad[0]]} for {where} "
                f"({bad.size} of {len(arrays['logit'])} rows of this batch); the training has "
                "diverged: lower the learning rate or take an earlier checkpoint"
            )
        arrays["score"] = sigmoid(arrays["logit"]).astype(np.float32)
        self._buffer.append(pa.table(arrays, schema=self._schema))
        self._buffered += len(arrays["user"])
        self.rows += len(arrays["user"])
        if self._buffered >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._buffered:
            self._file.write_table(pa.concat_tables(self._buffer))
        self._buffer, self._buffered = [], 0


def read_predictions(paths: PathsLike) -> Predictions:
    """Read and check predictions. O(n log n) time, about 44 bytes of memory a row.

    Args:
        paths: a Parquet file, a folder of parts, or a list of either.

    Raises:
        UserError: nothing there, a part missing or of another run, a damaged file, a
            column missing or of another type, no row at all, a request in two parts, or a
            value that no model should predict; names the file and the row.
    """
    files = find_parts(paths)
    tables = [read_part(path) for path in files]
    check_one_run(files, tables)
    oracle = all(ORACLE_COLUMN.name in table.column_names for table in tables)
    names = [*PREDICTION_SCHEMA.names, *([ORACLE_COLUMN.name] if oracle else [])]
    columns = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in names}
    if len(columns["user"]) == 0:
        raise UserError(f"{shown(files)}: no prediction at all; is the split empty?")
    order = np.lexsort([columns[name] for name in ("request", "label", "item", "time", "user")])
    metadata = tables[0].schema.metadata or {}
    return Predictions(
        **{name: column[order] for name, column in columns.items()},
        fingerprint=metadata.get(FINGERPRINT_KEY, b"").decode(),
    )


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
