"""Codes from who consumed what do not know the users who read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import Rows, write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.semantic.fit import fit_semantic_ids, read_report, resolve_config
from hisac_rec.semantic.predecessor import open_predecessor
from hisac_rec.semantic.probe import probe
from hisac_rec.semantic.quality import Report
from hisac_rec.semantic.refresh import extend_semantic_ids, refit_semantic_ids
from hisac_rec.semantic.store import Semantics, load_semantics
from hisac_rec.semantic.views import rows_in_views, views_of_users

ITEMS, USERS, VIEWS = 60, 90, 3
SETTINGS = ("source=collaborative", "codes=[6, 6]", "dim=8", f"collaborative.views={VIEWS}")


def coin_rows(seed: int, users: int = USERS) -> Rows:
    """Every user meets 36 items; a fair coin of the pair decides whether he likes one. What he
    liked is his history.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(1, users + 1):
        met = rng.choice(np.arange(1, ITEMS), 36, replace=False)
        likes = rng.random(36) < 0.5
        history, requests = [], []
        for number, (item, like) in enumerate(zip(met.tolist(), likes.tolist(), strict=True)):
            requests.append(
                {
                    "time": number,
                    "history_end": len(history),
                    "items": [item],
                    "labels": [float(like)],
                }
            )
            if like:
                history.append(item)
        rows.append(
            {
                "user": user,
                "history_item": history,
                "history_type": [0] * len(history),
                "history_time": list(range(len(history))),
                "requests": requests,
            }
        )
    return rows


def coins(root: Path, seed: int = 0) -> PreparedData:
    rows = {"train": coin_rows(seed), "valid": coin_rows(seed + 1)}
    return write_prepared(root, items=ITEMS, rows=rows, seed=seed)


def fit(data: PreparedData, *overrides: str) -> tuple[Report, Semantics]:
    report = fit_semantic_ids(data, resolve_config(data, [*SETTINGS, *overrides]))
    return report, load_semantics(data)


def test_users_are_dealt_out_by_raw_id(tmp_path: Path) -> None:
    data = coins(tmp_path)
    views = views_of_users(data, VIEWS)
    assert len(views) == data.manifest.users
    assert np.bincount(views, minlength=VIEWS).min() > USERS / VIEWS / 2
    # Another preparation that numbers users anew keeps them where they were.
    vocabulary = data.read_parquet("vocab/user.parquet")
    turned = np.r_[0, np.arange(USERS, 0, -1)]
    pq.write_table(vocabulary.take(turned), data.root / "vocab/user.parquet")
    np.testing.assert_array_equal(views_of_users(data, VIEWS), views[turned])


def test_what_a_user_reads_does_not_change_with_his_labels(tmp_path: Path) -> None:
    data = coins(tmp_path / "a")
    _, before = fit(data)
    views = views_of_users(data, VIEWS)
    rows = {"train": coin_rows(0), "valid": coin_rows(1)}
    for row in rows["train"]:
        if views[row["user"]] == 0:  # each of this group likes what he did not like, and back
            for request in row["requests"]:
                request["labels"] = [1 - label for label in request["labels"]]
            row["history_item"] = row["history_item"][::-1]
    _, after = fit(write_prepared(tmp_path / "b", items=ITEMS, rows=rows))
    # All other groups see other vectors; this one's are the same up to the common space.
    own = before.in_view(0)
    here, there = (of.vectors[own][1:].astype(np.float64) for of in (before, after))
    np.testing.assert_allclose(here @ here.T, there @ there.T, atol=2e-3)
    others = before.in_view(1)
    here, there = (of.vectors[others][1:].astype(np.float64) for of in (before, after))
    assert np.abs(here @ here.T - there @ there.T).max() > 0.05


def test_codes_of_all_users_tell_coins_and_views_do_not(tmp_path: Path) -> None:
    data = coins(tmp_path)
    _, semantics = fit(data, "collaborative.views=1", "collaborative.min_support=1")
    leak = probe(data, semantics)
    assert leak.train is not None
    assert leak.valid is not None
    assert leak.train > 0.55
    assert abs(leak.valid - 0.5) < 0.03
    report, semantics = fit(data)
    assert report.probe is not None
    assert report.probe == probe(data, semantics)
    assert report.probe.train is not None
    assert abs(report.probe.train - 0.5) < 0.03
    assert read_report(data) == report


def test_items_of_too_few_users_have_no_place(tmp_path: Path) -> None:
    rows = {"train": coin_rows(0)}
    lone = next(row for row in rows["train"] if row["history_item"])
    lone["history_item"][0] = ITEMS  # an item of his alone
    data = write_prepared(tmp_path, items=ITEMS + 1, rows=rows)
    report, semantics = fit(data)
    view = views_of_users(data, VIEWS)[lone["user"]]
    placed = [bool(semantics.known[semantics.in_view(v)][ITEMS]) for v in range(VIEWS)]
    assert not any(placed)  # one user is fewer than min_support = 2
    _, semantics = fit(data, "collaborative.min_support=1")
    placed = [bool(semantics.known[semantics.in_view(v)][ITEMS]) for v in range(VIEWS)]
    assert placed == [v != view for v in range(VIEWS)]
    assert report.items_without_vector == 1


def test_views_share_a_space(tmp_path: Path) -> None:
    """An item lies near itself in another view: nearer than most other items do."""
    rng = np.random.default_rng(0)
    rows: Rows = []
    for user in range(1, 301):
        mine = [item for item in range(1, ITEMS) if item % 4 == user % 4]
        history = [int(item) for item in rng.choice(mine, 10, replace=False)]
        request = {"time": 10, "history_end": 10, "items": [history[0]], "labels": [1.0]}
        rows.append(
            {
                "user": user,
                "history_item": history,
                "history_type": [0] * 10,
                "history_time": list(range(10)),
                "requests": [request],
            }
        )
    data = write_prepared(tmp_path, items=ITEMS, rows={"train": rows})
    _, semantics = fit(data, "codes=[4, 4]", "dim=3")
    codes = [semantics.codes[semantics.in_view(v), 0][1:] for v in range(VIEWS)]
    assert (codes[0] == codes[1]).mean() > 0.9
    assert (codes[0] == codes[2]).mean() > 0.9


def test_rows_in_views() -> None:
    rows = np.array([0, 3, -1, 1])
    assert rows_in_views(rows, 2, 10).tolist() == [0, 3, -1, 1, 10, 13, -1, 11]


@pytest.mark.parametrize("kind", ["extended", "refitted"])
def test_a_refresh_keeps_every_view(tmp_path: Path, kind: str) -> None:
    old = coins(tmp_path / "old")
    fit(old)
    new = coins(tmp_path / "new", seed=5)
    if kind == "extended":
        extend_semantic_ids(new, open_predecessor(old))
    else:
        config = resolve_config(new, list(SETTINGS))
        refit_semantic_ids(new, config, open_predecessor(old))
    was, now = load_semantics(old), load_semantics(new)
    assert now.views == was.views == VIEWS
    same = (was.codes == now.codes).all(axis=1)[was.known & now.known]
    assert same.mean() > (0.99 if kind == "extended" else 0.9)
