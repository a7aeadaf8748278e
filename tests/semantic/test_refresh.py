"""Semantic IDs that go on from another day's: nothing learned for a code is lost."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from hisac_rec.checkpoints.row_matching import RowMatcher
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.alignment import NEW, settle, stay
from hisac_rec.semantic.codebook import Codebook
from hisac_rec.semantic.collaborative import collaborative_vectors, fold_in
from hisac_rec.semantic.config import CollaborativeConfig, RefreshConfig
from hisac_rec.semantic.fit import fit_semantic_ids, read_report, resolve_config
from hisac_rec.semantic.predecessor import match_items, open_predecessor
from hisac_rec.semantic.quality import Report
from hisac_rec.semantic.refresh import extend_semantic_ids, refit_semantic_ids
from hisac_rec.semantic.store import load_semantics

GROUPS, OLD, ALL = 4, 121, 161
"""Items of the first day, the unknown one included, and of the second."""
WORDS = ["ship laser alien robot", "kiss love paris wedding", "ghost blood knife scream"]
WORDS.append("horse saloon desert sheriff")
RQVAE = ("method=rqvae", "rqvae.epochs=20", "rqvae.hidden=[16]", "rqvae.latent_dim=4")
ONE_VIEW = ("collaborative.views=1", "collaborative.min_support=1", "collaborative.shrinkage=0")
SOURCES = ["content", "text", "collaborative", "text+collaborative", "content+collaborative"]
ORDER = np.concatenate([[0], 1 + np.random.default_rng(9).permutation(ALL - 1)])
"""Row of the second day -> number of the item."""


def group(item: np.ndarray) -> np.ndarray:
    return item % GROUPS


def rows_of(items: np.ndarray, seed: int, users: int = 80) -> Rows:
    """Users who each like one group; ``items[row]`` is the number of the item at that row."""
    rng = np.random.default_rng(seed)
    place = {int(number): row for row, number in enumerate(items)}
    rows = []
    for user in range(1, users + 1):
        mine = [row for number, row in place.items() if number and number % GROUPS == user % GROUPS]
        history = [int(item) for item in rng.choice(mine, 12, replace=False)]
        history.append(int(rng.integers(1, len(items))))
        request = {"history_end": 13, "items": [int(rng.choice(mine))], "labels": [1.0]}
        rows.append(
            {
                "user": user,
                "history_item": history,
                "history_type": [0] * 13,
                "history_time": list(range(13)),
                "requests": [{"time": 13, **request}],
            }
        )
    return rows


def day(root: Path, items: np.ndarray, seed: int, content: np.ndarray) -> PreparedData:
    """A prepared data set of the items of these numbers; raw ids say the number."""
    rng = np.random.default_rng(0)
    words = [WORDS[g].split() for g in group(np.arange(ALL))]
    texts = [" ".join(rng.choice(of, 3)) for of in words]
    data = write_prepared(
        root,
        items=len(items),
        content=content[items] * (items > 0)[:, None],
        text=[texts[number] if number else None for number in items],
        rows={"train": rows_of(items, seed)},
        seed=seed,
    )
    table = data.items
    raw = pa.array([None, *(f"raw-{number}" for number in items[1:])])
    at = table.schema.get_field_index("raw_id")
    pq.write_table(table.set_column(at, "raw_id", raw), root / "items.parquet")
    return PreparedData(root)


def contents() -> np.ndarray:
    rng = np.random.default_rng(0)
    leaf = np.arange(ALL) // GROUPS % 3
    centres = rng.normal(size=(GROUPS, 8))[group(np.arange(ALL))]
    twigs = 0.4 * rng.normal(size=(GROUPS, 3, 8))[group(np.arange(ALL)), leaf]
    return centres + twigs + 0.1 * rng.normal(size=(ALL, 8))


@pytest.fixture
def days(tmp_path: Path) -> tuple[PreparedData, PreparedData]:
    content = contents()
    return (
        day(tmp_path / "old", np.arange(OLD), 1, content),
        day(tmp_path / "new", ORDER, 2, content),
    )


def fit(data: PreparedData, *overrides: str) -> Report:
    return fit_semantic_ids(
        data, resolve_config(data, ["codes=[4, 6]", "dim=6", *ONE_VIEW, *overrides])
    )


def refit(data: PreparedData, old: PreparedData, *overrides: str) -> Report:
    config = resolve_config(data, ["codes=[4, 6]", "dim=6", *ONE_VIEW, *overrides])
    return refit_semantic_ids(data, config, open_predecessor(old))


@pytest.mark.parametrize("method", [(), RQVAE])
@pytest.mark.parametrize("source", SOURCES)
def test_known_items_keep_all_and_new_ones_find_their_kind(
    days: tuple[PreparedData, PreparedData], source: str, method: tuple[str, ...]
) -> None:
    old, new = days
    fit(old, f"source={source}", *method)
    report = extend_semantic_ids(new, open_predecessor(old))
    was, now = load_semantics(old), load_semantics(new)
    rows = match_items(new, old)
    np.testing.assert_array_equal(rows, np.where(ORDER < OLD, ORDER, -1))
    kept = (rows >= 0) & was.known[rows.clip(0)]
    np.testing.assert_array_equal(now.codes[kept], was.codes[rows[kept]])
    np.testing.assert_array_equal(now.vectors[kept], was.vectors[rows[kept]])
    for ours, theirs in zip(now.codebook, was.codebook, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    numbers = np.arange(1, OLD)
    top = was.codes[1:, 0]
    usual = np.array([np.bincount(top[group(numbers) == g]).argmax() for g in range(GROUPS)])
    as_usual = (top == usual[group(numbers)])[was.known[1:]].mean()
    assert as_usual > 0.6
    fresh = rows < 0
    assert now.known[fresh].all()
    assert (now.codes[fresh, 0] == usual[group(ORDER[fresh])]).mean() > 0.85 * as_usual
    refresh = report.refresh
    assert refresh is not None
    assert (refresh.new, refresh.gone, refresh.unchanged) == (ALL - OLD, 0, kept.sum())
    assert refresh.changed == [0, 0]
    assert refresh.drift == [0, 0]
    assert now.lineage == (was.fingerprint,)
    assert read_report(new) == report


def test_extending_twice_gives_the_same_bytes_and_reads_the_training_split_alone(
    days: tuple[PreparedData, PreparedData],
) -> None:
    old, new = days
    fit(old, "source=text+collaborative")
    # The report looks at validation labels; codes and what makes them do not.
    names = ("semantic_ids.parquet", "codebook.parquet", "featuriser.npz")
    extend_semantic_ids(new, open_predecessor(old))
    first = [(new.root / name).read_bytes() for name in names]
    for split in ("valid", "test"):
        shutil.rmtree(new.root / split)
    extend_semantic_ids(new, open_predecessor(old))
    assert [(new.root / name).read_bytes() for name in names] == first


def test_a_day_can_go_on_from_an_extended_day(days: tuple[PreparedData, PreparedData]) -> None:
    old, new = days
    fit(old, "source=text+collaborative")
    extend_semantic_ids(new, open_predecessor(old))
    codes = load_semantics(new).codes.copy()
    third = new.root.with_name("third")
    shutil.copytree(new.root, third)
    extend_semantic_ids(PreparedData(third), open_predecessor(new))
    np.testing.assert_array_equal(load_semantics(PreparedData(third)).codes, codes)
    assert len(load_semantics(PreparedData(third)).lineage) == 2


def test_an_item_folded_in_lies_where_its_factorisation_puts_it(
    days: tuple[PreparedData, PreparedData],
) -> None:
    _, new = days
    config = CollaborativeConfig(views=1, min_support=1)
    (vectors,), _, stored = collaborative_vectors(new, 3, config, 0)
    rows = np.arange(ALL)
    rows[100:] = -1  # as if these were new
    (found,), _ = fold_in(new, rows, stored, config, 0)
    np.testing.assert_array_equal(found[:100], vectors[:100])
    length = np.linalg.norm(found, axis=1) * np.linalg.norm(vectors, axis=1)
    there = length > 0
    cosine = (found * vectors).sum(1)[there] / length[there]
    assert there[100:].all()
    assert np.median(cosine[100 - 1 :]) > 0.95


@pytest.mark.parametrize("method", [(), RQVAE])
@pytest.mark.parametrize("source", ["collaborative", "text+collaborative"])
def test_a_refit_keeps_codes_and_improves_on_standing_still(
    days: tuple[PreparedData, PreparedData], source: str, method: tuple[str, ...]
) -> None:
    old, new = days
    settings = (f"source={source}", *method)
    fit(old, *settings)
    report = refit(new, old, *settings)
    refresh = report.refresh
    assert refresh is not None
    assert refresh.changed_path <= 0.05
    assert refresh.unchanged >= OLD - 5
    assert max(refresh.drift) > 0
    was, now = load_semantics(old), load_semantics(new)
    rows = match_items(new, old)
    both = (rows > 0) & now.known & was.known[rows.clip(0)]
    differs = (now.codes[both] != was.codes[rows[both]]).any(1)
    assert refresh.changed_path == pytest.approx(differs.mean())
    refit(new, old, *settings, "refresh.churn=0")
    np.testing.assert_array_equal(load_semantics(new).codes[both], was.codes[rows[both]])
    assert RowMatcher(new, old, now, was)._by_codes("prefix2", "prefix", 2).by == (
        "code words aligned to those"
    )


def test_a_turned_space_is_turned_back(tmp_path: Path) -> None:
    content = contents()
    turn = ortho_group.rvs(8, random_state=3)
    old = day(tmp_path / "old", np.arange(OLD), 1, content)
    new = day(tmp_path / "new", ORDER, 2, content @ turn)
    for data in (old, new):
        assert data.manifest.content_dim == 8
    config = resolve_config(old, ["codes=[4, 6]", "source=content"])
    fit_semantic_ids(old, config)
    report = refit_semantic_ids(new, config, open_predecessor(old))
    assert report.refresh is not None
    assert report.refresh.misfit < 1e-3
    assert report.refresh.moved < 0.01
    assert report.refresh.changed_path < 0.02
    scratch = load_semantics(old).codes
    fit_semantic_ids(new, config)
    rows = match_items(new, old)
    both = rows > 0
    assert (load_semantics(new).codes[both] != scratch[rows[both]]).any(1).mean() > 0.5
    # A day later items are placed in the same turned space.
    refit_semantic_ids(new, config, open_predecessor(old))
    third = day(tmp_path / "third", ORDER, 2, content @ turn)
    before = load_semantics(new)
    fresh = open_predecessor(new)
    placed = extend_semantic_ids(third, fresh)
    assert placed.refresh is not None
    np.testing.assert_array_equal(load_semantics(third).codes, before.codes)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    margin=st.sampled_from([0.0, 0.1, 1.0]),
    churn=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_nobody_leaves_without_a_reason(seed: int, margin: float, churn: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    book = Codebook([torch.randn(5, 3, generator=generator) for _ in range(2)])
    vectors = torch.randn(40, 3, generator=generator)
    before = torch.randint(0, 5, (40, 2), generator=generator).int()
    before[::7] = NEW
    codes = stay(book, vectors, before, RefreshConfig(margin=margin, churn=churn))
    free = book.encode(vectors)
    fresh = before[:, 0] == NEW
    assert torch.equal(codes[fresh], free[fresh])

    def error(of: torch.Tensor) -> torch.Tensor:
        return (vectors - book.path_vector(of)).square().sum(1)

    left = (codes != before).any(1) & ~fresh
    assert left.sum() <= churn * (~fresh).sum()
    old = torch.where(fresh[:, None], codes, before)
    assert (error(old)[left] > error(free)[left] * (1 + margin)).all()
    if churn == 1:
        assert (error(codes) <= error(free) * (1 + margin) + 1e-6).all()
    settled = settle(book, vectors, before, RefreshConfig(margin=margin, churn=churn), 5)
    assert [len(words) for words in settled.levels] == [5, 5]


def test_settings_that_cannot_be_aligned_are_named(days: tuple[PreparedData, PreparedData]) -> None:
    old, new = days
    fit(old)
    with pytest.raises(UserError, match=r"semantic_ids\.source' = 'text', that of .* is 'content'"):
        refit(new, old, "source=text")
    fit(old, *RQVAE)
    with pytest.raises(UserError, match=r"rqvae\.hidden' = \[8\], that of .* is \[16\]"):
        refit(new, old, *RQVAE, "rqvae.hidden=[8]")


def test_other_settings_of_the_definition_are_said_not_taken(
    days: tuple[PreparedData, PreparedData], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = days
    fit(old)
    extend_semantic_ids(new, open_predecessor(old))
    assert "its settings hold" not in caplog.text
    path = new.root / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["definition"] = {"semantic_ids": {"codes": [9, 9]}}
    path.write_text(json.dumps(manifest))
    extend_semantic_ids(PreparedData(new.root), open_predecessor(old))
    assert "its settings hold" in caplog.text
    assert load_semantics(new).code_counts == [4, 6]


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    old = day(tmp_path / "old", np.arange(80), 1, contents())
    new = day(tmp_path / "new", np.concatenate([[0], np.arange(81, ALL)]), 2, contents())
    fit(old)
    with pytest.raises(UserError, match="no item with a vector in common"):
        refit(new, old)


def test_what_places_items_must_be_there_and_whole(days: tuple[PreparedData, PreparedData]) -> None:
    old, _ = days
    fit(old)
    path = old.root / "featuriser.npz"
    stale = path.read_bytes()
    fit(old, "seed=4")
    path.write_bytes(stale)
    with pytest.raises(UserError, match=r"featuriser\.npz: comes from another fit.*--force"):
        open_predecessor(old)
    path.write_bytes(stale[:300])
    with pytest.raises(UserError, match=r"featuriser\.npz: damaged"):
        open_predecessor(old)
    path.unlink()
    with pytest.raises(UserError, match=r"featuriser\.npz: not there.*--force"):
        open_predecessor(old)


def test_content_of_another_width_is_refused(tmp_path: Path) -> None:
    old = day(tmp_path / "old", np.arange(OLD), 1, contents())
    new = day(tmp_path / "new", ORDER, 2, contents()[:, :7])
    fit(old)
    with pytest.raises(UserError, match=r"'content' is 7 wide, that of the earlier fit was 8"):
        extend_semantic_ids(new, open_predecessor(old))
