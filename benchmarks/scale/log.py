"""A seeded event log of any size as Parquet files, made by DuckDB.

A million items asked for by Zipf's law, users equally often, in the order of time as a log
grows. Users are numbers and items texts, so that both kinds of raw id are joined.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

START, DAYS = 1_700_000_000, 100
FILE_EVENTS = 5_000_000


def write_log(folder: Path, events: int, users: int, items: int, seed: int, threads: int) -> int:
    """Write ``events/*.parquet``, ``items.parquet`` and ``users.parquet``.

    Returns:
        Bytes written.
    """
    (folder / "events").mkdir(parents=True)
    with duckdb.connect(config={"threads": threads, "memory_limit": "2GB"}) as database:

        def draw(what: str, of: str) -> str:  # in [0, 1), the same for the same seed
            return f"((hash({of}, '{what}', {seed}) >> 11)::DOUBLE / (1::BIGINT << 53))"

        for number, first in enumerate(range(0, events, FILE_EVENTS)):
            last = min(first + FILE_EVENTS, events)
            item = f"floor(pow({items}, {draw('item', 'i')}))::BIGINT"
            _write(
                database,
                folder / "events" / f"part-{number:04d}.parquet",
                f"""
                SELECT 1 + floor({users} * {draw("user", "i")})::BIGINT AS user_id,
                    'i' || (({item} * 7919) % {items}) AS item_id,
                    {START} + i * {DAYS * 86_400} // {events} AS moment,
                    CASE WHEN {draw("kind", "i")} < 0.1 THEN 'like' ELSE 'view' END AS kind,
                    {draw("click", "i")} < 0.1 + 0.4 * {draw("taste", item)} AS clicked
                FROM range({first}, {last}) t(i)""",
            )
        content = ", ".join(f"{draw(f'c{k}', 'i')}::FLOAT" for k in range(16))
        _write(
            database,
            folder / "items.parquet",
            f"""
            SELECT 'i' || i AS item_id, 'shelf ' || floor(200 * {draw("shelf", "i")})::INT AS shelf,
                ['t' || (i % 1000), 'u' || (i % 77)] AS tags, [{content}] AS content
            FROM range({items}) t(i)""",
        )
        _write(
            database,
            folder / "users.parquet",
            f"SELECT i AS user_id, i % 13 AS segment FROM range(1, {users + 1}) t(i)",
        )
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def _write(database: duckdb.DuckDBPyConnection, path: Path, select: str) -> None:
    database.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
