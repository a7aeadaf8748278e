"""Embeddings out of somebody else's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.embeddings import read_embeddings
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.semantic.store import load_semantics

ITEMS, WIDTH = 40, 5


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return write_prepared(tmp_path / "data", items=ITEMS)


def vectors(dtype: str = "float32") -> np.ndarray:
    found = np.random.default_rng(0).normal(size=(ITEMS, WIDTH))
    return (found * 40).clip(-127, 127).astype(dtype)


def write(path: Path, ids: list, column: pa.Array, name: str = "item") -> Path:
    pq.write_table(pa.table({name: ids, "embedding": column}), path)
    return path


def fixed(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


RAW = [f"raw-{i}" for i in range(1, ITEMS)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
@pytest.mark.parametrize("form", ["fixed", "list", "npy"])
def test_rows_find_their_items_in_any_order(
    data: PreparedData, tmp_path: Path, dtype: str, form: str
) -> None:
    order = np.random.default_rng(1).permutation(ITEMS - 1)
    ids = ["stranger", *(RAW[i] for i in order)]
    matrix = np.concatenate([vectors(dtype)[:1], vectors(dtype)[1:][order]])
    if form == "npy":
        path = tmp_path / "v.npy"
        np.save(path, matrix)
        (tmp_path / "v.ids.txt").write_text("\n".join(ids) + "\n")
    else:
        kind = pa.list_(pa.from_numpy_dtype(matrix.dtype))
        column = fixed(matrix) if form == "fixed" else pa.array(list(matrix), kind)
        path = write(tmp_path / "v.parquet", ids, column)
    found = read_embeddings(path, data)
    np.testing.assert_array_equal(found.vectors[1:], vectors(dtype)[1:].astype(np.float32))
    assert not found.vectors[0].any()
    assert f"{dtype} x 5 for 39 of 39 items (100.0%); 1 of its 40 rows" in found.coverage


def test_whole_numbers_are_ids_too_and_gaps_are_no_vector(tmp_path: Path) -> None:
    data = write_prepared(tmp_path / "data", items=4)
    table = data.items
    at = table.schema.get_field_index("raw_id")
    numbers = table.set_column(at, "raw_id", pa.array([None, "7", "8", "9"]))
    pq.write_table(numbers, data.root / "items.parquet")
    column = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    found = read_embeddings(write(tmp_path / "v.parquet", [9, 7], column), PreparedData(data.root))
    np.testing.assert_array_equal(found.vectors, [[0, 0], [0, 0], [0, 0], [1, 2]])
    assert "1 of 3 items (33.3%)" in found.coverage


def test_int8_gives_the_codes_of_the_floats_it_came_from(
    data: PreparedData, tmp_path: Path
) -> None:
    """One scale a row: nothing but rounding is lost."""
    floats = vectors()[1:]
    scale = np.abs(floats).max(1, keepdims=True) / 127
    path = write(tmp_path / "f.parquet", RAW, fixed(floats))
    small = write(tmp_path / "i.parquet", RAW, fixed(np.rint(floats / scale).astype(np.int8)))
    found = []
    for file in (path, small):
        config = resolve_config(data, ["codes=[3, 3]"], embeddings=file)
        assert config.source == "content"
        report = fit_semantic_ids(data, config)
        assert report.items_without_vector == 0
        assert "embeddings" in report.digests
        found.append(load_semantics(data).vectors[1:].astype(np.float32))
    assert np.linalg.norm(found[0] - found[1], axis=1).max() < 0.02
    assert not np.array_equal(found[0], found[1])


def spoiled(case: str, path: Path) -> Path:
    matrix, ids = vectors()[1:], list(RAW)
    ragged = [row.tolist() for row in matrix]
    column = fixed(matrix)
    if case == "twice":
        ids[7] = ids[2]
    elif case == "no id":
        ids[4] = None  # type: ignore[call-overload]
    elif case == "nan":
        matrix[9, 2] = np.nan
        column = fixed(matrix)
    elif case == "width":
        ragged[5] = ragged[5][:3]
        column = pa.array(ragged)
    elif case == "hole":
        ragged[6][1] = None  # type: ignore[call-overload]
        column = pa.array(ragged)
    elif case == "words":
        column = pa.array([["a"]] * len(ids))
    elif case == "strangers":
        ids = [f"x{i}" for i in range(len(ids))]
    return write(path, ids, column)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("twice", r"v\.parquet: row 7: item 'raw-3' is in row 2 already"),
        ("no id", r"v\.parquet: row 4: has no raw id"),
        ("nan", r"v\.parquet: row 9 \(item 'raw-10'\): its vector is not finite"),
        ("width", r"v\.parquet: row 5: 'embedding' has 3 values, row 0 has 5"),
        ("hole", r"v\.parquet: row 6: 'embedding' has an empty value"),
        ("words", r"holds lists of string; floats or int8"),
        ("strangers", r"none of its 39 ids is an item.*'x0', the data 'raw-1'"),
    ],
)
def test_what_is_wrong_is_named(data: PreparedData, tmp_path: Path, case: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_embeddings(spoiled(case, tmp_path / "v.parquet"), data)


def test_files_of_another_form_are_refused(data: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file of embeddings"):
        read_embeddings(tmp_path / "none.parquet", data)
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"item": ["a"], "score": [1.0]}), plain)
    with pytest.raises(UserError, match="columns item, score; expected one of lists"):
        read_embeddings(plain, data)
    np.save(tmp_path / "v.npy", vectors())
    with pytest.raises(UserError, match=r"v\.ids\.txt: no such file"):
        read_embeddings(tmp_path / "v.npy", data)
    (tmp_path / "v.ids.txt").write_text("raw-1\n")
    with pytest.raises(UserError, match=r"v\.ids\.txt: 1 lines, v\.npy has 40 rows"):
        read_embeddings(tmp_path / "v.npy", data)
    np.save(tmp_path / "v.npy", vectors()[0])
    with pytest.raises(UserError, match=r"float32\[5\]; a matrix"):
        read_embeddings(tmp_path / "v.npy", data)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_embeddings(tmp_path / "bad.parquet", data)


def test_the_key_needs_its_folder_and_its_source(data: PreparedData, tmp_path: Path) -> None:
    key = "embeddings={raw}/v.parquet"
    with pytest.raises(UserError, match="--raw"):
        resolve_config(data, [key])
    config = resolve_config(data, [key], raw=tmp_path)
    assert (config.embeddings, config.source) == (f"{tmp_path}/v.parquet", "content")
    with pytest.raises(UserError, match="does not read them"):
        resolve_config(data, [key, "source=collaborative"], raw=tmp_path)
