"""The mapping of keys to rows: admission, eviction, and other cuts of it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor

from hisac_rec.data.jagged import Ints
from hisac_rec.data.vocabulary import KEYS, VocabularyConfig
from hisac_rec.managed.mapping import FREE, RowMapping
from hisac_rec.managed.modules import LEAST_ROOM, CollisionModule, managed_collection

ROWS = 8


def module_of(**keys: Any) -> CollisionModule:
    """One that evicts every second step, of the collection that a model file gives."""
    vocabulary = VocabularyConfig.model_validate(
        {"kind": "managed", "rows": ROWS, "eviction_every": 2} | keys
    )
    table = EmbeddingConfig(
        name="item", num_embeddings=ROWS, embedding_dim=4, feature_names=["item"]
    )
    made = managed_collection([table], {"item": vocabulary}, torch.device("cpu"))
    found = made._managed_collision_collection._managed_collision_modules["item"]
    assert isinstance(found, CollisionModule)
    return found


def rows_of(module: CollisionModule, keys: list[int]) -> list[int]:
    """The rows of one batch, which counts where the module trains."""
    batch = JaggedTensor(torch.tensor(keys, dtype=torch.int64), lengths=torch.tensor([len(keys)]))
    found: Tensor = module({"item": batch})["item"].values()
    return found.tolist()


def state(module: CollisionModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("eviction", ["distance_lfu", "lru"])
def test_rows_go_to_what_is_met_and_come_back(eviction: str) -> None:
    module = module_of(eviction=eviction)
    early, shared = [11, 12, 13], ROWS - 1
    assert rows_of(module, early) == [shared] * 3
    first = rows_of(module, early)
    assert len(set(first)) == 3
    assert shared not in first
    for _ in range(20):
        later = rows_of(module, list(range(100, 100 + ROWS)))
    evicted = module.evict()
    # One row is shared, so one of the eight goes without.
    assert len(set(later)) == ROWS
    assert rows_of(module, early) == [shared] * 3
    assert evicted is not None
    assert set(first) <= set(evicted.tolist())


def test_least_often_met_is_counted_since_the_beginning() -> None:
    """Who has a row keeps it from those that are not met more often between two rounds."""
    module = module_of(eviction="lfu")
    early, shared = [11, 12, 13], ROWS - 1
    for _ in range(2):
        first = rows_of(module, early)
    for _ in range(20):
        later = rows_of(module, list(range(100, 100 + ROWS)))
    assert later.count(shared) == ROWS - (shared - len(early))
    assert rows_of(module, early) == first
    for _ in range(2):
        rows_of(module, [200] * 5)
    assert shared not in rows_of(module, [200])


def test_evaluation_changes_nothing() -> None:
    module = module_of()
    for _ in range(2):
        rows_of(module, [11, 12])
    module.eval()
    before = state(module)
    for _ in range(5):
        first = rows_of(module, [11, *range(500, 530)])
    assert first[1:] == [ROWS - 1] * 30
    assert all(torch.equal(value, before[name]) for name, value in state(module).items())


def test_what_does_not_pass_the_filter_gets_no_row() -> None:
    counted = [1, 1, 1, 1, 1, 1, 2, 3]
    for admission, admitted in (
        ({"admission": "average"}, {1}),
        ({"admission": "dynamic", "admission_value": 1.0}, {1}),
        ({"admission": "dynamic", "admission_value": 0.1}, {1, 2, 3}),
        ({"admission": "probabilistic", "admission_value": 1.0}, {1, 2, 3}),
        ({"admission": "probabilistic", "admission_value": 1e-9}, set()),
    ):
        module = module_of(**admission)
        rows_of(module, [])
        rows_of(module, counted)
        found = dict(zip(counted, rows_of(module, counted), strict=True))
        assert {key for key, row in found.items() if row != ROWS - 1} == admitted, admission
    empty = module_of(admission="dynamic")
    for _ in range(4):
        assert rows_of(empty, []) == []


def test_a_small_first_batch_leaves_room_for_larger_ones() -> None:
    """TorchRec's own buffer would be that of the first batch."""
    module = module_of()
    rows_of(module, [])
    many = [7, *range(1_000, 1_000 + 3 * LEAST_ROOM), 7]
    assert rows_of(module, many)[0] != ROWS - 1
    assert module._mch_counts[module._mch_sorted_raw_ids == 7].tolist() == [2]


def mapping_of(ranks: int, live: int, rows: int, seed: int = 0) -> RowMapping:
    """As ranks would have it that were met ``live`` keys, all that fit."""
    rng = np.random.default_rng(seed)
    segments = np.minimum(np.arange(ranks + 1) * -(-rows // ranks), rows)
    every = rng.integers(1, KEYS, live)
    keys, mapped = np.full(rows, FREE), np.arange(rows)
    for block, (begin, end) in enumerate(itertools.pairwise(segments)):
        mine = np.sort(every[every // -(-KEYS // ranks) == block])[: end - begin - 1]
        keys[begin : begin + len(mine)] = mine
        mapped[begin : end - 1] = rng.permutation(np.arange(begin, end - 1))
    counts = rng.integers(1, 50, rows)
    return RowMapping(segments, keys, mapped, {"counts": np.where(keys == FREE, 0, counts)})


@pytest.mark.parametrize("ranks", [(1, 2), (2, 1), (2, 3), (3, 2), (4, 4)])
def test_another_cut_keeps_every_key_with_its_row(ranks: tuple[int, int]) -> None:
    before, after = ranks
    old = mapping_of(before, live=120, rows=300)
    wanted = mapping_of(after, 0, 300).segments
    new, row_there, left_out = old.cut_anew(wanted)
    assert left_out == 0
    assert sorted(new.rows) == list(range(300))
    keys = old.keys[old.keys != FREE]
    assert (row_there[new.rows_of(keys)] == old.rows_of(keys)).all()
    for block, (begin, end) in enumerate(itertools.pairwise(wanted)):
        own: Ints = new.keys[begin:end]
        given = own[own != FREE]
        assert (np.diff(own[: len(given) + 1]) > 0).all()
        assert (given // -(-KEYS // after) == block).all()
        assert ((new.rows[begin:end] >= begin) & (new.rows[begin:end] < end)).all()
        assert new.rows[end - 1] == end - 1
    # Who has no row reads the shared one of a rank that did so before.
    strangers = np.arange(after) * -(-KEYS // after) + 1
    assert (row_there[new.rows_of(strangers)] == old.rows_of(strangers)).all()
    if before == after:
        assert np.array_equal(new.keys, old.keys)
        assert np.array_equal(new.rows_of(keys), old.rows_of(keys))


def test_where_rows_do_not_do_the_least_met_keys_are_left_out() -> None:
    old = mapping_of(1, live=99, rows=100)
    new, row_there, left_out = old.cut_anew(np.array([0, 25, 50]))
    kept = np.isin(old.keys, new.keys[new.keys != FREE])
    live = old.keys != FREE
    assert left_out == (live & ~kept).sum() == 99 - 48
    for block in range(2):
        mine = live & (old.keys // -(-KEYS // 2) == block)
        counts = old.counts["counts"]
        assert counts[mine & kept].min() >= counts[mine & ~kept].max()
    keys = new.keys[new.keys != FREE]
    assert (row_there[new.rows_of(keys)] == old.rows_of(keys)).all()
