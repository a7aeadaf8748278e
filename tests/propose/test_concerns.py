"""Each warning once, on a log with that problem planted, and none on a clean one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from propose.logs import START, Row, changed, clean_log, codes, looked, write_csv

CLEAN = clean_log()
Plant = Callable[[list[Row]], list[Row]]


def with_column(name: str, value: Callable[[int, Row], object]) -> Plant:
    return lambda rows: changed(rows, lambda index, row: row | {name: value(index, row)})


def bot(rows: list[Row]) -> list[Row]:
    more = [
        {"user_id": 7, "item_id": f"i{k % 60}", "timestamp": START + 997 * k, "click": k % 2,
         "device": "phone"}
        for k in range(900)
    ]  # fmt: skip
    return rows + more


def local(_: int, row: Row) -> str:
    seconds = row["timestamp"]
    return f"2023-11-{1 + seconds % 28:02d} {seconds % 24:02d}:{seconds % 60:02d}:17"


def day(_: int, row: Row) -> str:
    return f"2023-11-{1 + row['timestamp'] // DAY % 28:02d}"


def every(step: int, bad: object, column: str, offset: int = 0) -> Plant:
    """``bad`` in a column of every ``step``-th row."""
    return with_column(column, lambda k, row: bad if k % step == offset else row[column])


DAY = 86_400
PLANTED: list[tuple[set[str], list[Plant]]] = [
    (
        {"label-copied", "label-leak", "known-afterwards", "null-users", "null-items", "one-user"},
        [
            bot,
            with_column("again", lambda _, row: 1 - row["click"]),
            with_column("paid", lambda k, row: row["click"] * 100 + k % 7 if k % 20 else 3),
            with_column("dwell_seconds", lambda k, _: k % 17),
            every(50, "", "user_id"),
            every(50, "", "item_id", 7),
        ],
    ),
    (
        {"label-rare", "before-1990", "future", "duplicate-rows", "duplicate-events"},
        [
            with_column("click", lambda k, _: int(k % 200 == 9)),
            every(150, 12, "timestamp", 3),
            every(150, START + 2 * 10**9, "timestamp", 4),
            lambda rows: rows + rows[5:10] + [row | {"device": "tablet"} for row in rows[:5]],
        ],
    ),
    (
        {"time-zone", "label-common", "single-items"},
        [
            with_column("timestamp", local),
            with_column("click", lambda k, _: int(k % 40 > 0)),
            with_column("item_id", lambda k, row: f"i{k if k % 9 else 0}"),
        ],
    ),
    (
        {"days", "short"},
        [
            with_column("timestamp", day),
            with_column("user_id", lambda k, _: k // 30 * 15 + k % 15),
        ],
    ),
    ({"midnight", "ties"}, [
        with_column("timestamp", lambda _, row: row["timestamp"] // DAY * DAY - 8 * 3600),
        with_column("item_id", lambda k, _: f"i{k % 60}"),
    ]),
    (
        {"time-doubtful"},
        [with_column("timestamp", lambda k, row: row["timestamp"] * (1 if k % 3 else 1000))],
    ),
]  # fmt: skip


def test_a_clean_log_has_none(tmp_path: Path) -> None:
    found = looked(tmp_path, write_csv(tmp_path / "log.csv", CLEAN))
    assert codes(found) == []
    assert found.proposal.log.user.sql == "user_id"
    assert found.proposal.split.by == "time"


@pytest.mark.parametrize(("expected", "plants"), PLANTED, ids=lambda one: str(len(one)))
def test_planted(tmp_path: Path, expected: set[str], plants: list[Plant]) -> None:
    rows = CLEAN
    for plant in plants:
        rows = plant(rows)
    found = looked(tmp_path, write_csv(tmp_path / "log.csv", rows))
    assert sorted(codes(found)) == sorted(expected)


def test_successes_alone(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "click"} for row in CLEAN]
    assert codes(looked(tmp_path, write_csv(tmp_path / "log.csv", rows))) == ["positives-alone"]


def test_items(tmp_path: Path) -> None:
    events = write_csv(tmp_path / "log.csv", CLEAN)
    goods = [
        {"item_id": f"i{k}", "shelf": f"s{k % 4}", "barcode": f"x{k}", "click_count": 3 * k}
        for k in range(60)
    ]
    write_csv(tmp_path / "good.csv", [{k: r[k] for k in ("item_id", "shelf")} for r in goods])
    assert codes(looked(tmp_path, events, items=tmp_path / "good.csv")) == []
    bad = write_csv(tmp_path / "bad.csv", [*goods[:50], goods[3]])
    found = looked(tmp_path, events, items=bad)
    assert codes(found) == ["item-rows-repeated", "items-missing", "item-ids", "item-sums"]
    assert [f.name for f in found.manifest.item_features] == ["shelf"]
