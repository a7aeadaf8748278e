"""The raw row behind a finding: through any SQL, in any text or Parquet file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hisac_rec.config import apply_overrides, validate
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition, SourceConfig
from hisac_rec.preparation.locate import ANY_ERROR, Locator, line_of
from hisac_rec.preparation.prepare import prepare

NEGATIVE = "SELECT 1 FROM found WHERE time < 0 LIMIT 1"


def place(raw: Path, events: str, finding: str = NEGATIVE, **more: Any) -> str:
    """Where a finding about ``source.events`` lies, the folder left out."""
    tables = more.pop("tables", {})
    source = SourceConfig(files=["*"], events=events)
    locator = Locator(duckdb.connect(), source, raw, tables, **more)
    return locator.place("source.events", finding).replace(f"{raw}/", "")


def test_lines_of_odd_text_files(tmp_path: Path) -> None:
    lines = ['a,"b,', 'c""d"', "", "1,x", "", '2,"y', '"', "3,z"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(lines) + "\n")
    assert [line_of(path, record, header=True) for record in (1, 2, 3)] == [4, 6, 8]
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(path.read_text())
    assert line_of(tmp_path / "a.csv.gz", 2, header=True) == 6
    assert line_of(path, 2, header=False, quote=b"") == 2  # lines alone count


@pytest.mark.parametrize("extension", ["csv", "csv.gz"])
def test_text_files_of_a_pattern(tmp_path: Path, extension: str) -> None:
    opened = gzip.open if extension == "csv.gz" else open
    for part in range(3):
        rows = [f"{part},{i},{-1 if part == 1 and i > 4 else i}" for i in range(8)]
        with opened(tmp_path / f"part{part}.{extension}", "wt") as file:
            file.write("\n".join(["user,item,time", *rows, ""]))
    events = f"SELECT * FROM read_csv('{{raw}}/part*.{extension}')"
    assert place(tmp_path, events) == f"part1.{extension}, line 7"


def test_json_lines(tmp_path: Path) -> None:
    rows = [{"user": 1, "item": i, "time": 5 - i} for i in range(9)]
    (tmp_path / "a.json").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert place(tmp_path, "SELECT * FROM read_json('{raw}/a.json')") == "a.json, line 7"


def test_through_a_join_a_union_and_a_named_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("k,v\n" + "".join(f"{i},{i * i}\n" for i in range(50)))
    numbers = pa.array([3, 9, 40, 41, 7])
    pq.write_table(pa.table({"k": numbers}), tmp_path / "b.parquet")
    tables = {
        "squares": "SELECT k, v FROM read_csv('{raw}/a.csv')",
        "unused": "SELECT * FROM '{raw}/b.parquet'",
        "chosen": "SELECT v FROM squares JOIN '{raw}/b.parquet' b USING (k)",
    }
    events = """-- é is two bytes
        SELECT 1 AS "user", v AS item, v AS time FROM (
            SELECT 0 AS v UNION ALL SELECT sum(v) OVER (ORDER BY v) FROM chosen)"""
    over = "SELECT 1 FROM found WHERE time > 3000 LIMIT 1"
    found = place(tmp_path, events, over, tables=tables)
    assert found == "b.parquet, row 4 and a.csv, line 43"  # 9 + 81 + 1600 + 1681
    assert place(tmp_path, events, tables=tables) == ""


def test_rows_that_the_sql_chokes_on(tmp_path: Path) -> None:
    days = ["2023-01-01", "2023-01-02", "2 January", "2023-01-04"]
    pq.write_table(pa.table({"day": days}), tmp_path / "a.parquet")
    events = "SELECT epoch(strptime(day, '%Y-%m-%d')) AS time FROM '{raw}/a.parquet'"
    assert place(tmp_path, events, ANY_ERROR) == "a.parquet, row 3"
    assert place(tmp_path, "SELECT nothing FROM '{raw}/a.parquet'", ANY_ERROR) == ""


def test_columns_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,what,at\n" + "u1,s1,7\n" * 5)
    events = "SELECT person AS \"user\" FROM read_csv('{raw}/log.csv')"
    raw = {
        "name": "shop",
        "source": {"files": ["log.csv"], "events": events},
        "requests": {"label": "true"},
    }
    definition = validate(DatasetDefinition, raw, "shop.toml")
    with pytest.raises(UserError, match=r"\nlog\.csv has the columns who, what, at$"):
        prepare(definition, tmp_path / "out", raw=tmp_path)


def test_a_range_where_patience_ends(tmp_path: Path) -> None:
    pq.write_table(pa.table({"time": [1] * 70 + [-1] + [1] * 29}), tmp_path / "a.parquet")
    events = "SELECT time FROM '{raw}/a.parquet'"
    assert place(tmp_path, events) == "a.parquet, row 71"
    assert place(tmp_path, events, patience=0.0) == "a.parquet, one of the rows 1 to 100"


SHOP: dict[str, Any] = {
    "name": "shop",
    "source": {
        "files": ["log.csv", "goods.csv"],
        "events": """SELECT customer AS "user", sku AS item, moment AS time, bought
            FROM read_csv('{raw}/log.csv', columns = {'customer': 'VARCHAR', 'sku': 'VARCHAR',
                'moment': 'BIGINT', 'bought': 'DOUBLE'}, delim = ',', header = true)""",
        "items": """SELECT sku AS item, [a, b] AS content FROM read_csv('{raw}/goods.csv')""",
    },
    "requests": {"label": "bought"},
}


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (4, ",s1,7,1", r"log\.csv, line 4: 1 rows have no user \(NULL\)"),
        (5, "u0,,7,1", r"log\.csv, line 5: 1 rows have no item \(NULL\)"),
        (6, "u0,s1,,1", r"log\.csv, line 6: 1 rows have no time \(NULL\)"),
        (7, "u0,s1,-7,1", r"log\.csv, line 7: 1 events have a negative time \(down to -7\)"),
        (8, "u0,s1,7,1.5", r"log\.csv, line 8: 1 candidates have no label in .* u0 \(1\.5\)"),
        (9, "u0,s1,7,", r"log\.csv, line 9: 1 candidates have no label in .* u0 \(NULL\)"),
        (10, "u0,s1,now,1", r"log\.csv, line 10: .*\"moment\".*\"now\".*\n  u0,s1,now,1\nMend"),
        (11, "u0,s1,7", r"log\.csv, line 11: expected 4 values"),
        (1, "sku,customer,moment,bought", r"log\.csv, line 1: expected the header 'customer,sku"),
    ],
)
def test_messages(tmp_path: Path, line: int, change: str, message: str) -> None:
    lines = ["customer,sku,moment,bought"]
    lines += [f"u{i % 3},s{i % 7},{100 + i},{i % 2}" for i in range(60)]
    lines[line - 1] = change
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "log.csv").write_text("\n".join(lines) + "\n")
    (raw / "goods.csv").write_text("sku,a,b\ns1,1.5,2.5\n")
    definition = validate(DatasetDefinition, apply_overrides(SHOP, ()), "shop.toml")
    with pytest.raises(UserError, match=rf"shop\.toml: .*{message}"):
        prepare(definition, tmp_path / "out", raw=raw, origin="shop.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_expression_that_chokes_on_a_value(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "log.csv").write_text("customer,sku,moment,bought\nu0,s1,7,300\n")
    (raw / "goods.csv").write_text("sku,a,b\ns1,1.5,2.5\n")
    label = "requests.label=(bought::TINYINT)"
    definition = validate(DatasetDefinition, apply_overrides(SHOP, (label,)), "shop.toml")
    with pytest.raises(UserError, match=r"requests\.label.* the SQL does not run:\n.*300"):
        prepare(definition, tmp_path / "out", raw=raw, origin="shop.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("if(a = 3, NULL, [a, b])", None),
        ("[a::TINYINT, b::TINYINT]", None),
        ("NULL::FLOAT[]", None),
        ("if(a = 3, [a, NULL], [a, b])", "line 5: 1 embeddings .* hold a value that is no finite"),
        ("[a, b / (a - 3)]", "line 5: 1 embeddings of column 'content' hold a value"),
        ("if(a > 2, [a], [a, b])", "line 5: .* of 1 to 2 numbers; .*, and most have 2"),
        ("[a::VARCHAR]", r"column 'content' is VARCHAR\[\], expected a list of numbers"),
    ],
)
def test_embeddings(tmp_path: Path, content: str, message: str | None) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    log = [f"u{i % 3},s{i % 7},{100 + i},{i % 2}" for i in range(60)]
    (raw / "log.csv").write_text("\n".join(["customer,sku,moment,bought", *log, ""]))
    goods = [f"s{i},{i},{-2 * i}" for i in range(4)]
    (raw / "goods.csv").write_text("\n".join(["sku,a,b", *goods, ""]))
    select = f"SELECT sku AS item, {content} AS content FROM read_csv('{{raw}}/goods.csv')"
    raw_definition = apply_overrides(SHOP, (f"source.items={select}",))
    definition = validate(DatasetDefinition, raw_definition, "shop.toml")
    if message is not None:
        with pytest.raises(UserError, match=message):
            prepare(definition, tmp_path / "out", raw=raw)
        return
    data = prepare(definition, tmp_path / "out", raw=raw)
    if content.startswith("NULL"):
        assert data.manifest.content_dim is None
        return
    vectors = dict(
        zip(data.items["raw_id"].to_pylist(), data.items["content"].to_pylist(), strict=True)
    )
    assert vectors["s2"] == [2.0, -4.0]  # integers are taken as the numbers that they are
    assert vectors["s6"] == [0.0, 0.0]
    assert vectors["s3"] == ([3.0, -6.0] if content.startswith("[") else [0.0, 0.0])
