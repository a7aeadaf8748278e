"""``online_retail``: the sheet's own columns, quirks included, and the real file's counts."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

from hisac_rec.config import load_config
from hisac_rec.data.contract import SPLITS, PreparedData
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.shipped import find_config

SHEET = """\
InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
536365,85123A,WHITE HANGING HEART T-LIGHT HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom
536365,71053,WHITE METAL LANTERN,6,2010-12-01 08:26:00,3.39,17850.0,United Kingdom
536365,71053,WHITE METAL LANTERN,2,2010-12-01 08:26:00,3.39,17850.0,United Kingdom
536365,POST,POSTAGE,1,2010-12-01 08:26:00,18.0,17850.0,United Kingdom
536366,22633,HAND WARMER UNION JACK,6,2010-12-01 09:28:00,1.85,,United Kingdom
C536379,85123a,"HANGING HEART, WHITE",-1,2011-01-03 09:41:00,2.55,17850.0,United Kingdom
536401,22633,HAND WARMER UNION JACK,6,2011-10-02 10:00:00,1.85,17850.0,United Kingdom
536402,71053,WHITE METAL LANTERN,1,2011-10-02 10:00:00,3.39,12583.0,France
536403,85123A,WHITE HANGING HEART T-LIGHT HOLDER,3,2011-11-02 10:00:00,2.55,12583.0,France
536404,71053,WHITE METAL LANTERN,3,2011-11-03 10:00:00,2.55,17850.0,United Kingdom
"""


def made(raw: Path, out: Path, *overrides: str) -> PreparedData:
    path = find_config("datasets", "online_retail")
    return prepare(load_config(DatasetDefinition, path, list(overrides)), out, raw=raw)


def test_the_sheet(tmp_path: Path) -> None:
    (tmp_path / "online-retail.csv").write_text(SHEET)
    data = made(
        tmp_path, tmp_path / "data", "history.min_events=0", "requests.negatives.window=99999999"
    )
    items = data.items.to_pylist()
    assert [item["raw_id"] for item in items] == [None, "22633", "71053", "85123A"]
    assert items[3]["text"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert [item["train_count"] for item in items] == [0, 0, 1, 1]  # a line in two parts is one
    assert data.manifest.event_types == ["bought", "returned"]
    assert data.manifest.users == 3  # a line without a customer is nobody's
    tests = {row["user"]: row for row in pq.read_table(data.root / "test").to_pylist()}
    last = tests[2]  # ids by raw id: 12583, 17850
    assert last["history_item"] == [2, 3, 3, 1]
    assert last["history_type"] == [0, 0, 1, 0]
    [request] = last["requests"]
    assert request["items"][0] == 2
    assert request["labels"] == [1.0, 0.0, 0.0]
    assert set(request["items"][1:]) == {1, 3}  # all else that somebody had bought


def test_the_real_file(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "online-retail"
    data = made(raw, tmp_path / "data", "history.min_events=0")
    bought, lines = duckdb.sql(f"""
        SELECT count(*) FILTER (quantity > 0), count(*) FROM (
            SELECT CustomerID, upper(StockCode), InvoiceNo, InvoiceDate, sum(Quantity) AS quantity
            FROM read_csv('{raw}/online-retail.csv.gz')
            WHERE CustomerID IS NOT NULL AND regexp_matches(StockCode, '^[0-9]{{5}}') GROUP BY ALL
        )""").fetchall()[0]
    splits = data.manifest.splits
    assert sum(splits[split].positives for split in SPLITS) == bought
    for split in SPLITS:
        assert 0.2 <= splits[split].positives / splits[split].candidates < 0.202
    assert splits["test"].events < lines
    # What is sold and what is drawn are the same goods: an id alone tells nothing.
    rows = pq.read_table(data.root / "test", columns=["requests"]).to_pylist()
    shown = [request for row in rows for request in row["requests"]]
    item = np.concatenate([request["items"] for request in shown])
    label = np.concatenate([request["labels"] for request in shown])
    assert np.isin(item[label == 1], item[label == 0]).mean() > 0.99
    assert np.isin(item[label == 0], item[label == 1]).mean() > 0.97
