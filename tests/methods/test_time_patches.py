"""Time patches: contiguous, in order, of equal size, and nothing else."""

from __future__ import annotations

import pytest
import torch
from histories import make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import assert_agents_are, assert_partition, gradient_shares

from hisac_rec.methods.parts.compressor import CompressorConfig
from hisac_rec.methods.time_patches import Method


def make_method(agents: int) -> Method:
    torch.manual_seed(0)
    return Method(CompressorConfig(agents=agents), make_shape())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    agents=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_patches_are_even_contiguous_stretches(lengths: list[int], agents: int, seed: int) -> None:
    history, _ = make_case(lengths, [1] * len(lengths), dtype=torch.float64, seed=seed)
    memory = make_method(agents).compress(history)
    assert_partition(memory, history, agents)
    shares = gradient_shares(memory, history.values)
    torch.testing.assert_close(shares, torch.ones_like(shares))
    parts: list[list[list[int]]] = []
    for request, length in enumerate(lengths):
        sizes = memory.events[request, memory.filled[request]].int().tolist()
        assert len(sizes) == min(agents, length)
        assert not sizes or max(sizes) - min(sizes) <= 1
        # Even sizes alone do not make stretches: each next patch begins where the last ended.
        ends = [sum(sizes[: j + 1]) for j in range(len(sizes))]
        parts.append([list(range(e - s, e)) for s, e in zip(sizes, ends, strict=True)])
    assert_agents_are(memory, history, parts)


def test_by_hand() -> None:
    history, _ = make_case([5, 2], [1, 1])
    memory = make_method(2).compress(history)
    assert memory.events.tolist() == [[3, 2], [1, 1]]
    torch.testing.assert_close(memory.vectors[0, 1], history.values[3:5].mean(0))
    torch.testing.assert_close(memory.vectors[1], history.values[5:7])


@pytest.mark.parametrize("length", [128, 5_000, 100_000])
def test_long_histories_fill_the_budget(length: int) -> None:
    history, _ = make_case([length], [1])
    memory = make_method(128).compress(history)
    assert memory.filled.all()
    assert memory.events.max() - memory.events.min() <= 1
    assert memory.events.sum() == length
