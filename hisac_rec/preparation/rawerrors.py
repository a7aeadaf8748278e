"""What DuckDB says of a raw file, put so that file and row come first."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.preparation.locate import open_bytes

_LINE = re.compile(r"CSV Error on Line: (\d+)\n(?:Original Line: (.*)\n)?((?:.+\n?)*)")
_FILE = re.compile(r"^\s*file = (.+)$", re.MULTILINE)
_SNIFFED = re.compile(r'Error when sniffing file "(.+)"')
_DELIMITER = re.compile(r"Delimiter Candidates: '([^']+)'\s*$", re.MULTILINE)
_UTF8 = re.compile(r'Invalid string encoding found in (?:Parquet )?file "([^"]+)"')
_JSON = re.compile(
    r'JSON (?:transform error )?in file "([^"]+)", (?:at byte \d+ )?in line (\d+): (.*)'
)
_SHOWN = 160


def explained(error: duckdb.Error) -> str | None:
    """A message that begins with the raw file and the row, or at least the file.

    Args:
        error: of a statement that reads raw files.

    Returns:
        None where DuckDB names no file, or the fault is that of the SQL.
    """
    said = str(error)
    line, file = _LINE.search(said), _FILE.search(said)
    if line is not None and file is not None:
        reason = line[3].partition("\nPossible")[0].partition("\n*")[0].strip()
        reason = reason.partition("Possible")[0].strip()
        return (
            f"{file[1].strip()}, line {line[1]}: {_one_line(reason)}\n"
            f"  {_cut(line[2] or '')}\n"
            "Mend or remove that line, or get the file again, unpacked whole; where the file is "
            "as it should be, mend the options of read_csv"
        )
    sniffed = _SNIFFED.search(said)
    if sniffed is not None:
        delimiters = _DELIMITER.search(said)
        return _not_a_table(Path(sniffed[1]), delimiters[1] if delimiters else None)
    record = _JSON.search(said)
    if record is not None:
        return _bad_record(Path(record[1]), int(record[2]), record[3])
    broken = _UTF8.search(said)
    if broken is not None:
        return _not_utf8(Path(broken[1]))
    return None


def _not_a_table(path: Path, delimiter: str | None) -> str:
    """A text file whose lines do not fall into the same columns."""
    if delimiter is not None:
        separator, columns = delimiter.encode().replace(b"\\t", b"\t"), 0
        with open_bytes(path) as file:
            for number, line in enumerate(file, start=1):
                fields = line.count(separator) + 1
                columns = columns or fields
                if columns == 1 or (line.strip() and fields != columns):
                    wanted = f"{columns} values" if columns > 1 else "values"
                    return (
                        f"{path}, line {number}: expected {wanted} separated by {delimiter!r}, "
                        f"found\n  {_cut(line.decode(errors='replace').rstrip())}\n"
                        "Mend or remove that line, or get the file again, unpacked whole"
                    )
    return (
        f"{path}: DuckDB cannot tell the columns of this file apart; get the file again, or "
        "say delim, quote and encoding in read_csv"
    )


def _bad_record(path: Path, number: int, reason: str) -> str:
    """A line that is no JSON, or holds another type than asked for.

    Of a line that is no JSON, DuckDB gives the number after it.
    """
    with open_bytes(path) as file:
        before, line = [b"", *islice(file, max(0, number - 2), number)][-2:]
    if not _is_json(before):
        number, line = number - 1, before
    return (
        f"{path}, line {number}: {reason}\n  {_cut(line.decode(errors='replace').rstrip())}\n"
        "Mend or remove that line, or get the file again, unpacked whole; where the file is as it "
        "should be, mend the columns of read_json"
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode() or "null")
    except ValueError:
        return False
    return True


def _not_utf8(path: Path) -> str:
    """A Parquet file with text that is none."""
    file = pq.ParquetFile(path)
    for name in (f.name for f in file.schema_arrow if pa.types.is_string(f.type)):
        row = 0
        for batch in file.iter_batches(columns=[name]):
            for value in batch.column(0).cast(pa.binary()).to_pylist():
                row += 1
                if value is not None and not _is_utf8(value):
                    return (
                        f"{path}, row {row}: column '{name}' is not UTF-8 text: "
                        f"{_cut(repr(value))}; get the file again"
                    )
    return f"{path}: holds text that is not UTF-8; get the file again"


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _one_line(message: str) -> str:
    return " ".join(part.strip() for part in message.splitlines() if part.strip())


def _cut(line: str) -> str:
    return line if len(line) <= _SHOWN else line[:_SHOWN] + " ..."
