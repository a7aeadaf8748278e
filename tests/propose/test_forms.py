"""Logs in other forms: delimiters, encodings, ways to write times, kinds of events, embeddings."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from propose.logs import START, changed, clean_log, codes, looked, write_csv

from hisac_rec.errors import UserError


def test_semicolons_latin_1_and_european_dates(tmp_path: Path) -> None:
    """With a column of requests, and yes or no for a label."""
    rows = [
        {
            "Kunde": f"Müller {row['user_id']}",
            "Artikel": row["item_id"],
            "Datum": datetime.fromtimestamp(row["timestamp"], UTC).strftime("%d.%m.%Y %H:%M"),
            "bought": "yes" if row["click"] else "no",
            "session_id": f"{row['user_id']}-{index // 3}",
        }
        for index, row in enumerate(clean_log())
    ]
    file = write_csv(tmp_path / "log.csv", rows, delimiter=";", encoding="latin-1")
    found = looked(tmp_path, file, time_zone="Europe/Berlin")
    log = found.proposal.log
    assert (log.user.sql, log.item.sql, log.time.columns) == ("Kunde", "Artikel", ("Datum",))
    assert "%d.%m.%Y %H:%M" in log.moment.sql
    assert log.label.sql == "bought"
    assert log.group is not None
    assert log.group.columns == ("session_id",)
    assert "latin-1" in found.proposal.notes[0]
    assert codes(found) == []
    first = min(row["timestamp"] for row in clean_log())
    assert first - found.figures.first in range(3600, 3660)  # winter time, whole minutes
    with pytest.raises(UserError, match="cannot be read as a table"):
        looked(tmp_path, file, encoding="utf-8")


def test_kinds_of_events(tmp_path: Path) -> None:
    """Purchases that follow on views of the same item, in JSON lines, with an embedding."""
    draw = np.random.default_rng(0)
    events, moment = [], 0
    for user in range(30):
        for view in range(40):
            item, moment = int(draw.integers(50)), START + view * 20_000 + user
            events.append({"visitor": user, "sku": item, "ts": moment * 1000, "event": "view"})
            if draw.random() < 0.2:
                after = {"ts": (moment + 60) * 1000, "event": "purchase"}
                events.append({"visitor": user, "sku": item, **after})
    log, goods = tmp_path / "log.jsonl", tmp_path / "goods.json"
    log.write_text("\n".join(map(json.dumps, events)))
    vectors = [
        {"sku": k, "name": f"good thing number {k} red", "vec": draw.random(8).tolist()}
        for k in range(50)
    ]
    goods.write_text(json.dumps(vectors))
    found = looked(tmp_path, log, items=goods)
    label = found.proposal.log.label
    assert label.kind == "follows"
    assert label.requests_where == "type IN ('view')"
    bought = sum(event["event"] == "purchase" for event in events)
    assert found.figures.rate == pytest.approx(bought / 1200)
    assert found.proposal.log.moment.sql == "ts // 1000"
    assert found.manifest.content_dim == 8
    assert found.manifest.has_text
    assert found.definition.semantic_ids.source == "content"
    assert codes(found) == []
    rows = looked(tmp_path, log, items=goods, positive=("view",)).proposal.log.label
    assert rows.sql == "type IN ('view')"


def test_several_flags(tmp_path: Path) -> None:
    """Further flags are tasks; a copy of one and a flag that is hardly ever set are not."""
    rows = changed(
        clean_log(),
        lambda k, row: (
            row | {"is_like": int(k % 9 == 0), "liked": int(k % 9 == 0), "is_follow": int(k == 7)}
        ),
    )
    found = looked(tmp_path, write_csv(tmp_path / "log.csv", rows))
    assert found.definition.requests is not None
    assert found.definition.requests.label == "click = 1"
    assert [task.name for task in found.manifest.tasks] in (["like"], ["liked"])
    assert codes(found) == []


def test_doubtful_dates_and_ratings(tmp_path: Path) -> None:
    """Day and month that may be swapped; two colons between fields; embedding columns."""
    rows = changed(
        clean_log(),
        lambda k, row: {
            "user": row["user_id"],
            "movie": row["item_id"],
            "rating": 1 + (k * 7 + row["click"]) % 5,
            "date": datetime.fromtimestamp(row["timestamp"], UTC).strftime(
                f"{1 + k % 12:02d}/{1 + k // 12 % 12:02d}/2023 %H:%M"
            ),
        },
    )
    file = tmp_path / "ratings.dat"
    file.write_text("\n".join("::".join(str(v) for v in row.values()) for row in rows))
    films = [
        {"movie": f"i{k}"} | {f"e{d}": round(float(np.sin(k + d)), 3) for d in range(8)}
        for k in range(60)
    ]
    names = {"user": "column0", "item": "column1", "label": "column2", "time": "column3"}
    found = looked(
        tmp_path, file, items=write_csv(tmp_path / "films.csv", films), threshold=4.0, **names
    )
    assert "delim = '::'" in found.text
    assert found.proposal.log.label.sql == "column2 >= 4"
    assert "time-doubtful" in codes(found)
    assert found.manifest.content_dim == 8
    settled = looked(tmp_path, file, time_format="%m/%d/%Y %H:%M", **names)
    assert "time-doubtful" not in codes(settled)
