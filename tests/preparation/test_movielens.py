"""MovieLens-1M from the publisher's files, on the public protocol."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from hisac_rec.config import load_config
from hisac_rec.data.contract import PreparedData
from hisac_rec.evaluation.metrics import auc, gauc
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.shipped import find_config

Columns = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


def movielens(raw: Path, out: Path, *overrides: str) -> PreparedData:
    path = find_config("datasets", "movielens_1m")
    return prepare(load_config(DatasetDefinition, path, overrides), out, raw=raw)


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return movielens(shared_data / "ml-1m", tmp_path_factory.mktemp("data") / "ml")


def candidates(data: PreparedData, split: str) -> Columns:
    """User, item and label of every candidate."""
    table = pq.read_table(data.root / split, columns=["user", "requests"])
    requests = table["requests"].combine_chunks()
    flat = requests.flatten()
    per_request = flat.field("items").value_lengths().to_numpy()
    user = np.repeat(table["user"].to_numpy(), requests.value_lengths().to_numpy())
    items, labels = flat.field("items").flatten(), flat.field("labels").flatten()
    return np.repeat(user, per_request), items.to_numpy(), labels.to_numpy()


def means(keys: NDArray[np.int32], labels: NDArray[np.float32], rows: int) -> NDArray[np.float64]:
    """Mean label of each key; of all where a key is new."""
    count = np.bincount(keys, minlength=rows)
    total = np.bincount(keys, labels, minlength=rows)
    return np.where(count > 0, total / np.maximum(count, 1), labels.mean())


def test_counts(data: PreparedData) -> None:
    manifest = data.manifest
    assert (manifest.users, manifest.items) == (6041, 3884)  # 3,883 in the catalogue
    counts = [manifest.splits[s].candidates for s in ("train", "valid", "test")]
    assert counts == [748_782, 100_222, 97_357]
    assert {f.name: f.rows - 1 for f in manifest.user_features} == {
        "gender": 2,
        "age": 7,
        "occupation": 21,
        "region": 97,
    }
    assert manifest.event_types == ["rating 4", "rating 5"]
    assert not manifest.has_clock
    genres = pq.read_table(data.root / "vocab" / "genre.parquet")["value"].to_pylist()
    assert len(genres) == 19
    toy = data.items.filter(pc.equal(data.items["raw_id"], "1")).to_pylist()[0]
    assert [genres[g] for g in toy["genre"]] == ["Animation", "Children's", "Comedy"]
    assert "Toy Story" in toy["text"]
    assert "John Lasseter" in toy["text"]
    slingshot = data.items.filter(pc.equal(data.items["raw_id"], "570")).to_pylist()[0]
    assert "Kådisbellan" in slingshot["text"]  # Latin-1


def test_trivial_predictors(data: PreparedData) -> None:
    """The published .741/.7046 and .7799 belong to 300,000 sampled training rows."""
    rows = data.manifest.items
    user, item, label = candidates(data, "train")
    test_user, test_item, test_label = candidates(data, "test")

    def score(chosen: NDArray[np.int64]) -> tuple[float, float, float]:
        by_item = means(item[chosen], label[chosen], rows)[test_item]
        by_user = means(user[chosen], label[chosen], data.manifest.users)[test_user]
        return (
            auc(test_label, by_item),
            gauc(test_label, by_item, test_user),
            auc(test_label, by_item + by_user),
        )

    sample = np.random.default_rng(0).choice(len(item), 300_000, replace=False)
    assert score(sample) == pytest.approx((0.741, 0.7046, 0.7799), abs=0.003)
    assert score(np.arange(len(item))) == pytest.approx((0.7463, 0.7132, 0.7857), abs=2e-4)


def test_history_is_liked_earlier_and_at_least_five(data: PreparedData) -> None:
    table = pq.read_table(data.root / "test")
    requests = table["requests"].combine_chunks().flatten()
    assert pc.min(requests.field("history_end")).as_py() == 5
    row = table.slice(100, 1).to_pylist()[0]
    last = row["requests"][-1]
    assert row["history_time"][last["history_end"] - 1] < last["time"]
    assert len(row["history_item"]) == last["history_end"]


def test_grouped_training_keeps_candidates_and_exact_tests(
    data: PreparedData, shared_data: Path, tmp_path: Path
) -> None:
    raw = shared_data / "ml-1m"
    keys = ("requests.train_group_events=8", "requests.valid_group_events=4")
    grouped = movielens(raw, tmp_path / "g8", *keys)
    one, eight = data.manifest.splits["train"], grouped.manifest.splits["train"]
    assert (eight.candidates, eight.positives) == (one.candidates, one.positives)
    assert eight.requests < one.requests / 7
    assert grouped.stats.candidates_max == 8
    chosen_by, before = grouped.manifest.splits["valid"], data.manifest.splits["valid"]
    assert chosen_by.candidates == before.candidates
    assert chosen_by.requests < before.requests / 3
    assert pq.read_table(grouped.root / "test").equals(pq.read_table(data.root / "test"))


def test_publishers_files_alone_with_a_clock(
    data: PreparedData, shared_data: Path, tmp_path: Path
) -> None:
    """Seconds in place of ranks, many ratings a second, shuffled users, no extra file."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("movies.dat", "users.dat"):
        shutil.copy(shared_data / "ml-1m" / name, raw / name)
    lines = (shared_data / "ml-1m" / "ratings.dat").read_text().splitlines()[:20_000]
    cells = [line.split("::") for line in lines]
    stamped = [f"{u}::{i}::{r}::{978_300_000 + int(k) // 3}" for u, i, r, k in cells]
    (raw / "ratings.dat").write_text("\n".join(stamped) + "\n")
    plain = movielens(raw, tmp_path / "out")
    (raw / "ratings.dat").write_text("\n".join(lines) + "\n")
    ranked = movielens(raw, tmp_path / "ranked")
    for split in ("train", "valid", "test"):
        assert pq.read_table(plain.root / split).equals(pq.read_table(ranked.root / split))
    directors = next(f for f in plain.manifest.item_features if f.name == "director")
    assert directors.rows == 1
    assert plain.items["director"].to_pylist()[5] == [0]
    assert isinstance(plain.items["text"], pa.ChunkedArray)
