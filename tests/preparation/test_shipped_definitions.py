"""Shipped definitions against counts of the publishers' own files."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
from raw_files.kuairand import LOG

from hisac_rec.config import load_config
from hisac_rec.data.contract import SPLITS, PreparedData
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.shipped import find_config


def made(name: str, raw: Path, out: Path, *overrides: str) -> PreparedData:
    path = find_config("datasets", name)
    return prepare(load_config(DatasetDefinition, path, list(overrides)), out, raw=raw)


def test_kuairand(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "kuairand-pure-slice"
    data = made("kuairand_pure", raw, tmp_path / "data")
    splits = data.manifest.splits
    logs = f"read_parquet(['{raw}/val.parquet', '{raw}/test.parquet'])"
    for split, condition in {
        "train": "time_ms < 1651680000000",
        "valid": "time_ms >= 1651680000000 AND time_ms < 1651766400000",
        "test": "time_ms >= 1651766400000",
    }.items():
        rows, clicks = duckdb.sql(
            f"SELECT count(*), sum(is_click) FROM {logs} WHERE {condition}"
        ).fetchall()[0]
        assert splits[split].candidates == rows
        assert splits[split].positives == clicks
        for task, column in (("like", "is_like"), ("long_view", "long_view")):
            (found,) = [one for one in data.manifest.tasks if one.name == task]
            total = duckdb.sql(f"SELECT sum({column}) FROM {logs} WHERE {condition}").fetchall()
            assert (found.labelled[split], found.positives[split]) == (rows, total[0][0])
    assert data.manifest.event_types == ["before", "click", "long view"]
    assert next(f for f in data.manifest.item_features if f.name == "tag").multi


def test_movielens_100k(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "ml-100k"
    data = made("movielens_100k", raw, tmp_path / "data")
    ratings: dict[int, list[tuple[int, int, int]]] = {}
    for line in (raw / "u.data").read_text().splitlines():
        user, item, rating, time = map(int, line.split("\t"))
        ratings.setdefault(user, []).append((time, item, rating))
    # A rating is a candidate where at least five good ones are strictly older.
    expected = 0
    for events in ratings.values():
        liked = sorted(time for time, _, rating in events if rating >= 4)
        expected += sum(len(liked) > 4 and liked[4] < time for time, _, _ in events)
    assert sum(data.manifest.splits[split].candidates for split in SPLITS) == expected
    assert (data.manifest.users, data.manifest.items) == (944, 1683)
    vocabulary = pq.read_table(data.root / "vocab" / "genre.parquet")["value"].to_pylist()
    names = [line.split("|")[0] for line in (raw / "u.genre").read_text().split("\n") if line]
    kept = set(names) - {"unknown", "Children's"} | {"Children"}
    assert set(vocabulary) - {None} == kept
    toy_story = data.items.slice(1, 1).to_pylist()[0]
    assert toy_story["raw_id"] == "1"
    assert toy_story["text"].startswith("Toy Story . Animation Children Comedy . 1990s")
    assert sorted(vocabulary[g] for g in toy_story["genre"]) == ["Animation", "Children", "Comedy"]


def test_statics(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "statics2011"
    data = made("statics2011", raw, tmp_path / "data")
    blocks = []
    for file in ("STATICS_train.csv", "STATICS_test.csv"):
        lines = [line.strip().rstrip(",") for line in (raw / file).read_text().splitlines()]
        lines = [line for line in lines if line]
        blocks += [lines[at : at + 3] for at in range(0, len(lines), 3)]
    answers = sorted(tuple(right.split(",")) for _, _, right in blocks)
    assert data.manifest.users == len(blocks) + 1
    # The first five answers of a student are history alone.
    expected = sum(max(0, len(right) - 5) for right in answers)
    assert sum(data.manifest.splits[split].candidates for split in SPLITS) == expected
    rows = pq.read_table(data.root / "test", columns=["history_type", "requests"]).to_pylist()
    names = {"right": "1", "wrong": "0"}
    types = [names[name] for name in data.manifest.event_types]
    found = []
    for row in rows:
        last = row["requests"][-1]
        assert last["history_end"] == len(row["history_type"])
        label = str(int(last["labels"][-1]))
        found.append((*(types[kind] for kind in row["history_type"]), label))
    # A student's history and last label are the raw answers in their order.
    assert sorted(found) == [right for right in answers if len(right) > 5]


def test_movielens_latest(shared_data: Path, tmp_path: Path) -> None:
    raw = shared_data / "ml-latest-small"
    data = made("movielens_latest", raw, tmp_path / "data")
    expected = duckdb.sql(f"""
        WITH r AS (FROM read_csv('{raw}/ratings.csv')), fifth AS (
            SELECT userId, timestamp FROM r WHERE rating >= 4
            QUALIFY row_number() OVER (PARTITION BY userId ORDER BY timestamp) = 5
        ) SELECT count(*) FROM r JOIN fifth USING (userId) WHERE r.timestamp > fifth.timestamp
        """).fetchall()[0][0]
    assert sum(data.manifest.splits[split].candidates for split in SPLITS) == expected
    assert (data.manifest.users, data.manifest.items) == (611, 9743)
    assert data.items["text"][1].as_py().startswith("Toy Story . Adventure Animation")


def test_kuairand_csv(shared_data: Path, tmp_path: Path) -> None:
    """The publisher's own user and video files, and his log as he writes it."""
    raw, real = tmp_path / "raw", shared_data / "kuairand-pure-slice"
    raw.mkdir()
    for name in ("user_features_pure.csv", "video_features_basic_pure.csv"):
        shutil.copy(real / name, raw / name)
    columns = ", ".join(LOG)
    for days, split in (("4_08_to_4_21", "val"), ("4_22_to_5_08", "test")):
        duckdb.execute(
            f"COPY (SELECT {columns} FROM '{real}/{split}.parquet' WHERE user_id % 4 = 0) "
            f"TO '{raw}/log_standard_{days}_pure.csv'"
        )
    data = made("kuairand_pure_csv", raw, tmp_path / "data")
    both = f"read_parquet(['{real}/val.parquet', '{real}/test.parquet'])"
    rows, clicks = duckdb.sql(
        f"SELECT count(*), sum(is_click) FROM {both} WHERE user_id % 4 = 0"
    ).fetchall()[0]
    splits = data.manifest.splits.values()
    assert sum(split.candidates for split in splits) == rows
    assert sum(split.positives for split in splits) == clicks
    assert len(data.manifest.user_features) == 11
    assert any(data.items["author"].to_pylist())
