from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import write_prepared
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import auc, gauc, logloss
from hisac_rec.evaluation.parts import sigmoid
from hisac_rec.evaluation.predictions import Predictions
from hisac_rec.evaluation.slices import (
    DAY,
    buckets,
    by_age,
    by_count,
    by_history_length,
    by_popularity,
    slice_metrics,
    standard_slicings,
)


def predictions(n: int = 400, items: int = 50, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=n).astype(np.float32)
    return Predictions(
        user=rng.integers(1, 30, n).astype(np.int32),
        time=rng.integers(0, 300 * DAY, n),
        item=rng.integers(1, items, n).astype(np.int32),
        label=rng.integers(0, 2, n).astype(np.float32),
        logit=logit,
        score=sigmoid(logit).astype(np.float32),
        history_length=rng.integers(0, 2000, n).astype(np.int32),
        request=np.arange(n),
    )


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("quantiles", [None, 4])
def test_slices_partition_the_rows(tmp_path: Path, clock: bool, quantiles: int | None):
    data = write_prepared(tmp_path)
    data.manifest = data.manifest.model_copy(update={"has_clock": clock})
    rows = predictions()
    for slicing in standard_slicings(rows, data, quantiles):
        found = list(buckets(slicing))
        assert len({name for name, _ in found}) == len(found)
        everything = np.sort(np.concatenate([at for _, at in found]))
        np.testing.assert_array_equal(everything, np.arange(len(rows)))
        for name, at in found:
            assert {slicing.names[b] for b in slicing.bucket[at]} == {name}


def test_fixed_history_buckets():
    length = np.array([0, 1, 10, 11, 50, 51, 200, 201, 1000, 1001, 10_000])
    found = {name: length[at].tolist() for name, at in buckets(by_history_length(length))}
    assert found == {
        "0": [0],
        "1-10": [1, 10],
        "11-50": [11, 50],
        "51-200": [51, 200],
        "201-1000": [201, 1000],
        "1001+": [1001, 10_000],
    }


@given(hnp.arrays(np.int64, st.integers(1, 80), elements=st.integers(0, 40)), st.integers(1, 8))
def test_names_of_history_quantiles_tell_what_is_inside(length, quantiles):
    for name, at in buckets(by_history_length(length, quantiles)):
        low, _, high = name.partition("-")
        assert int(low) <= length[at].min()
        assert length[at].max() <= int(high or low)


def test_history_quantiles_are_about_equal():
    length = np.random.default_rng(0).geometric(0.01, 20_000)
    sizes = [len(at) for _, at in buckets(by_history_length(length, 5))]
    assert len(sizes) == 5
    assert min(sizes) > 3_600


def test_popularity_deciles_hold_a_tenth_of_the_items_each():
    count = np.arange(101) * 3  # item i has 3 i impressions
    items = np.arange(1, 101)
    found = {name: items[at] for name, at in buckets(by_popularity(items, count))}
    assert next(iter(found)) == "decile 1 (3-32)"
    assert list(found)[-1] == "decile 10 (273-300)"
    assert all(len(of) == 10 for of in found.values())


def test_items_never_seen_have_their_own_bucket():
    count = np.array([99, 0, 5, 5, 5])  # row 0 is "unknown": no item
    slicing = by_popularity([0, 1, 2, 4], count)
    assert {name: at.tolist() for name, at in buckets(slicing)} == {
        "unseen": [0, 1],
        "decile 1 (5)": [2, 3],
    }
    assert [name for name, _ in buckets(by_popularity([1], np.array([0, 0])))] == ["unseen"]


def test_age_without_a_clock_is_by_impressions():
    count = np.array([0, 0, 1, 9, 10, 99, 100])
    found = {n: at.tolist() for n, at in buckets(by_count(np.arange(1, 7), count))}
    assert found == {
        "unseen": [0],
        "1-9 impressions": [1, 2],
        "10-99 impressions": [3, 4],
        "100+ impressions": [5],
    }


def test_age_is_from_the_first_sight_in_training(tmp_path: Path):
    write_prepared(tmp_path)
    path = tmp_path / "items.parquet"
    table = pq.read_table(path)
    first: list[int | None] = [None, None, 0, 0, 0, 0, 0, 2 * DAY] + [0] * 42
    place = table.column_names.index("first_time")
    pq.write_table(table.set_column(place, table.schema.field(place), [first]), path)
    rows = predictions(7)
    object.__setattr__(rows, "item", np.arange(1, 8, dtype=np.int32))
    object.__setattr__(rows, "time", np.array([9, DAY - 1, DAY, 8 * DAY, 31 * DAY, 999 * DAY, DAY]))
    slicing = by_age(rows, PreparedData(tmp_path))
    assert [slicing.names[b] for b in slicing.bucket] == [
        "not seen before",
        "under 1 day",
        "1-7 days",
        "7-30 days",
        "30-180 days",
        "180+ days",
        "not seen before",  # first seen a day after this request
    ]


def test_values_are_those_of_the_rows_alone():
    rows = predictions()
    at = np.flatnonzero(rows.history_length > 1000)
    label, user = rows.label[at], rows.user[at]
    found = slice_metrics(label, rows.logit[at], rows.score[at], user)
    assert found.auc == auc(label, rows.logit[at])
    assert found.gauc == gauc(label, rows.logit[at], user)
    assert found.logloss == logloss(label, rows.score[at])


def test_one_class_has_no_auc():
    found = slice_metrics([1, 1], [0.1, 0.2], [0.5, 0.5], [1, 2])
    assert np.isnan(found.auc)
    assert np.isnan(found.gauc)
    assert found.logloss == pytest.approx(np.log(2))


def test_item_of_other_data(tmp_path: Path):
    data = write_prepared(tmp_path, items=20)
    with pytest.raises(UserError, match=r"item \d+ \(row \d+ .* ids are 0 to 19"):
        standard_slicings(predictions(items=50), data)
