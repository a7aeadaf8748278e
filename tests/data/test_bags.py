"""Bags hold what they say, for any grouping: against plain Python."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.data.bags import BagLookup, Groups, fill_bags, newest_rows
from hisac_rec.data.items import ItemRows, ItemStore, Ragged

ITEMS = 12
TAGS = [[], [1], [2, 3], [3], [1, 1], [0, 2, 4], [], [4], [2], [3, 1], [0], [1, 2]]


def store() -> ItemStore:
    lengths = [len(tags) for tags in TAGS]
    tags = Ragged(
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array(list(chain.from_iterable(TAGS)), dtype=np.int32),
    )
    codes = np.stack([np.arange(ITEMS) % 3, np.arange(ITEMS) % 2], 1).astype(np.int32)
    brand = {"brand": (np.arange(ITEMS) % 5).astype(np.int32)}
    return ItemStore(ITEMS, brand, {"tags": tags}, codes, (3, 2), np.ones(ITEMS, bool))


def rows(items: list[int]) -> ItemRows:
    return store().of_coded(np.array(items, dtype=np.int64))


LOOKUPS = (
    BagLookup("item", ("item", False), ("item", False)),
    BagLookup("sid2", ("sid2", False), None),
    BagLookup("tags", ("tags", True), ("tags", True)),
)


def shares(column: str, item: int) -> dict[int, float]:
    """Value -> weight of one item: a list gives the mean of its values."""
    values = {"item": [item], "sid2": [item % 2], "tags": TAGS[item]}[column]
    found: dict[int, float] = defaultdict(float)
    for value in values:
        found[value] += 1 / len(values)
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_plain_python(data: st.DataObject) -> None:
    item = st.integers(0, ITEMS - 1)
    history = data.draw(st.lists(item, max_size=20))
    candidates = data.draw(st.lists(item, max_size=5))
    count = data.draw(st.integers(0, 4))
    event = st.tuples(st.integers(0, max(0, len(history) - 1)), st.integers(0, max(0, count - 1)))
    entries = data.draw(st.lists(event, max_size=30 if history and count else 0))
    weights = data.draw(
        st.lists(st.floats(0, 2, width=32), min_size=len(entries), max_size=len(entries))
    )
    singles = sorted(data.draw(st.sets(st.integers(0, max(0, len(history) - 1)))))
    singles = singles if history else []
    bags = fill_bags(
        LOOKUPS,
        store(),
        rows(history),
        Groups(
            count,
            torch.tensor([group for _, group in entries], dtype=torch.int64),
            torch.tensor([event for event, _ in entries], dtype=torch.int64),
            torch.tensor(weights, dtype=torch.float32),
        ),
        np.array(singles, dtype=np.int64),
        rows(candidates),
    )
    assert bags.stride() == count + len(singles) + len(candidates)
    for lookup in LOOKUPS:
        wanted: list[dict[int, float]] = [defaultdict(float) for _ in range(count)]
        for (which, group), weight in zip(entries, weights, strict=True):
            for value, share in shares(lookup.history[0], history[which]).items():
                wanted[group][value] += share * weight
        wanted += [shares(lookup.history[0], history[row]) for row in singles]
        read = lookup.candidate
        wanted += [shares(read[0], one) if read else {} for one in candidates]
        found = bags[lookup.table]
        offsets = found.offsets().tolist()
        values, weight_of = found.values().tolist(), found.weights().tolist()
        for bag, (begin, end) in enumerate(pairwise(offsets)):
            got: dict[int, float] = defaultdict(float)
            for value, weight in zip(values[begin:end], weight_of[begin:end], strict=True):
                got[value] += weight
            assert got == pytest.approx(wanted[bag], abs=1e-5)
            if bag < count:  # an id is sent once
                assert len(got) == end - begin


def test_all_events_with_weight_one_by_default() -> None:
    groups = Groups(2, torch.tensor([1, 0, 1, 1]))
    none = np.zeros(0, np.int64)
    bags = fill_bags(LOOKUPS[:1], store(), rows([4, 5, 4, 6]), groups, none, rows([]))
    assert bags.values().tolist() == [5, 4, 6]
    assert bags.weights().tolist() == [1.0, 2.0, 1.0]
    assert bags.lengths().tolist() == [1, 2]


def test_newest_rows() -> None:
    offsets = np.array([0, 3, 3, 8])
    assert newest_rows(offsets, 2).tolist() == [1, 2, 6, 7]
    assert newest_rows(offsets, 9).tolist() == list(range(8))
    assert newest_rows(offsets, 0).tolist() == []
