"""Item features as arrays, and ids of ``items.parquet`` beyond their tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.data.contract import Feature, PreparedData
from hisac_rec.data.inputs import InputConfig, build_input_spec
from hisac_rec.data.items import ItemStore, Ragged, load_items
from hisac_rec.errors import UserError
from hisac_rec.semantic.store import prefix_ids

FEATURES = [Feature(name="brand", rows=7), Feature(name="tags", rows=5, multi=True)]


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return write_prepared(tmp_path, items=20, users=5, item_features=FEATURES)


def load(data: PreparedData, **keys: Any) -> ItemStore:
    codes = np.stack([np.arange(20) % 3, np.arange(20) % 4], 1).astype(np.int32)
    spec = build_input_spec(InputConfig(**keys), data.manifest, (3, 4))
    return load_items(data, spec, codes)


def test_columns(data: PreparedData) -> None:
    items, table = load(data), data.items.to_pydict()
    rows = np.array([3, 0, 19, 3])
    of = items.of_coded(rows)
    assert items.column("item", of).tolist() == rows.tolist()
    assert items.column("brand", of).tolist() == [table["brand"][i] for i in rows]
    assert items.column("sid2", of).tolist() == (rows % 4).tolist()
    assert (items.column("prefix2", of) == prefix_ids(items.codes, [3, 4])[rows, 1]).all()
    values, lengths = items.multi["tags"].take(rows)
    assert lengths.tolist() == [2] * 4
    assert values.tolist() == [tag for i in rows for tag in table["tags"][i]]


def test_ragged_rows_of_any_length() -> None:
    ragged = Ragged(np.array([0, 2, 2, 5]), np.array([1, 2, 3, 4, 5], np.int32))
    values, lengths = ragged.take(np.array([2, 1, 0, 2]))
    assert values.tolist() == [3, 4, 5, 1, 2, 3, 4, 5]
    assert lengths.tolist() == [3, 0, 2, 3]


def rewrite(data: PreparedData, name: str, values: list[Any]) -> PreparedData:
    table = data.items
    at = table.column_names.index(name)
    column = pa.array(values, table.schema.field(name).type)
    pq.write_table(table.set_column(at, name, column), data.root / "items.parquet")
    return PreparedData(data.root)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("brand", 7, "row 4: brand = 7 is outside its table of 7 rows"),
        ("brand", None, "row 4: brand = None is outside"),
        ("tags", [1, -2], "row 4: tags = -2 is outside its table of 5 rows"),
    ],
)
def test_out_of_range(data: PreparedData, name: str, bad: Any, message: str) -> None:
    values = data.items[name].to_pylist()
    values[4] = bad
    broken = rewrite(data, name, values)
    with pytest.raises(UserError, match=rf"items.parquet: {message}"):
        load(broken)
    items = load(broken, out_of_range="unknown")
    found = items.multi["tags"].values if name == "tags" else items.single[name]
    assert int(found.min()) >= 0
    assert int(found.max()) < 7


def test_missing_column(data: PreparedData) -> None:
    pq.write_table(data.items.drop_columns(["tags"]), data.root / "items.parquet")
    with pytest.raises(UserError, match=r"items.parquet: column 'tags' is missing"):
        load(PreparedData(data.root))
