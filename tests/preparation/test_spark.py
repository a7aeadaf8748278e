"""Preparation on a local Spark writes the very bytes that DuckDB writes, or says why it cannot."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from shop import SHOP, define, digest, shop_log

from benchmarks.prepare import DEFINITION
from benchmarks.scale.log import write_log
from hisac_rec.config import load_config, validate
from hisac_rec.errors import UserError
from hisac_rec.preparation import prepare as preparing
from hisac_rec.preparation import rawlog
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.preparation.work import read_record
from hisac_rec.shipped import find_config

here = find_spec("pyspark") is not None and find_spec("sqlglot") is not None
pytestmark = [
    pytest.mark.spark,
    pytest.mark.skipif(not here, reason="pyspark is not installed: make spark"),
    pytest.mark.skipif(shutil.which("java") is None, reason="java is not on the PATH"),
]
SPARK: dict[str, Any] = {
    "engine": "spark",
    "threads": 2,
    "memory_limit": "1GB",
    "spark": ["spark.sql.shuffle.partitions=3", "spark.master=local[2]"],
}


def assert_equal(definition: DatasetDefinition, raw: Path, out: Path) -> dict[str, str]:
    """Prepare with both engines; the digests of the files, which must be the same."""
    duck = prepare(definition, out / "duckdb", raw=raw, origin="x.toml")
    spark = prepare(definition, out / "spark", raw=raw, origin="x.toml", **SPARK)
    expected = digest(duck.root, "**/*.*")
    assert digest(spark.root, "**/*.*") == expected
    return expected


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["requests.group=epoch(make_time) // 3600"],
        ["requests.group=event", "requests.train_group_events=3", "history.max_length=9"],
        ["split={by = 'user_fraction', train = 0.7, valid = 0.2}", "features.min_count.tags=3"],
        ["split.cold_items=0.2", "history.min_events=2"],
        ["requests.tasks.early=CASE WHEN type = 'view' THEN bought = 1 END"],
    ],
)
def test_a_shop(tmp_path: Path, overrides: list[str]) -> None:
    """Texts, embeddings, lists, text ids, text groups, ties in time."""
    overrides = [o.replace("epoch(make_time)", "time") for o in overrides]
    assert_equal(define(*overrides), shop_log(tmp_path / "raw"), tmp_path)


def test_negatives(tmp_path: Path) -> None:
    definition = define("requests.negatives.per_positive=2", "requests.label=1 = 1")
    assert_equal(definition, shop_log(tmp_path / "raw"), tmp_path)


def test_many_blocks_and_numbers_as_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rawlog, "BLOCK_EVENTS", 2_000)
    write_log(tmp_path / "raw", events=20_000, users=200, items=500, seed=0, threads=2)
    assert_equal(load_config(DatasetDefinition, DEFINITION), tmp_path / "raw", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("movielens_100k", "ml-100k"),
        ("movielens_1m", "ml-1m"),
        ("kuairand_pure", "kuairand-pure-slice"),
        ("statics2011", "statics2011"),
    ],
)
def test_real_logs(tmp_path: Path, shared_data: Path, name: str, folder: str) -> None:
    definition = load_config(DatasetDefinition, find_config("datasets", name))
    assert_equal(definition, shared_data / folder, tmp_path)


def test_it_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = shop_log(tmp_path / "raw"), tmp_path / "spark"
    whole = prepare(define(), tmp_path / "duckdb", raw=raw)

    def fail(*_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "write_splits", fail)
        with pytest.raises(RuntimeError):
            prepare(define(), out, raw=raw, **SPARK)
    monkeypatch.setattr(
        "pyspark.sql.readwriter.DataFrameWriter.parquet", fail
    )  # nothing is written by Spark again
    prepare(define(), out, raw=raw, **SPARK)
    assert digest(out, "**/*.*") == digest(whole.root, "**/*.*")
    assert "sort events" in [stage.title for stage in read_record(out)]


EVENTS = SHOP["source"]["events"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("requests.label", "jaccard(type, 'view') > 0.5", "jaccard.*not known to mean the same"),
        ("requests.group", "md5_number(session)", "md5_number.*not known to mean the same"),
        ("history.where", "regexp_replace(type, 'i', 'o') = 'voew'", "regexp_replace: Spark"),
        ("source.events", EVENTS.replace("csv')", "csv', skip = 1)"), "option skip of read_csv"),
        ("source.events", f"SELECT *, row_number() OVER () AS n FROM ({EVENTS})", "without ORDER"),
        ("source.events", EVENTS.replace("bought", "CAST(kind AS INT) AS bought"), "CAST_INVALID"),
        ("source.items", "SELECT unnest([1, 2]) AS item", "without FROM: use a subquery"),
    ],
)
def test_messages(tmp_path: Path, key: str, value: str, message: str) -> None:
    raw = shop_log(tmp_path / "raw")
    shop = validate(DatasetDefinition, SHOP, "x.toml").model_dump(exclude_none=True)
    part, _, name = key.partition(".")
    shop[part][name] = value
    definition = validate(DatasetDefinition, shop, "x.toml")
    with pytest.raises(UserError, match=rf"(?s)x.toml: key '{key}'.*{message}"):
        prepare(definition, tmp_path / "out", raw=raw, origin="x.toml", **SPARK)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"], "something half-written is left"


def test_settings(tmp_path: Path) -> None:
    for setting, message in (
        ("master=local", "expected spark.KEY=VALUE"),
        ("spark.sql.session.timeZone=CET", "is UTC here, the rows depend on it"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(
                define(),
                tmp_path / "x",
                raw=shop_log(tmp_path / "raw"),
                engine="spark",
                spark=[setting],
            )
