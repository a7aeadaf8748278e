from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import auc, gauc
from hisac_rec.evaluation.trivial import (
    MeanCounter,
    Means,
    clip_probability,
    fit_means,
    flatten_candidates,
)


def user_row(user: int, *requests: tuple[list[int], list[float]]) -> dict:
    return {
        "user": user,
        "history_item": [1],
        "history_type": [0],
        "history_time": [0],
        "requests": [
            {"time": 1 + n, "history_end": 1, "items": items, "labels": labels}
            for n, (items, labels) in enumerate(requests)
        ],
    }


TRAIN = [
    user_row(1, ([1, 2], [1.0, 0.0]), ([1], [1.0])),
    user_row(2, ([1, 2, 3], [0.0, 0.0, 1.0])),
    user_row(3),
]
VALID = [user_row(3, ([4, 4, 4], [1.0, 1.0, 1.0]))]


def test_planted_means(tmp_path: Path):
    data = write_prepared(tmp_path, items=6, rows={"train": TRAIN, "valid": VALID, "test": VALID})
    means = fit_means(data, shrinkage=0)
    overall = 3 / 6
    assert means.overall == overall
    np.testing.assert_allclose(means.item, [overall, 2 / 3, 0.0, 1.0, overall, overall])
    np.testing.assert_allclose(means.user, [overall, 2 / 3, 1 / 3, overall])
    np.testing.assert_allclose(means.item_mean([1, 4]), [2 / 3, 0.5])
    np.testing.assert_allclose(means.item_and_user_mean([3, 2], [1, 2]), [7 / 6, -1 / 6])


def test_shrinkage_adds_rows_at_the_global_mean(tmp_path: Path):
    data = write_prepared(tmp_path, items=6, rows={"train": TRAIN, "valid": VALID, "test": VALID})
    means = fit_means(data, shrinkage=2)
    assert means.item[3] == pytest.approx((1 + 2 * 0.5) / 3)
    assert means.user[1] == pytest.approx((2 + 2 * 0.5) / 5)


def test_streaming_equals_counting_every_candidate(tmp_path: Path):
    data = write_prepared(tmp_path, users=60, files_per_split=3)
    counts, sums = np.zeros(50), np.zeros(50)
    for path in data.split_files("train"):
        for row in pq.read_table(path).to_pylist():
            for request in row["requests"]:
                np.add.at(counts, request["items"], 1)
                np.add.at(sums, request["items"], request["labels"])
    found = fit_means(data, shrinkage=0).item
    np.testing.assert_allclose(found[counts > 0], (sums / np.maximum(counts, 1))[counts > 0])


def test_flatten_respects_the_offsets_of_a_slice():
    batch = pa.RecordBatch.from_pylist(TRAIN + VALID).slice(1, 3)
    user, item, label = flatten_candidates(batch)
    assert user.tolist() == [2, 2, 2, 3, 3, 3]
    assert item.tolist() == [1, 2, 3, 4, 4, 4]
    assert label.tolist() == [0, 0, 1, 1, 1, 1]


def test_unseen_and_unknown_ids_have_the_global_mean():
    counter = MeanCounter(items=4, users=3)
    counter.add(user=[1, 1, 0], item=[0, 1, 1], label=[1.0, 1.0, 0.0])
    means = counter.means()
    assert means.item[0] == means.item[3] == means.user[0] == means.user[2] == means.overall


def test_probability_is_cut_and_rank_is_not():
    means = Means(item=np.array([0.5, 0.9]), user=np.array([0.5, 0.8]), overall=0.5)
    both = means.item_and_user_mean([1, 1], [1, 0])
    np.testing.assert_allclose(both, [1.2, 0.9])
    np.testing.assert_allclose(clip_probability(both), [0.999, 0.9])


def test_item_outside_its_table(tmp_path: Path):
    data = write_prepared(tmp_path, items=6, files_per_split=1)
    path = data.split_files("train")[0]
    rows = [user_row(1, ([9], [1.0]))]
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    message = r"train.part-00000.parquet: item 9 is outside its table of 6 rows"
    with pytest.raises(UserError, match=message):
        fit_means(data)


def test_damaged_split(tmp_path: Path):
    data = write_prepared(tmp_path)
    path = data.split_files("train")[1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"part-00001.parquet: damaged Parquet file"):
        fit_means(data)


@pytest.fixture(scope="module")
def movielens(shared_data: Path) -> dict[str, np.ndarray]:
    """MovieLens-1M by user and rank, with the split and the earlier positives of each row."""
    path = shared_data / "ml-1m" / "ratings.dat"
    raw = np.array(path.read_text().replace("::", " ").split(), dtype=np.int64).reshape(-1, 4)
    user, item, rating, rank = raw[np.lexsort((raw[:, 3], raw[:, 0]))].T
    label = (rating >= 4).astype(np.float64)
    start = np.searchsorted(user, user)
    before = np.concatenate(([0.0], np.cumsum(label)))[:-1]
    keep = before - before[start] >= 5
    share = rank / np.bincount(user)[user]
    return {
        "user": user,
        "item": item,
        "label": label,
        "train": keep & (share < 0.8),
        "test": keep & (share >= 0.9),
    }


def movielens_scores(rows: dict[str, np.ndarray], train: np.ndarray, shrinkage: float):
    """AUC of item mean, its GAUC, and AUC of item + user mean on the test rows."""
    counter = MeanCounter(items=int(rows["item"].max()) + 1, users=int(rows["user"].max()) + 1)
    counter.add(rows["user"][train], rows["item"][train], rows["label"][train])
    means = counter.means(shrinkage)
    user, item, label = (rows[name][rows["test"]] for name in ("user", "item", "label"))
    by_item = means.item_mean(item)
    return (
        auc(label, by_item),
        gauc(label, by_item, user),
        auc(label, means.item_and_user_mean(item, user)),
    )


def test_movielens_reported_figures_match_a_training_sample(movielens):
    """.741 / .7046 and .7799 are reported beside models of 300,000 sampled training rows."""
    assert movielens["test"].sum() == 97_357
    rng = np.random.default_rng(0)
    sample = rng.choice(np.flatnonzero(movielens["train"]), 300_000, replace=False)
    found = movielens_scores(movielens, sample, shrinkage=5.0)
    assert found == pytest.approx((0.741, 0.7046, 0.7799), abs=0.003)


def test_movielens_means_of_all_training_rows(movielens):
    """The bar that reports use: the same predictors on every training row are stronger."""
    found = movielens_scores(movielens, movielens["train"], shrinkage=5.0)
    assert found == pytest.approx((0.7467, 0.7134, 0.7867), abs=0.0002)
