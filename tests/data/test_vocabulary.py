"""Hashed vocabularies: stable, even, and the same ids wherever they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.config import validate
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.vocabulary import KEYS, VocabularyConfig, rows_of_ids
from hisac_rec.errors import UserError
from hisac_rec.ranker.config import TableConfig


def hashed(**keys: Any) -> VocabularyConfig:
    return VocabularyConfig.model_validate({"kind": "hashed", "rows": 100} | keys)


def named(root: Path, names: list[str]) -> PreparedData:
    """A data set whose items have these raw ids."""
    data = write_prepared(root, items=len(names) + 1)
    table = data.items.set_column(1, "raw_id", pa.array([None, *names]))
    pq.write_table(table, root / "items.parquet")
    return PreparedData(root)


def test_an_item_keeps_its_rows_when_it_is_numbered_anew(tmp_path: Path) -> None:
    names = [f"item-{number}" for number in range(500)]
    one = rows_of_ids(named(tmp_path / "one", names), "item", 501, hashed(hashes=2))
    other = rows_of_ids(named(tmp_path / "other", names[::-1]), "item", 501, hashed(hashes=2))
    assert np.array_equal(one[1:], other[:0:-1])
    assert (one[0] == 0).all()
    assert one[1:].min() >= 1
    assert one.max() < 100
    # Of one function most items share their row, of both together few share both.
    first, pairs = (len(np.unique(rows, axis=0)) for rows in (one[1:, 0], one[1:]))
    assert first <= 99
    assert pairs > 480
    single = rows_of_ids(PreparedData(tmp_path / "one"), "item", 501, hashed())
    assert np.array_equal(single, one[:, 0])


def test_keys_of_managed_tables(tmp_path: Path) -> None:
    data = named(tmp_path, [f"item-{number}" for number in range(500)])
    managed = VocabularyConfig(kind="managed", rows=64)
    keys = rows_of_ids(data, "item", 501, managed)
    assert keys[0] == 0
    assert len(np.unique(keys)) == 501
    assert keys[1:].min() > KEYS // 10_000
    assert keys.max() < KEYS
    # Equal blocks of keys are what ranks own: each gets its share of the items.
    assert np.bincount(keys // (KEYS // 4), minlength=4).min() > 90


def test_codes_are_hashed_by_their_numbers(tmp_path: Path) -> None:
    data = write_prepared(tmp_path)
    rows = rows_of_ids(data, "prefix2", 10_000, hashed(rows=1_000))
    assert rows[0] == 0
    assert len(np.unique(rows)) > 990
    with pytest.raises(UserError, match=r"vocab/brand.parquet: not there"):
        rows_of_ids(data, "brand", 10, hashed())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "hashed"}, "kind = 'hashed' needs 'rows'"),
        ({"rows": 5}, "'rows' means nothing where kind = 'dense'"),
        ({"kind": "hashed", "rows": 5, "eviction": "lru"}, "'eviction' means nothing where"),
        ({"kind": "managed", "rows": 5, "hashes": 2}, "'hashes' means nothing where"),
        ({"kind": "managed", "rows": 5, "admission_value": 0.5}, "where admission = 'all'"),
        (
            {"kind": "managed", "rows": 5, "admission": "probabilistic", "admission_value": 3},
            "a probability here",
        ),
        ({"kind": "hash", "rows": 5}, "tables.vocabulary.item.kind' = 'hash'"),
        ({"kind": "hashed", "row": 5}, "unknown key 'vocabulary.item.row'; did you mean 'rows'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        validate(TableConfig, {"vocabulary": {"item": keys}}, "tables")
    assert message.removeprefix("tables.") in str(error.value)
