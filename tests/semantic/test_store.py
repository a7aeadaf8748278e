from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.store import load_semantics, prefix_ids, save_semantics

ITEMS, LEVELS, WIDTH = 50, 2, 6
COUNTS = [4, 3]


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, n, ITEMS) for n in COUNTS], axis=1).astype(np.int32)
    vectors = rng.normal(size=(ITEMS, WIDTH)).astype(np.float16)
    words = [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in COUNTS]
    return codes, vectors, words, rng.random(ITEMS) < 0.8


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return write_prepared(tmp_path / "data", items=ITEMS)


def save(data: PreparedData, arrays: tuple, fingerprint: str | None = None) -> str:
    return save_semantics(
        data.root,
        *arrays,
        data_fingerprint=fingerprint or data.manifest.fingerprint,
        report_json="{}",
    )


def test_what_is_saved_is_loaded(data: PreparedData, arrays: tuple) -> None:
    fit = save(data, arrays)
    semantics = load_semantics(data)
    codes, vectors, codebook, known = arrays
    np.testing.assert_array_equal(semantics.known, known)
    np.testing.assert_array_equal(semantics.codes, codes)
    np.testing.assert_array_equal(semantics.vectors, vectors)
    assert semantics.vectors.dtype == np.float16
    for got, expected in zip(semantics.codebook, codebook, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (semantics.code_counts, semantics.fingerprint) == (COUNTS, fit)
    assert not [path for path in data.root.iterdir() if path.name.endswith(".tmp")]


def test_the_files_follow_the_contract(data: PreparedData, arrays: tuple) -> None:
    save(data, arrays)
    ids = pq.read_schema(data.root / "semantic_ids.parquet")
    assert ids.field("item").type == pa.int32()
    assert pa.types.is_fixed_size_list(ids.field("codes").type)
    assert ids.field("codes").type.list_size == LEVELS
    assert ids.field("codes").type.value_type == pa.int32()
    assert ids.field("vector").type.list_size == WIDTH
    book = pq.read_table(data.root / "codebook.parquet")
    assert book.column("level").to_pylist() == [0] * 4 + [1] * 3
    assert book.schema.field("vector").type.value_type == pa.float32()


def test_prefixes_number_the_tree() -> None:
    codes = np.array([[0, 0], [0, 2], [3, 1]], np.int32)
    np.testing.assert_array_equal(prefix_ids(codes, COUNTS), [[0, 0], [0, 2], [3, 10]])


def test_a_failed_write_leaves_nothing(data: PreparedData, arrays: tuple) -> None:
    first = save(data, arrays)
    codes, vectors, codebook, known = arrays
    with pytest.raises(TypeError):
        save_semantics(
            data.root,
            codes[::-1],
            vectors,
            codebook,
            known,
            data_fingerprint="x",
            report_json=None,  # type: ignore[arg-type]
        )
    assert load_semantics(data).fingerprint == first
    assert not list(data.root.glob(".*.tmp"))


def test_not_fitted_says_what_to_run(data: PreparedData) -> None:
    with pytest.raises(UserError, match="hisac-rec semantic-ids"):
        load_semantics(data)


def test_the_older_form_is_refused(data: PreparedData, arrays: tuple) -> None:
    save(data, arrays)
    path = data.root / "semantic_ids.parquet"
    pq.write_table(pq.read_table(path).drop_columns("known"), path)
    with pytest.raises(UserError, match=r"semantic_ids.parquet: column 'known' is absent.*--force"):
        load_semantics(data)


def test_other_data_is_refused(data: PreparedData, arrays: tuple) -> None:
    save(data, arrays, fingerprint="something else")
    with pytest.raises(UserError, match=r"another version of this data.*--force"):
        load_semantics(data)


def test_files_of_two_fits_are_refused(data: PreparedData, arrays: tuple) -> None:
    save(data, arrays)
    kept = (data.root / "codebook.parquet").read_bytes()
    codes, vectors, codebook, known = arrays
    save(data, (codes, vectors, [words + 1 for words in codebook], known))
    (data.root / "codebook.parquet").write_bytes(kept)
    with pytest.raises(UserError, match=r"codebook\.parquet: comes from another fit"):
        load_semantics(data)


def test_a_code_outside_the_codebook_names_the_row(data: PreparedData, arrays: tuple) -> None:
    codes, vectors, codebook, known = arrays
    codes[7, 1] = 3
    save(data, (codes, vectors, codebook, known))
    with pytest.raises(UserError, match="row 7: code 3 at level 1, the codebook has 0 to 2"):
        load_semantics(data)


def test_wrong_number_of_items(data: PreparedData, arrays: tuple) -> None:
    codes, vectors, codebook, known = arrays
    save(data, (codes[:-1], vectors[:-1], codebook, known[:-1]))
    with pytest.raises(UserError, match="49 rows, but the data has 50 items"):
        load_semantics(data)


def test_a_missing_code_word(data: PreparedData, arrays: tuple) -> None:
    save(data, arrays)
    path = data.root / "codebook.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(UserError, match="levels or codes are missing"):
        load_semantics(data)


def test_damaged_file(data: PreparedData, arrays: tuple) -> None:
    save(data, arrays)
    path = data.root / "semantic_ids.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"semantic_ids\.parquet"):
        load_semantics(data)
