"""The parts of a prediction set: their schema, and what is refused when they are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.data.parquet import DAMAGED, READING
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


def task_columns(task: str) -> tuple[str, str]:
    """Columns of a further task of the model: labels, logits; both float32."""
    return f"label_{task}", f"logit_{task}"


PathsLike = str | Path | Sequence[str | Path]
"""A Parquet file, a folder of parts, or a list of either."""

PART_NAME = re.compile(r"part-(\d{5})-of-(\d{5})\.parquet")
RUN_KEY, FINGERPRINT_KEY = b"hisac_rec.run", b"hisac_rec.fingerprint"
TASKS_KEY = b"hisac_rec.tasks"
"""Names of the tasks, comma-separated, that of ``label`` and ``logit`` first; absent where they
are the data set's main task and there is no other. A label may be null only where it is there:
the task does not apply to the candidate."""
_SCORE_TOLERANCE = 1e-3


WHERE = ("request", "user", "item")


def sigmoid(logit: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sigmoid in float64 that keeps its relative precision at both ends. O(n)."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logit, dtype=np.float64)))


def find_parts(paths: PathsLike) -> list[Path]:
    """The Parquet files that were named; see ``read_predictions`` for what is refused."""
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
        match = PART_NAME.fullmatch(path.name)
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


def read_part(path: Path) -> pa.Table:
    """Read one file and check its columns and values, O(n); names the file and the row."""
    try:
        schema = pq.read_schema(path)
        _check_schema(path, schema)
        names = [field.name for field in _expected(schema)]
        table = pq.read_table(path, columns=names, partitioning=None, **READING)
    except DAMAGED as error:
        raise UserError(f"{path}: damaged Parquet file ({error}); predict again") from None
    _check_values(path, table)
    return table


def tasks_of(schema: pa.Schema) -> tuple[str, ...]:
    """Names of the tasks in a file, its main one first; none where it does not say."""
    text = (schema.metadata or {}).get(TASKS_KEY, b"").decode()
    return tuple(text.split(",")) if text else ()


def schema_with(tasks: Sequence[str], *, oracle: bool) -> pa.Schema:
    """Schema of predictions of these ``tasks`` (none: the data set's main one)."""
    schema = PREDICTION_SCHEMA.append(ORACLE_COLUMN) if oracle else PREDICTION_SCHEMA
    for task in tasks[1:]:
        for name in task_columns(task):
            schema = schema.append(pa.field(name, pa.float32()))
    return schema


def _expected(schema: pa.Schema) -> pa.Schema:
    return schema_with(tasks_of(schema), oracle=ORACLE_COLUMN.name in schema.names)


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
    further = [task_columns(task) for task in tasks_of(table.schema)[1:]]
    may_be_null = {"label", *(label for label, _ in further)} if tasks_of(table.schema) else set()
    for name in table.column_names:
        if table[name].null_count and name not in may_be_null:
            row = int(np.flatnonzero(table[name].is_null().to_numpy())[0])
            raise UserError(f"{path}: row {row}: {name} is null; every candidate needs one")
    column = {name: table[name].to_numpy() for name in table.column_names}
    for name in may_be_null:
        column[name] = np.where(table[name].is_null().to_numpy(), 0, column[name])
    labels, logits = [label for label, _ in further], [logit for _, logit in further]
    logit, score = column["logit"], column["score"]
    rules = [
        *((of, ~np.isfinite(column[of]), "a finite number") for of in ("logit", *logits)),
        ("score", ~((score >= 0) & (score <= 1)), "a number from 0 to 1"),
        *((of, (column[of] != 0) & (column[of] != 1), "0 or 1") for of in ("label", *labels)),
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
        where = ", ".join(f"{key} {column[key][row]}" for key in WHERE)
        raise UserError(
            f"{path}: row {row} ({where}): {name} is {column[name][row]}, expected {allowed} "
            f"({rows.size:,} such rows in this file)"
        )


def check_one_run(files: list[Path], tables: list[pa.Table]) -> None:
    """Refuse parts of different runs, and a request that two parts hold."""
    for key, what in (
        (RUN_KEY, "runs"),
        (FINGERPRINT_KEY, "prepared data sets"),
        (TASKS_KEY, "tasks"),
    ):
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


def shown(files: list[Path]) -> str:
    """How a message names the files of one prediction set."""
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} parts)"
