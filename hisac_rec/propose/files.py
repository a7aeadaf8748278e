"""How a raw file is read: format, encoding, delimiter, header, as the SQL that reads it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from hisac_rec.errors import UserError
from hisac_rec.preparation.sql import text
from hisac_rec.propose.database import Database

PARQUET, JSON, CSV = "read_parquet", "read_json", "read_csv"
SUFFIXES = {".parquet": PARQUET, ".pq": PARQUET, ".json": JSON, ".jsonl": JSON, ".ndjson": JSON}
LONG_DELIMITERS = ("::", "||", "\x01", "^")
"""Delimiters that DuckDB does not try by itself."""
ISO_DATE, ISO_MOMENT = "%Y-%m-%d", "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class RawTable:
    """Files of one table and the SQL that reads them."""

    names: tuple[str, ...]
    """Files below the raw folder."""
    relation: str
    """What to write after FROM; ``{raw}`` stands for the raw folder."""
    columns: dict[str, str]
    """Column -> DuckDB type."""
    notes: tuple[str, ...] = ()
    """What was out of the ordinary, for people."""

    @property
    def title(self) -> str:
        """The files in a message."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]} and others"

    def no_column(self, reason: str, option: str) -> UserError:
        """The error for a role that no column can take."""
        seen = ", ".join(f"{name} ({kind})" for name, kind in self.columns.items())
        return UserError(f"{self.title}: {reason}; columns seen: {seen}\nGive {option}")


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that becomes ``--raw``: the deepest one above all files.

    Raises:
        UserError: a file is missing or a folder.
    """
    for path in paths:
        if path.is_dir():
            raise UserError(
                f"{path}: is a folder; name its files, for example {path}/*.parquet: several "
                "files of the same columns are read as one table"
            )
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    return Path(os.path.commonpath([path.absolute().parent for path in paths]))


def take_in(
    db: Database,
    table: str,
    paths: Sequence[Path],
    raw: Path,
    *,
    where: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> RawTable:
    """Find out how files are read and make a table of them.

    Text is parsed once, into the database on disk; Parquet is read where it lies.

    Args:
        db: the database.
        table: the table to make.
        paths: one file, or several with the same columns.
        raw: the folder that ``{raw}`` stands for.
        where: condition on the rows.
        delimiter: of a CSV; None: found out.
        encoding: of a CSV; None: found out.

    Raises:
        UserError: the files are empty, DuckDB cannot read them, or ``where`` is no condition.
    """
    names = tuple(path.absolute().relative_to(raw).as_posix() for path in paths)
    reader = _reader(paths[0])
    places = [text("{raw}/" + name) for name in names]
    place = places[0] if len(places) == 1 else f"[{', '.join(places)}]"
    union = {"union_by_name": "true"} if len(places) > 1 else {}
    attempts = _csv_attempts(paths[0], delimiter, encoding) if reader == CSV else [{}]
    refusal = ""
    for options in attempts:
        try:
            found = _attempt(db, table, names, raw, reader, place, {**options, **union})
        except duckdb.Error as error:
            refusal = refusal or str(error).split("\n\n")[0]
            continue
        if not db.rows(f"SELECT 1 FROM {table} LIMIT 1"):
            raise UserError(f"{paths[0]}: holds no rows")
        if where is not None:
            _keep(db, table, found, where)
        return found
    raise UserError(f"{paths[0]}: cannot be read as a table:\n{refusal}")


def _keep(db: Database, table: str, raw: RawTable, where: str) -> None:
    try:
        db.replace(table, f"SELECT * FROM {table} WHERE ({where}\n)")
    except duckdb.Error as error:
        raise UserError(f"{raw.title}: --where {where!r}: {error}") from None
    if not db.rows(f"SELECT 1 FROM {table} LIMIT 1"):
        raise UserError(f"{raw.title}: no row is left by --where {where!r}")


def _reader(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    for suffix in reversed(suffixes):
        if suffix in SUFFIXES:
            return SUFFIXES[suffix]
    with path.open("rb") as file:
        return PARQUET if file.read(4) == b"PAR1" else CSV


def _csv_attempts(path: Path, delimiter: str | None, encoding: str | None) -> list[dict[str, str]]:
    """Options of ``read_csv`` to try, the plainest first."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rb") as file:
            start = file.read(100_000)
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not start.strip():
        raise UserError(f"{path}: the file is empty")
    fixed = {} if delimiter is None else {"delim": text(delimiter)}
    first = start.splitlines()[0].decode("latin-1")
    if delimiter is None:
        for long in LONG_DELIMITERS:
            if first.count(long) >= 2:
                fixed = {"delim": text(long)}
                break
    if encoding is not None:
        return [{**fixed, "encoding": text(encoding)}]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return [{**fixed, "encoding": "'utf-16'"}]
    # The first lines may look like whole numbers and a later one not: look at all of them.
    more: list[dict[str, str]] = [
        {},
        {"sample_size": "-1"},
        {"encoding": "'latin-1'"},
        {"encoding": "'latin-1'", "sample_size": "-1"},
    ]
    return [{**fixed, **options} for options in more]


def _attempt(
    db: Database,
    table: str,
    names: tuple[str, ...],
    raw: Path,
    reader: str,
    place: str,
    options: dict[str, str],
) -> RawTable:
    """Read everything once, one way.

    Raises:
        duckdb.Error: it cannot be read that way.
    """
    relation = _relation(reader, place, options)
    columns = described(db, relation, raw)
    if reader == CSV:
        dates = _dates_to_text(db, columns, raw / names[0], options)
        if dates:
            relation = _relation(reader, place, {**options, "types": dates})
            columns = described(db, relation, raw)
    kind = "VIEW" if reader == PARQUET else "TABLE"
    db.rows(f"CREATE {kind} {table} AS SELECT * FROM {filled(relation, raw)}")
    notes = []
    if "encoding" in options:
        notes.append(f"{names[0]} is not UTF-8; it is read as {options['encoding'].strip(chr(39))}")
    if reader == CSV and list(columns) == _numbered(len(columns)):
        notes.append(f"{names[0]} has no header line: its columns are called {', '.join(columns)}")
    return RawTable(names, relation, columns, tuple(notes))


def _numbered(columns: int) -> list[str]:
    """How DuckDB calls columns without a header."""
    width = len(str(max(0, columns - 1)))
    return [f"column{at:0{width}d}" for at in range(columns)]


def _relation(reader: str, place: str, options: dict[str, str]) -> str:
    if not options and not place.startswith("["):
        return place if reader != CSV or _known_suffix(place) else f"{reader}({place})"
    given = "".join(f", {key} = {value}" for key, value in options.items())
    return f"{reader}({place}{given})"


def _known_suffix(place: str) -> bool:
    bare = place.strip("'").lower().removesuffix(".gz")
    return bare.endswith((".csv", ".tsv"))


def described(db: Database, relation: str, raw: Path) -> dict[str, str]:
    """Column -> DuckDB type of what ``relation`` reads."""
    rows = db.rows(f"DESCRIBE SELECT * FROM {filled(relation, raw)}")
    return {row[0]: row[1] for row in rows}


def filled(sql: str, raw: Path) -> str:
    """SQL with ``{raw}`` filled in, as preparation does."""
    return sql.replace("{raw}", str(raw).replace("'", "''"))


def _dates_to_text(
    db: Database, columns: dict[str, str], path: Path, options: dict[str, str]
) -> str:
    """``types`` that leave dates as text where they are not written as ISO 8601 says.

    01/02/2020 is a guess of DuckDB's then; :mod:`moments` looks closer and says so.
    """
    doubtful = [name for name, kind in columns.items() if kind in ("DATE", "TIMESTAMP")]
    if not doubtful:
        return ""
    given = "".join(f", {k} = {v}" for k, v in options.items() if k != "union_by_name")
    sniffed = db.rows(
        f"SELECT DateFormat, TimestampFormat FROM sniff_csv({text(str(path))}{given})"
    )
    formats = {"DATE": sniffed[0][0], "TIMESTAMP": sniffed[0][1]}
    iso = (None, "", ISO_DATE, ISO_MOMENT)
    chosen = [name for name in doubtful if formats[columns[name]] not in iso]
    inner = ", ".join(f"{text(name)}: 'VARCHAR'" for name in chosen)
    return f"{{{inner}}}" if chosen else ""
