"""Every way a prepared folder can break the contract has a message that says where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.parquet import check_columns
from hisac_rec.data.validate import validate_prepared
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.preparation.synthetic_config import SyntheticConfig

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    config = SyntheticConfig(
        users=30, items=40, branches=[4, 4], length_min=20, length_median=30, length_max=60
    )
    definition = DatasetDefinition(name="small", synthetic=config)
    return prepare(definition, tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def root(good: PreparedData, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(good.root, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(path: Path, change: Callable[[Rows], object]) -> None:
    """Change some rows of a Parquet file, keeping its schema."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def test_what_prepare_writes_is_valid(root: Path) -> None:
    validate_prepared(root)


def set_in(*path: Any, value: Any) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        node: Any = rows
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in(3, "user", value=31), r"row 3: id 31 of 'user' is outside its table of 31 rows"),
        (set_in(4, "user_segment", value=-1), r"row 4: id -1 of 'user_segment'"),
        (set_in(5, "history_item", 7, value=41), r"row 5: id 41 of 'history_item' .*41 rows \(0"),
        (set_in(5, "history_type", 7, value=2), r"row 5: id 2 of 'history_type'"),
        (set_in(6, "history_time", 2, value=1), r"row 6: history is not sorted by time: event 2 "),
        (set_in(0, "history_time", 0, value=1 << 40), r"row 0: history is not sorted by time"),
        (set_in(7, "history_time", value=[1]), "differ in length"),
        (set_in(8, "requests", 1, "history_end", value=999), r"row 8: history_end 999 is outside"),
        (set_in(8, "requests", 1, "history_end", value=-1), r"row 8: history_end -1 is outside"),
        (set_in(9, "requests", 4, "time", value=1), r"row 9: the request at time 1 may see an eve"),
        (set_in(9, "requests", 0, "time", value=1 << 40), "row 9: requests are not sorted"),
        (set_in(2, "requests", 1, "items", 3, value=41), r"row 2: id 41 of 'requests.items'"),
        (set_in(2, "requests", 1, "labels", 3, value=1.5), r"row 2: label 1.5 is outside \[0, 1\]"),
        (set_in(2, "requests", 1, "labels", 3, value=float("nan")), r"row 2: label nan"),
        (set_in(2, "requests", 1, "labels", value=[1.0]), "items and labels differ in number"),
        (set_in(2, "requests", 1, "items", value=None), "a request's items and labels differ"),
        (set_in(2, "history_item", value=None), "column 'history_item' holds a null"),
    ],
)
def test_rows(root: Path, change: Callable[[Rows], None], message: str) -> None:
    path = root / "train" / "part-00000.parquet"
    rewrite(path, change)
    with pytest.raises(UserError, match=f"part-00000.parquet.*{message}"):
        validate_prepared(root)


def test_rows_are_counted_through_the_file(root: Path) -> None:
    path = root / "test" / "part-00000.parquet"
    rewrite(path, set_in(25, "history_item", 0, value=-7))
    pq.write_table(pq.read_table(path), path, row_group_size=10)
    with pytest.raises(UserError, match="row 25: id -7 of 'history_item'"):
        validate_prepared(root)


def test_item_features(root: Path) -> None:
    rewrite(root / "items.parquet", set_in(12, "category", value=5))
    with pytest.raises(UserError, match=r"items.parquet, row 12: id 5 of 'category'"):
        validate_prepared(root)


def test_missing_column(root: Path) -> None:
    path = root / "valid" / "part-00000.parquet"
    table = pq.read_table(path)
    names = ["history_times" if n == "history_time" else n for n in table.column_names]
    pq.write_table(table.rename_columns(names), path)
    message = r"valid/part-.*: column 'history_time' is missing; did you mean 'history_times'"
    with pytest.raises(UserError, match=message):
        validate_prepared(root)
    with pytest.raises(UserError, match=r"x.parquet: column 'a' is missing; valid names are: b"):
        check_columns(Path("x.parquet"), ["b"], ["a"])


def test_wrong_type(root: Path) -> None:
    path = root / "valid" / "part-00000.parquet"
    table = pq.read_table(path)
    column = table["history_item"].cast(pa.list_(pa.int64()))
    at = table.column_names.index("history_item")
    pq.write_table(table.set_column(at, "history_item", column), path)
    message = r"column 'history_item' is list<.*int64>, expected list<.*int32>"
    with pytest.raises(UserError, match=message):
        validate_prepared(root)


@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_cut_short(root: Path, kept: int) -> None:
    path = root / "train" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"train/part-00000.parquet: damaged Parquet file"):
        validate_prepared(root)


def test_overwritten_in_the_middle(root: Path) -> None:
    path = root / "train" / "part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[200:2000] = b"\xff" * 1800
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"train/part-00000.parquet"):
        validate_prepared(root)
