"""From a shop's raw event log to a prepared folder: contents, leaks, messages, wholeness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shop import SHOP, define, digest, shop_log

from hisac_rec.config import validate
from hisac_rec.data.contract import SPLITS, PreparedData
from hisac_rec.errors import UserError
from hisac_rec.preparation import rawlog, writer
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., PreparedData]:
    """Prepare the shop with overrides; raw files are made where absent."""

    def run(*overrides: str, out: str = "out", **options: Any) -> PreparedData:
        raw = tmp_path / "raw"
        if not raw.exists():
            shop_log(raw)
        options = {"raw": raw, "origin": "shop.toml", **options}
        return prepare(define(*overrides), tmp_path / out, **options)

    return run


def rows(data: PreparedData, split: str) -> list[dict[str, Any]]:
    return pq.read_table(data.root / split).to_pylist()


def test_every_request_sees_exactly_the_earlier_history(make: Callable[..., PreparedData]) -> None:
    """Rebuild every request from the raw file with an unrelated, brute-force query."""
    data = make()
    raw = data.root.parent / "raw" / "events.csv"
    log = duckdb.execute(
        "SELECT customer, sku, epoch(moment::TIMESTAMP)::BIGINT AS at_, kind, session, bought "
        f"FROM read_csv('{raw}')"
    ).fetchall()
    items = data.items["raw_id"].to_pylist()
    users = pq.read_table(data.root / "vocab" / "user.parquet")["value"].to_pylist()
    types = data.manifest.event_types
    bounds = {"train": (0, 1_700_060_000), "valid": (1_700_060_000, 1_700_080_000)}
    bounds["test"] = (1_700_080_000, 1 << 60)
    candidates = 0
    for split in SPLITS:
        low, high = bounds[split]
        for row in rows(data, split):
            mine = [e for e in log if e[0] == users[row["user"]]]
            for request in row["requests"]:
                end, time = request["history_end"], request["time"]
                seen = [(e[2], e[1], e[3]) for e in mine if e[2] < time and e[3] != "skip"]
                stored = zip(
                    row["history_time"][:end],
                    [items[i] for i in row["history_item"][:end]],
                    [types[t] for t in row["history_type"][:end]],
                    strict=True,
                )
                assert sorted(stored) == sorted(seen)
                shown = [
                    (items[i], y) for i, y in zip(request["items"], request["labels"], strict=True)
                ]
                sessions = {e[4] for e in mine if e[2] == time}
                views = [
                    [
                        (e[1], e[5])
                        for e in mine
                        if e[4] == s and e[3] == "view" and low <= e[2] < high
                    ]
                    for s in sessions
                ]
                assert sorted(shown) in [sorted(v) for v in views]
                candidates += len(shown)
    assert candidates == sum(e[3] == "view" for e in log)


def test_items_and_vocabularies(make: Callable[..., PreparedData]) -> None:
    data = make("features.min_count.tags=3")
    assert data.manifest.event_types == ["cart", "view"]
    assert data.manifest.content_dim == 2
    assert data.manifest.has_text
    assert [f.name for f in data.manifest.item_features] == ["shelf", "tags"]
    table = data.items.to_pylist()
    unknown, first = table[0], table[1]
    assert unknown["tags"] == [0]
    assert unknown["content"] == [0.0, 0.0]
    assert (unknown["raw_id"], unknown["text"], unknown["train_count"]) == (None, "", 0)
    shelves = pq.read_table(data.root / "vocab" / "shelf.parquet")["value"].to_pylist()
    assert shelves == [None, "low", "middle", "top"]
    assert first["raw_id"] == "s0"
    assert shelves[first["shelf"]] == "top"
    assert len(table) == 61  # 10 goods nobody saw are in the catalogue
    shown = [i for r in rows(data, "train") for q in r["requests"] for i in q["items"]]
    assert [item["train_count"] for item in table] == np.bincount(shown, minlength=61).tolist()
    assert all(item["first_time"] is None or item["first_time"] < 1_700_060_000 for item in table)
    assert data.stats.candidates_max == max(
        len(q["items"]) for r in rows(data, "train") for q in r["requests"]
    )
    ends = [q["history_end"] for r in rows(data, "train") for q in r["requests"]]
    assert data.stats.history_length_mean == pytest.approx(np.mean(ends))
    assert data.stats.history_length_quantiles["1.0"] == max(ends)
    assert data.stats.history_length_quantiles["0.5"] == np.quantile(
        ends, 0.5, method="inverted_cdf"
    )


def test_new_keys_of_a_definition_leave_fingerprints_as_they_are(
    make: Callable[..., PreparedData],
) -> None:
    """Trained models and committed comparisons name the data by it: default new keys to None."""
    assert make().manifest.fingerprint == "a3655d2e967e66da88fcc78669112150"


def test_cold_items_come_in_with_the_validation_period(make: Callable[..., PreparedData]) -> None:
    data, cold = make(), make("split.cold_items=0.3", out="cold")
    for split in SPLITS:
        users = {row["user"] for row in rows(data, split)}
        assert users == {row["user"] for row in rows(cold, split)}
    table = cold.items.to_pylist()
    out = {i for i, item in enumerate(table) if item["first_time"] is None and i}
    never = {i for i, item in enumerate(data.items.to_pylist()) if item["first_time"] is None}
    assert 8 < len(out - never) < 25  # of the 50 items that are ever seen
    train = rows(cold, "train")
    in_train = {i for row in train for i in row["history_item"]}
    in_train |= {i for row in train for q in row["requests"] for i in q["items"]}
    assert not in_train & out
    for before, after in zip(rows(data, "train"), train, strict=True):
        kept = [i for i in before["history_item"] if i not in out]
        both = min(len(kept), len(after["history_item"]))  # a last request may have gone, or moved
        assert kept[:both] == after["history_item"][:both]
    shown = {i for row in rows(cold, "test") for q in row["requests"] for i in q["items"]}
    assert shown == {i for row in rows(data, "test") for q in row["requests"] for i in q["items"]}
    past = [
        item
        for row in rows(cold, "test")
        for item, time in zip(row["history_item"], row["history_time"], strict=True)
        if time < 1_700_060_000
    ]
    assert past
    assert not set(past) & out


def test_order_of_the_raw_file_and_threads_change_nothing(tmp_path: Path) -> None:
    one = prepare(define(), tmp_path / "a", raw=shop_log(tmp_path / "r1"), threads=1)
    raw = shop_log(tmp_path / "r2", order=3)
    two = prepare(define(), tmp_path / "b", raw=raw, threads=2, memory_limit="200MB")
    assert digest(one.root, "**/*.*") == digest(two.root, "**/*.*")


def test_the_future_does_not_reach_training(tmp_path: Path) -> None:
    """Change every event from valid on: nothing of the training period moves."""
    raw = shop_log(tmp_path / "raw")
    now = prepare(define(), tmp_path / "now", raw=raw)
    lines = (raw / "events.csv").read_text().splitlines()
    for index, line in enumerate(lines[1:], start=1):
        cells = line.split(",")
        if np.datetime64(cells[2], "s").astype(int) >= 1_700_060_000:
            cells[1], cells[5], cells[6] = f"s{index % 50}", str(index % 2), f"t{index}"
            lines[index] = ",".join(cells)
    (raw / "events.csv").write_text("\n".join(lines) + "\n")
    users = """SELECT customer AS user, arg_min(town, moment) AS town
        FROM read_csv('{raw}/events.csv') GROUP BY 1"""
    later = prepare(define(f"source.users={users}"), tmp_path / "later", raw=raw)
    assert rows(now, "test") != rows(later, "test")
    assert digest(now.root, "train/*") == digest(later.root, "train/*")
    for name in ("items.parquet", "vocab/shelf.parquet", "vocab/tags.parquet", "stats.json"):
        assert digest(now.root, name) == digest(later.root, name)


def test_values_first_seen_after_training_are_unknown(make: Callable[..., PreparedData]) -> None:
    items = """SELECT sku AS item, CASE sku WHEN 's7' THEN 'secret' ELSE 'open' END AS shelf
        FROM read_csv('{raw}/goods.csv')"""
    events = (
        SHOP["source"]["events"] + " WHERE sku <> 's7' OR moment >= TIMESTAMP '2023-11-15 15:00'"
    )
    data = make(f"source.items={items}", f"source.events={events}")
    values = pq.read_table(data.root / "vocab" / "shelf.parquet")["value"].to_pylist()
    assert values == [None, "open"]
    late = data.items.filter(pa.compute.equal(data.items["raw_id"], "s7")).to_pylist()[0]
    assert late["shelf"] == 0
    assert late["first_time"] is None
    assert late["train_count"] == 0


def test_blocks_and_files_of_any_size_hold_the_same(
    make: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(out="whole")
    monkeypatch.setattr(rawlog, "BLOCK_EVENTS", 100)
    monkeypatch.setattr(writer, "GROUP_USERS", 4)
    monkeypatch.setattr(writer, "FILE_USERS", 10)
    parts = make(out="parts")
    assert len(parts.split_files("train")) > 3
    for split in SPLITS:
        assert rows(whole, split) == rows(parts, split)
        for path in parts.split_files(split):
            file = pq.ParquetFile(path)
            groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            assert max(groups) <= 4
            assert sum(groups) <= 10


def test_no_types_no_items_no_users(tmp_path: Path) -> None:
    events = """SELECT customer AS user, sku AS item, epoch(moment::TIMESTAMP)::BIGINT AS time,
        1 AS y FROM read_csv('{raw}/events.csv') -- no more"""
    raw = shop_log(tmp_path / "raw")
    bare = {
        "name": "bare",
        "source": {"files": ["*.csv"], "events": events},
        "requests": {"label": "y = 1"},
    }
    data = prepare(validate(DatasetDefinition, bare, "bare.toml"), tmp_path / "bare", raw=raw)
    assert data.manifest.event_types == ["event"]
    assert data.manifest.item_features == []
    assert data.items.column_names == ["item", "raw_id", "train_count", "first_time"]
    assert data.manifest.splits["test"].positives == data.manifest.splits["test"].candidates


BAD_EVENTS = [
    ("1 AS user, 2 AS itm, 3 AS time", "has no column 'item'; did you mean 'itm'"),
    ("a FROM", "the SQL does not run:\n.*syntax error"),
    ("1 AS user, 2 AS item, now() AS time", r"'time' is TIMESTAMP.*: write epoch\(time\)"),
    ("1.5 AS user, 2 AS item, 3 AS time", "'user' is DECIMAL.*expected an integer or text"),
    ("1 AS user, 2 AS item, 3 AS time WHERE false", "no events: the SELECT gives no row"),
    ("unnest([1, NULL]) AS user, 2 AS item, 3 AS time", r"1 rows have no user \(NULL\)"),
]
BAD_ITEMS = [
    ("a FROM nowhere", "the SQL does not run:\n.*nowhere"),
    ("'s1' AS item FROM range(2)", "item 's1' has several rows"),
    ("'s1' AS item, 0.5::DOUBLE AS price", "'price' is DOUBLE, expected a category"),
    ("'s1' AS item, 1 AS value", "a feature cannot be called 'value'"),
    ("'s1' AS item, 'x' AS content", "'content' is VARCHAR, expected a list of numbers"),
    (
        "unnest(['s1', 's2']) AS item, unnest([[1.0], [1.0, 2.0]]) AS content",
        "'content' is of 1 to 2 numbers",
    ),
]
BAD_KEYS = [
    (
        "source.users",
        "SELECT 'c1' AS user, ['a'] AS towns",
        r"'towns' is VARCHAR\[\], expected one",
    ),
    (
        "source.files",
        "['events.csv', 'prices.csv']",
        "prices.csv: raw file is missing.*\n.*the shop",
    ),
    ("features.item", "['shelve']", "no column 'shelve' in source.items; did you mean 'shelf'"),
    ("features.min_count.tag", "3", "no feature 'tag'; did you mean 'tags'"),
    ("history.where", "tpe = 'view'", "key 'history.where': the SQL does not run"),
    ("history.where", "type || 'x'", r"history.where': is VARCHAR, expected a condition"),
    ("history.where", "type = 'nothing'", "history.where': no event is history"),
    ("requests.label", "type", "requests.label': is VARCHAR, expected BOOLEAN or a number"),
    ("requests.label", "bought * 2", r"\d+ candidates have no label in .* user c0 \(2"),
    ("requests.label", "CASE WHEN type = 'cart' THEN 1 END", r"one of user c0 \(NULL\)"),
    ("requests.group", "sesion", "key 'requests.group': the SQL does not run"),
    ("requests.where", "1 = 0", "the train split is empty"),
    ("split.test_from", "1800000000", "the test split is empty"),
]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(("source.events", f"SELECT {sql}", message) for sql, message in BAD_EVENTS),
        *(("source.items", f"SELECT {sql}", message) for sql, message in BAD_ITEMS),
        *BAD_KEYS,
    ],
)
def test_messages(
    make: Callable[..., PreparedData], tmp_path: Path, key: str, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(f"{key}={value}")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "something half-written is left"


def test_too_many_types(make: Callable[..., PreparedData]) -> None:
    events = """SELECT 1 AS user, 1 AS item, i AS time, 't' || i AS type, 0 AS bought,
        1 AS session FROM range(200) t(i)"""
    with pytest.raises(UserError, match="history has 200 types, at most 127"):
        make(f"source.events={events}")


def test_raw_folder_messages(make: Callable[..., PreparedData], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give their folder with --raw\n.*ask the shop"):
        make(raw=None)
    with pytest.raises(UserError, match=r"nothing: no such folder.*\n.*ask the shop"):
        make(raw=tmp_path / "nothing")


def test_memory_limit_message(make: Callable[..., PreparedData]) -> None:
    with pytest.raises(UserError, match="--memory-limit 'much': expected an amount such as 4GB"):
        make(memory_limit="much")


def test_force(make: Callable[..., PreparedData], tmp_path: Path) -> None:
    first = make()
    with pytest.raises(UserError, match="exists already; give another --out, or --force"):
        make()
    (first.root / "codebook.parquet").write_text("of the old data")
    again = make(force=True)
    assert again.manifest == first.manifest
    assert not (again.root / "codebook.parquet").exists()
    other = tmp_path / "home"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is no prepared data set, so --force does not replace"):
        make(out="home", force=True)
    assert (other / "letter.txt").read_text() == "dear"


def test_failed_force_keeps_the_old(make: Callable[..., PreparedData]) -> None:
    before = digest(make().root, "**/*.*")
    with pytest.raises(UserError):
        make("requests.where=1 = 0", force=True)
    assert digest(make(out="new").root, "**/*.*") == before


def test_fingerprint_tells_data_apart_but_not_later_steps(
    make: Callable[..., PreparedData],
) -> None:
    base = make().manifest.fingerprint
    assert make("semantic_ids.codes=[4, 4]", out="b").manifest.fingerprint == base
    assert make("history.min_events=2", out="c").manifest.fingerprint != base


def test_votes_count_for_min_events_and_nothing_else(make: Callable[..., PreparedData]) -> None:
    """A history of everything has the requests of one of successes, and more to read."""
    few = make("history.where=type = 'cart'", "history.min_events=2", out="few")
    votes = "history.votes={view=0,skip=-1}"
    all_events = make("history.where=1 = 1", "history.min_events=2", votes, out="all")
    assert all_events.manifest.votes == {"view": 0.0, "skip": -1.0}
    assert few.manifest.votes is None
    for split in SPLITS:
        for a, b in zip(rows(few, split), rows(all_events, split), strict=True):
            for of_few, of_all in zip(a["requests"], b["requests"], strict=True):
                assert of_few["items"] == of_all["items"]
                assert of_few["history_end"] <= of_all["history_end"]
    counts = [data.manifest.splits["test"].events for data in (few, all_events)]
    assert counts[0] < counts[1]


def test_votes_name_event_types_of_the_history(make: Callable[..., PreparedData]) -> None:
    message = r"shop\.toml: key 'history\.votes': .*no event type 'carts'; did you mean 'cart'\?"
    with pytest.raises(UserError, match=message):
        make("history.votes={carts=2}")


def test_max_length_keeps_what_is_seen(make: Callable[..., PreparedData]) -> None:
    whole, short = make(out="whole"), make("history.max_length=5", out="short")
    for split in SPLITS:
        for full, cut in zip(rows(whole, split), rows(short, split), strict=True):
            for a, b in zip(full["requests"], cut["requests"], strict=True):
                seen = full["history_item"][: a["history_end"]][-5:]
                assert cut["history_item"][: b["history_end"]][-5:] == seen
    assert short.manifest.splits["test"].events < whole.manifest.splits["test"].events


def test_spark_says_what_it_needs(
    make: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hisac_rec.preparation.spark.session.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs pyspark and sqlglot: python requirements/install"):
        make(engine="spark")
