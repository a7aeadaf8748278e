"""The header of a CSV file against the columns that the definition gives it.

``read_csv`` with ``columns`` takes a header line away unread: a file whose columns come in
another order, or that another delimiter separates, would be read as what it is not.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from hisac_rec.errors import UserError
from hisac_rec.preparation.locate import open_bytes
from hisac_rec.preparation.readers import Reader, readers_of

_LITERAL = re.compile(r"'((?:[^']|'')*)'")
_SHOWN = 160


def check_headers(key: str, select: str, raw: Path, origin: str) -> None:
    """Check every CSV file with a header whose columns a SELECT names.

    Args:
        key: of the SELECT.
        select: its text, ``{raw}`` filled in.
        raw: folder of raw files.
        origin: the definition's file, for messages.

    Raises:
        UserError: names the file and both lists of columns.
    """
    for reader in readers_of(key, select)[0]:
        columns, header = reader.options.get("columns"), reader.options.get("header")
        if not (reader.is_csv and isinstance(columns, dict) and header in ("true", "1")):
            continue
        delimiter = reader.options.get("delim") or reader.options.get("sep") or ","
        for path in _files(reader, raw):
            found = _header(path, delimiter)
            if found != list(columns):
                line = delimiter.join(found)
                line = line if len(line) <= _SHOWN else line[:_SHOWN] + " ..."
                raise UserError(
                    f"{origin}: key '{key}': {path}, line 1: expected the header "
                    f"{delimiter.join(columns)!r}, found {line!r}; get the file again, or mend "
                    "'columns' and 'delim' of read_csv"
                )


def _files(reader: Reader, raw: Path) -> Iterator[Path]:
    for literal in _LITERAL.findall(reader.source):
        path = Path(literal.replace("''", "'"))
        if path.is_relative_to(raw):
            yield from sorted(raw.glob(str(path.relative_to(raw))))


def _header(path: Path, delimiter: str) -> list[str]:
    with open_bytes(path) as file:
        line = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if len(delimiter) > 1:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter), [])
