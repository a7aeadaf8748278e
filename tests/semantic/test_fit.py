"""From a prepared data set to the three files, through every source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders import Rows, write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.codebook import Codebook
from hisac_rec.semantic.fit import fit_semantic_ids, make_quantiser, read_report, resolve_config
from hisac_rec.semantic.item_vectors import item_vectors
from hisac_rec.semantic.store import load_semantics

GROUPS, PER_GROUP = 4, 15
ITEMS = 1 + GROUPS * PER_GROUP
CODES = "codes=[4, 3]"
WORDS = [
    "spaceship alien laser galaxy robot",
    "wedding kiss love romance paris",
    "ghost haunted scream blood knife",
    "cowboy saloon horse sheriff desert",
]
RQVAE = ("method=rqvae", "rqvae.epochs=5", "rqvae.hidden=[16]", "rqvae.latent_dim=4")


def group(item: np.ndarray) -> np.ndarray:
    return (item - 1) % GROUPS


def group_rows(seed: int, users: int = 60, *, cold: bool = True) -> Rows:
    """Users who each like one group; with ``cold`` the last four items never appear."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(1, users + 1):
        mine = 1 + user % GROUPS + GROUPS * np.arange(PER_GROUP - cold)
        others = rng.integers(1, ITEMS - GROUPS * cold, 1)
        history = np.concatenate([rng.choice(mine, 9, replace=False), others])
        request = {"history_end": 10, "items": [int(rng.choice(mine))], "labels": [1.0]}
        rows.append(
            {
                "user": user,
                "history_item": history.tolist(),
                "history_type": [0] * 10,
                "history_time": list(range(10)),
                "requests": [{"time": 10, **request}],
            }
        )
    return rows


def texts() -> list[str | None]:
    rng = np.random.default_rng(0)
    words = [line.split() for line in WORDS]
    return [None] + [" ".join(rng.choice(words[g], 4)) for g in group(np.arange(1, ITEMS))]


def contents() -> np.ndarray:
    rng = np.random.default_rng(0)
    content = rng.normal(size=(GROUPS, 8))[group(np.arange(ITEMS))]
    content = content + 0.1 * rng.normal(size=(ITEMS, 8))
    content[0] = 0
    return content.astype(np.float32)


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    return write_prepared(
        tmp_path / "data",
        items=ITEMS,
        content=contents(),
        text=texts(),
        rows={"train": group_rows(1), "valid": group_rows(2), "test": group_rows(3)},
    )


def fit(data: PreparedData, *overrides: str):
    return fit_semantic_ids(data, resolve_config(data, [CODES, *overrides]))


def purity(top: np.ndarray, items: np.ndarray) -> float:
    """Share of the items that are of the most frequent group of their top-level code."""
    table = np.zeros((top.max() + 1, GROUPS), int)
    np.add.at(table, (top[items], group(items)), 1)
    return table.max(1).sum() / len(items)


@pytest.mark.parametrize(
    "source",
    ["content", "text", "collaborative", "text+collaborative", "content+collaborative"],
)
def test_the_top_level_finds_the_groups(data: PreparedData, source: str) -> None:
    report = fit(data, f"source={source}", "dim=6")
    semantics = load_semantics(data)
    items = np.arange(1, ITEMS)
    known = items if "text" in source or "content" in source else items[:-GROUPS]
    assert purity(semantics.codes[:, 0], known) > 0.9
    assert report.items_without_vector == len(items) - len(known)
    assert report.items_unseen >= GROUPS
    assert report.items_fitted == (
        ITEMS - 1 if source in ("content", "text") else ITEMS - 1 - GROUPS
    )


@pytest.mark.parametrize("method", [(), RQVAE])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_stored_vectors_have_the_stored_codes(
    data: PreparedData, method: tuple[str, ...], dtype: str
) -> None:
    fit(data, f"vector_dtype={dtype}", *method)
    semantics = load_semantics(data)
    assert semantics.vectors.dtype == dtype
    assert semantics.codes.shape == (ITEMS, 2)
    codes = Codebook.of(semantics).encode(torch.from_numpy(semantics.vectors.copy()))
    np.testing.assert_array_equal(codes.numpy(), semantics.codes)


@pytest.mark.parametrize("method", [(), RQVAE])
def test_encode_of_the_fitted_items_equals_the_stored_codes(
    data: PreparedData, method: tuple[str, ...]
) -> None:
    fit(data, "vector_dtype=float32", *method)
    config = resolve_config(data, [CODES, *method])
    items = item_vectors(data, config)
    quantiser = make_quantiser(config)
    source = torch.from_numpy(items.vectors)
    quantiser.fit(source[items.fit])
    np.testing.assert_array_equal(quantiser.encode(source), load_semantics(data).codes)


@pytest.mark.parametrize("method", [(), RQVAE])
def test_run_to_run_equal(data: PreparedData, method: tuple[str, ...]) -> None:
    sources = "source=text+collaborative"
    fit(data, sources, *method)
    files = ("semantic_ids.parquet", "codebook.parquet", "semantic_ids.json")
    first = [(data.root / name).read_bytes() for name in files]
    fit(data, sources, *method)
    assert [(data.root / name).read_bytes() for name in files] == first
    fit(data, sources, "seed=5", *method)
    assert [(data.root / name).read_bytes() for name in files] != first


def test_an_unseen_item_gets_the_codes_of_its_content(data: PreparedData) -> None:
    fit(data, "source=text+collaborative", "dim=6")
    top = load_semantics(data).codes[:, 0]
    for item in range(ITEMS - GROUPS, ITEMS):  # never in the training split
        alike = top[1 : ITEMS - GROUPS][
            group(np.arange(1, ITEMS - GROUPS)) == group(np.array(item))
        ]
        assert top[item] == np.bincount(alike).argmax()


def test_items_of_which_nothing_is_known_stand_at_the_mean(data: PreparedData) -> None:
    one = ("collaborative.views=1", "collaborative.shrinkage=0")
    report = fit(data, "source=collaborative", "dim=6", "vector_dtype=float32", *one)
    semantics = load_semantics(data)
    vectors = semantics.vectors
    assert report.items_without_vector == GROUPS
    assert np.flatnonzero(~semantics.known).tolist() == [0, *range(ITEMS - GROUPS, ITEMS)]
    mean = vectors[1 : ITEMS - GROUPS].mean(0)
    np.testing.assert_allclose(
        vectors[[0, *range(ITEMS - GROUPS, ITEMS)]], np.tile(mean, (1 + GROUPS, 1)), atol=1e-5
    )


@pytest.mark.parametrize("source", ["collaborative", "text+collaborative", "content", "text"])
def test_valid_and_test_are_never_read(data: PreparedData, tmp_path: Path, source: str) -> None:
    fit(data, f"source={source}", "dim=6")
    other = tmp_path / "other"
    shutil.copytree(data.root, other)
    for split in ("valid", "test"):
        shutil.rmtree(other / split)
    fit(PreparedData(other), f"source={source}", "dim=6")
    for name in ("semantic_ids.parquet", "codebook.parquet"):
        assert (other / name).read_bytes() == (data.root / name).read_bytes()


def test_events_after_the_last_training_request_are_not_used(tmp_path: Path) -> None:
    def vectors(name: str, late: int) -> np.ndarray:
        rows = group_rows(1)
        for row in rows:  # stored, but later than any request of the split
            row["history_item"] = [*row["history_item"], late]
            row["history_type"], row["history_time"] = [0] * 11, [*range(10), 99]
        data = write_prepared(tmp_path / name, items=ITEMS, rows={"train": rows})
        return item_vectors(data, resolve_config(data, ["source=collaborative", "dim=6"])).vectors

    np.testing.assert_array_equal(vectors("one", late=1), vectors("two", late=ITEMS - 1))


def test_negative_candidates_are_not_used(tmp_path: Path) -> None:
    def vectors(name: str, label: float) -> np.ndarray:
        rows = group_rows(1)
        for row in rows:
            row["requests"][0]["items"] = [*row["requests"][0]["items"], ITEMS - 1]
            row["requests"][0]["labels"] = [1.0, label]
        data = write_prepared(tmp_path / name, items=ITEMS, rows={"train": rows})
        return item_vectors(data, resolve_config(data, ["source=collaborative", "dim=6"])).known

    assert not vectors("negative", 0.0)[ITEMS - 1]
    assert vectors("positive", 1.0)[ITEMS - 1]


def test_the_user_sample_is_bounded_and_seeded(data: PreparedData) -> None:
    few = ["source=collaborative", "dim=6", "collaborative.max_users=20"]
    one, two = (item_vectors(data, resolve_config(data, few)).vectors for _ in range(2))
    np.testing.assert_array_equal(one, two)
    whole = item_vectors(data, resolve_config(data, few[:2])).vectors
    assert not np.allclose(one, whole)


@pytest.mark.parametrize(
    ("content", "text", "expected"),
    [(True, True, "content"), (False, True, "text"), (False, False, "collaborative")],
)
def test_auto_takes_the_best_source(
    tmp_path: Path, content: bool, text: bool, expected: str
) -> None:
    data = write_prepared(
        tmp_path,
        items=ITEMS,
        content=contents() if content else None,
        text=texts() if text else None,
    )
    assert resolve_config(data).source == expected


def test_the_definition_sets_the_defaults(tmp_path: Path) -> None:
    definition = {"semantic_ids": {"codes": [7, 5], "rqvae": {"epochs": 3}}}
    data = write_prepared(tmp_path, definition=definition)
    config = resolve_config(data, ["rqvae.lr=0.1"])
    assert (config.codes, config.rqvae.epochs, config.rqvae.lr) == ([7, 5], 3, 0.1)
    assert config.source == "collaborative"


def test_the_report_is_stored(data: PreparedData) -> None:
    report = fit(data)
    assert read_report(data) == report
    stored = json.loads((data.root / "semantic_ids.json").read_text())
    assert stored["config"]["source"] == "content"
    assert stored["config"]["codes"] == [4, 3]


def test_collapse_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = np.tile(np.eye(3, dtype=np.float32), (17, 1))[:50]
    data = write_prepared(tmp_path, items=50, content=content)
    report = fit_semantic_ids(data, resolve_config(data, ["codes=[16, 16]"]))
    assert report.quality.levels[0].usage < 0.5
    assert "level 0 uses 19% of its 16 codes" in caplog.text


def test_null_content_is_no_vector(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, items=ITEMS, content=contents())
    table = data.items
    rows = table.column("content").to_pylist()
    rows[5] = None
    column = table.schema.get_field_index("content")
    field = table.schema.field("content")
    table = table.set_column(column, field, pa.array(rows, field.type))
    pq.write_table(table, tmp_path / "items.parquet")
    items = item_vectors(PreparedData(tmp_path), resolve_config(data))
    assert np.flatnonzero(~items.known).tolist() == [0, 5]


def test_a_missing_source_column_is_named(tmp_path: Path) -> None:
    data = write_prepared(tmp_path)
    with pytest.raises(UserError, match=r"items\.parquet: source = 'text' needs a column 'text'"):
        resolve_config(data, ["source=text"])


def test_more_codes_than_items_names_the_key(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, content=np.eye(50, dtype=np.float32), items=50)
    with pytest.raises(UserError, match=r"semantic_ids\.codes' = \[8, 64\]: level 1 asks for 64"):
        fit_semantic_ids(data, resolve_config(data, ["codes=[8, 64]"]))
    assert not data.has_semantic_ids


def test_an_unknown_key_names_the_nearest(data: PreparedData) -> None:
    with pytest.raises(UserError, match="unknown key 'metod'; did you mean 'method'"):
        resolve_config(data, ["metod=rqvae"])


def test_content_that_is_not_finite_names_the_row(tmp_path: Path) -> None:
    content = contents()
    content[9, 2] = np.nan
    data = write_prepared(tmp_path, items=ITEMS, content=content)
    with pytest.raises(UserError, match="row 9: 'content' is not finite"):
        fit(data)


def test_text_without_terms_names_the_keys(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, items=5, text=[None, "a b", "c", "", "one"])
    with pytest.raises(UserError, match=r"no usable terms.*text\.min_items = 2"):
        fit(data, "source=text")


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, items=ITEMS, content=contents() * 1e6)
    with pytest.raises(UserError, match="vector_dtype"):
        fit(data, "normalise=false")


def test_too_little_to_factorise_is_said(tmp_path: Path) -> None:
    data = write_prepared(tmp_path, items=ITEMS, rows={"train": group_rows(1, users=2)})
    with pytest.raises(UserError, match="too little for source = 'collaborative'"):
        fit(data, "source=collaborative")


def test_a_damaged_training_file_is_named(data: PreparedData) -> None:
    path = data.root / "train" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"part-00001\.parquet: damaged Parquet file"):
        fit(data, "source=collaborative")


def test_an_item_outside_the_table_is_named(tmp_path: Path) -> None:
    rows = group_rows(1)
    rows[-1]["history_item"][0] = ITEMS
    data = write_prepared(tmp_path, items=ITEMS, rows={"train": rows})
    with pytest.raises(UserError, match=f"part-00001.*item {ITEMS} is outside the item table"):
        fit(data, "source=collaborative")


def test_a_fit_on_a_sample_encodes_all(data: PreparedData) -> None:
    fit(data, "fit_sample=20")
    semantics = load_semantics(data)
    assert len(semantics.codes) == ITEMS
    assert purity(semantics.codes[:, 0], np.arange(1, ITEMS)) > 0.9
