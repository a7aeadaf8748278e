"""Predictions on disk: one row per candidate, written by many ranks, read as one table.

Each rank writes one part under a temporary name and renames it when it is complete, so a
folder never holds half a part. Legend: n rows (candidates over all requests).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.errors import UserError, did_you_mean

PREDICTION_SCHEMA = pa.schema(
    [
        ("user", pa.int32()),
        ("time", pa.int64()),
        ("item", pa.int32()),
        ("label", pa.float32()),
        ("logit", pa.float32()),
        ("score", pa.float32()),  # sigmoid(logit)
        ("history_length", pa.int32()),  # events that the request could see
        ("request", pa.int64()),  # number of the request, unique over all ranks
    ]
)
ORACLE_COLUMN = pa.field("probability", pa.float32())
"""Optional ninth column: the true click probability, for synthetic data alone."""

PathsLike = str | Path | Sequence[str | Path]
"""A Parquet file, a folder of parts, or a list of either."""

ROWS_PER_GROUP = 1 << 17
"""Rows buffered before a Parquet row group is written."""

_PART = re.compile(r"part-(\d{5})-of-(\d{5})\.parquet")
_RUN, _FINGERPRINT = b"hisac_rec.run", b"hisac_rec.fingerprint"
_SCORE_TOLERANCE = 1e-3


def sigmoid(logit: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sigmoid in float64 that keeps its relative precision at both ends. O(n)."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logit, dtype=np.float64)))


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
            {_RUN: run.encode(), _FINGERPRINT: fingerprint.encode()}
        )
        self._buffer: list[pa.Table] = []
        self._buffered = 0

    def __enter__(self) -> PredictionWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            for path in self.path.parent.glob("part-*-of-*.parquet"):
                match = _PART.fullmatch(path.name)
                if match is not None and int(match[2]) != self._world_size:
                    path.unlink(missing_ok=True)
        self._file = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")
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
            "score": sigmoid(logit),
            "history_length": history_length,
            "request": request,
        }
        if probability is not None:
            columns["probability"] = probability
        arrays = {
            field.name: np.asarray(columns[field.name]).astype(field.type.to_pandas_dtype())
            for field in self._schema
        }
        if len({array.shape for array in arrays.values()}) != 1:
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(f"columns of different shapes: {shapes}")
        bad = np.flatnonzero(~np.isfinite(arrays["logit"]))
        if bad.size:
            where = ", ".join(f"{name} {arrays[name][bad[0]]}" for name in _WHERE)
            raise UserError(
                f"{self.path}: the model predicted {arrays['logit'][bad[0]]} for {where} "
                f"({bad.size} of {len(arrays['logit'])} rows of this batch); the training has "
                "diverged: lower the learning rate or take an earlier checkpoint"
            )
        self._buffer.append(pa.table(arrays, schema=self._schema))
        self._buffered += len(arrays["user"])
        self.rows += len(arrays["user"])
        if self._buffered >= ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._buffered:
            self._file.write_table(pa.concat_tables(self._buffer))
        self._buffer, self._buffered = [], 0


_WHERE = ("request", "user", "item")


def read_predictions(paths: PathsLike) -> Predictions:
    """Read and check predictions. O(n log n) time, about 44 bytes of memory a row.

    Args:
        paths: a Parquet file, a folder of parts, or a list of either.

    Raises:
        UserError: nothing there, a part missing or of another run, a damaged file, a
            column missing or of another type, no row at all, a request in two parts, or a
            value that no model should predict; names the file and the row.
    """
    files = _find_files(paths)
    tables = [_read_part(path) for path in files]
    _check_one_run(files, tables)
    oracle = all(ORACLE_COLUMN.name in table.column_names for table in tables)
    names = [*PREDICTION_SCHEMA.names, *([ORACLE_COLUMN.name] if oracle else [])]
    columns = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in names}
    if len(columns["user"]) == 0:
        raise UserError(f"{_shown(files)}: no prediction at all; is the split empty?")
    order = np.lexsort([columns[name] for name in ("request", "label", "item", "time", "user")])
    metadata = tables[0].schema.metadata or {}
    return Predictions(
        **{name: column[order] for name, column in columns.items()},
        fingerprint=metadata.get(_FINGERPRINT, b"").decode(),
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


def _find_files(paths: PathsLike) -> list[Path]:
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            parts = sorted(path.glob("*.parquet"))
            if not parts:
                raise UserError(f"{path}: holds no Parquet file; write predictions there first")
            files += parts
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder of predictions")
    if not files:
        raise UserError("no file of predictions was named")
    _check_parts(files)
    return files


def _check_parts(files: list[Path]) -> None:
    """Refuse a folder from which a rank's part is missing."""
    found: dict[Path, dict[int, set[int]]] = {}
    for path in files:
        match = _PART.fullmatch(path.name)
        if match is not None:
            worlds = found.setdefault(path.parent, {})
            worlds.setdefault(int(match[2]), set()).add(int(match[1]))
    for folder, worlds in found.items():
        if len(worlds) > 1:
            counts = " and ".join(str(world) for world in sorted(worlds))
            raise UserError(
                f"{folder}: parts of runs with {counts} ranks; empty the folder, predict again"
            )
        for world, ranks in worlds.items():
            missing = sorted(set(range(world)) - ranks)
            if missing:
                raise UserError(
                    f"{folder}: the part of rank {missing[0]} of {world} is missing "
                    f"({len(missing)} in all); did that rank stop early? Predict again"
                )


def _read_part(path: Path) -> pa.Table:
    try:
        schema = pq.read_schema(path)
        _check_schema(path, schema)
        names = [field.name for field in _expected(schema)]
        table = pq.read_table(path, columns=names, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged Parquet file ({error}); predict again") from None
    _check_values(path, table)
    return table


def _expected(schema: pa.Schema) -> pa.Schema:
    oracle = ORACLE_COLUMN.name in schema.names
    return PREDICTION_SCHEMA.append(ORACLE_COLUMN) if oracle else PREDICTION_SCHEMA


def _check_schema(path: Path, schema: pa.Schema) -> None:
    for field in _expected(schema):
        if field.name not in schema.names:
            hint = did_you_mean(field.name, set(schema.names) - set(PREDICTION_SCHEMA.names))
            raise UserError(
                f"{path}: column '{field.name}' is missing{hint if schema.names else ''}"
            )
        actual = schema.field(field.name).type
        if actual != field.type:
            raise UserError(
                f"{path}: column '{field.name}' is {actual}, expected {field.type}; "
                f"cast it before writing"
            )


def _check_values(path: Path, table: pa.Table) -> None:
    """Refuse the first row whose values cannot be right. O(n)."""
    for name in table.column_names:
        if table[name].null_count:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise UserError(f"{path}: row {row}: {name} is null; every candidate needs one")
    column = {name: table[name].to_numpy() for name in table.column_names}
    label, logit, score = column["label"], column["logit"], column["score"]
    rules = [
        ("logit", ~np.isfinite(logit), "a finite number"),
        ("score", ~((score >= 0) & (score <= 1)), "a number from 0 to 1"),
        ("label", (label != 0) & (label != 1), "0 or 1"),
        ("history_length", column["history_length"] < 0, "0 or more"),
    ]
    if ORACLE_COLUMN.name in column:
        true = column[ORACLE_COLUMN.name]
        rules.append((ORACLE_COLUMN.name, ~((true >= 0) & (true <= 1)), "a number from 0 to 1"))
    for name, bad, allowed in rules:
        _refuse(path, column, name, bad, allowed)
    apart = np.abs(score - sigmoid(logit)) > _SCORE_TOLERANCE
    _refuse(path, column, "score", apart, "the sigmoid of the row's logit")


def _refuse(
    path: Path,
    column: dict[str, npt.NDArray[Any]],
    name: str,
    bad: npt.NDArray[np.bool_],
    allowed: str,
) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        row = rows[0]
        where = ", ".join(f"{key} {column[key][row]}" for key in _WHERE)
        raise UserError(
            f"{path}: row {row} ({where}): {name} is {column[name][row]}, expected {allowed} "
            f"({rows.size:,} such rows in this file)"
        )


def _check_one_run(files: list[Path], tables: list[pa.Table]) -> None:
    """Refuse parts of different runs, and a request that two parts hold."""
    for key, what in ((_RUN, "runs"), (_FINGERPRINT, "prepared data sets")):
        values = [(table.schema.metadata or {}).get(key, b"") for table in tables]
        for path, value in zip(files, values, strict=True):
            if value != values[0]:
                raise UserError(f"{files[0]} and {path} are of different {what}; predict again")
    requests = [np.unique(table["request"].to_numpy()) for table in tables]
    merged = np.sort(np.concatenate(requests))
    twice = merged[1:][merged[1:] == merged[:-1]]
    if twice.size:
        holders = [
            path.name
            for path, part in zip(files, requests, strict=True)
            if np.isin(twice[0], part).item()
        ]
        raise UserError(
            f"{files[0].parent}: request {twice[0]} is in {' and in '.join(holders)} "
            f"({twice.size:,} such requests); every request must be predicted once"
        )


def _shown(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} parts)"
