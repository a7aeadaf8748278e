"""Initial rows depend on seed, table and row number alone, however a table is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.train import tables
from hisac_rec.train.tables import _fill_random, fill_tables


@settings(deadline=None, max_examples=50)
@given(
    rows=st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted),
    columns=st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted),
    block=st.sampled_from([1, 4, 7, 64]),
)
def test_a_shard_is_a_piece_of_the_whole(rows: list[int], columns: list[int], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ROWS_PER_BLOCK", block)
        whole = torch.empty(30, 6)
        _fill_random(whole, slice(0, 30), slice(0, 6), 6, 0.1, seed=3)
        part = torch.empty(rows[1] - rows[0], columns[1] - columns[0])
        _fill_random(part, slice(*rows), slice(*columns), 6, 0.1, seed=3)
        assert torch.equal(part, whole[slice(*rows), slice(*columns)])


def filled(seed: int = 0, scale: float = 0.1) -> dict[str, torch.Tensor]:
    state = {
        "tables.embeddings.item.weight": torch.full((2_000, 8), torch.nan),
        "tables.embeddings.user.weight": torch.full((2_000, 8), torch.nan),
        "vectors.embeddings.semantic_vector.weight": torch.full((50, 4), torch.nan).half(),
        "head.dense.over.out.weight": torch.full((1, 8), 7.0),
    }
    vectors = np.arange(200, dtype=np.float16).reshape(50, 4)
    fill_tables(state, seed=seed, scale=scale, vectors=vectors)
    return state


def test_rows_are_uniform_seeded_and_of_their_own() -> None:
    state = filled()
    item, user, vectors, dense = state.values()
    assert item.abs().max() <= 0.1
    assert item.mean().abs() < 0.002
    assert float(item.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert not torch.equal(item, user)
    assert torch.equal(vectors, torch.arange(200).view(50, 4).half())
    assert (dense == 7).all()
    again, other, wide = filled(), filled(seed=1), filled(scale=0.2)
    key = "tables.embeddings.item.weight"
    assert torch.equal(again[key], item)
    assert not torch.equal(other[key], item)
    torch.testing.assert_close(wide[key], 2 * item)


def test_vectors_must_be_given() -> None:
    state = {"vectors.embeddings.semantic_vector.weight": torch.zeros(5, 4)}
    with pytest.raises(ValueError, match="no vectors were given"):
        fill_tables(state, seed=0, scale=0.1, vectors=None)
