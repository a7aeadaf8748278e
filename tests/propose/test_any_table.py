"""Whatever the table: a definition that ``prepare`` accepts, or an error that a person can mend."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from hisac_rec.errors import UserError
from hisac_rec.propose.look import propose
from hisac_rec.propose.proposal import Options

NAMES = [
    "user", "user_id", "Customer ID", "item", "sku", "movieId", "time", "timestamp", "created at",
    "date", "label", "click", "rating", "event_type", "session", "like", "group", "order", "type",
    "value", "id", "text", "content", "sequence", "price", "x\"y", "ä", "e0", "quantity", "1st",
]  # fmt: skip
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
MOMENTS: list[st.SearchStrategy[Any]] = [
    st.integers(1_700_000_000, 1_700_900_000),
    st.integers(1_700_000_000_000, 1_700_900_000_000),
    st.integers(0, 10**6).map(lambda s: NOON.replace(tzinfo=None) + timedelta(seconds=s)),
    st.integers(0, 10**6).map(lambda s: NOON + timedelta(seconds=s)),
    st.integers(0, 40).map(lambda d: date(2024, 1, 1) + timedelta(days=d)),
    st.integers(0, 10**6).map(lambda s: (NOON + timedelta(seconds=s)).strftime("%d/%m/%Y %H:%M")),
    st.integers(0, 10**6).map(lambda s: (NOON + timedelta(seconds=s)).isoformat()),
]
SCALARS: list[st.SearchStrategy[Any]] = [
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(-5, 2**40),
    *MOMENTS,
    st.floats(0, 1),
    st.floats(width=32),
    st.booleans(),
    st.sampled_from(["view", "cart", "purchase"]),
    st.sampled_from(["yes", "no"]),
    st.text(max_size=8),
    st.sampled_from([f"u{k}" for k in range(12)]),
]
LISTS = [
    st.lists(st.floats(-1, 1), min_size=8, max_size=8),
    st.lists(st.integers(0, 9), max_size=4),
    st.lists(st.sampled_from(["a", "b"]), max_size=3),
]


@st.composite
def tables(draw: Callable[..., Any], *, lists: bool) -> pa.Table:
    plausible = draw(st.integers(0, 3)) > 0
    rows = draw(st.integers(40, 120) if plausible else st.integers(1, 60))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=7, unique=True))
    kinds = {name: draw(st.sampled_from(SCALARS + (LISTS if lists else []))) for name in names}
    if plausible:
        ids = [st.integers(0, 12), st.sampled_from([f"u{k}" for k in range(12)])]
        kinds["user_id"], kinds["item_id"] = draw(st.permutations(ids))
        kinds["time"] = draw(st.sampled_from(MOMENTS))
    columns = {}
    for name, kind in kinds.items():
        one = st.none() | kind if draw(st.integers(0, 4)) == 0 else kind
        columns[name] = draw(st.lists(one, min_size=rows, max_size=rows))
    return pa.table(columns)


def look(table: pa.Table, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file, scratch = Path(folder) / f"log.{suffix}", Path(folder) / "scratch"
        scratch.mkdir()
        if suffix == "csv":
            pa_csv.write_csv(table, file)
        else:
            pq.write_table(table, file)
        try:
            found = propose(Options((file,)), Path(folder) / "out.toml", scratch, threads=1)
        except UserError as error:
            event("refused")
            refused = str(error)
        else:
            event("proposed")
            refused = ""
            assert found.manifest.splits["test"].candidates > 0
        # These would be SQL of ours that does not run.
        assert "cannot go on" not in refused
        assert "the SQL does not run" not in refused


QUICK = settings(max_examples=6, deadline=None, derandomize=True, database=None)
LONG = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@QUICK
@given(tables(lists=True))
def test_parquet(table: pa.Table) -> None:
    look(table, "parquet")


@pytest.mark.slow
@LONG
@given(tables(lists=True))
def test_parquet_long(table: pa.Table) -> None:
    look(table, "parquet")


@pytest.mark.slow
@LONG
@given(tables(lists=False))
def test_csv_long(table: pa.Table) -> None:
    look(table, "csv")
