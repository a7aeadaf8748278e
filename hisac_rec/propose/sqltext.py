"""SQL that people will read: quotation marks where needed, lines that are not too long."""

from __future__ import annotations

import re
from functools import cache

import duckdb

from hisac_rec.preparation.sql import identifier

PLAIN = re.compile(r"[a-z_][a-z0-9_]*\Z", re.IGNORECASE)
WIDTH = 88


@cache
def _taken() -> frozenset[str]:
    """Words that SQL keeps for itself, and ``user``, which reads like one."""
    with duckdb.connect() as database:
        rows = database.execute(
            "SELECT keyword_name FROM duckdb_keywords() "
            "WHERE keyword_category IN ('reserved', 'type_function')"
        ).fetchall()
    return frozenset({"user", *(row[0] for row in rows)})


def quoted(name: str) -> str:
    """A column in SQL, in quotation marks only where it needs them."""
    if PLAIN.match(name) and name.lower() not in _taken():
        return name
    return identifier(name)


def aliased(sql: str, name: str) -> str:
    """An expression under a name."""
    return sql if sql == quoted(name) else f"{sql} AS {quoted(name)}"


def wrapped(pieces: list[str]) -> str:
    """Columns of a SELECT over several lines."""
    lines, line = [], ""
    for at, piece in enumerate(pieces):
        whole = piece + ("," if at + 1 < len(pieces) else "")
        if line and len(line) + 1 + len(whole) > WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {whole}".strip()
    return "\n    ".join([*lines, line])


def indented(sql: str, by: str = "    ") -> str:
    """Every line further to the right."""
    return "\n".join(by + line if line else line for line in sql.splitlines())
