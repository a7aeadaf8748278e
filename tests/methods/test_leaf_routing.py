"""Leaf routing, by pairs and by products, equals the general operator over the same leaves."""

from __future__ import annotations

import pytest
import torch
from histories import CODES, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.hisac import leaf_geometry, leaf_products, leaf_routing
from hisac_rec.methods.hisac.leaf_geometry import LeafGeometry
from hisac_rec.methods.hisac.leaf_routing import route_leaves
from hisac_rec.methods.hisac.leaves import path_vectors
from hisac_rec.methods.hisac.voting import activate, count_leaves, to_slots
from hisac_rec.ops.soft_route import Frozen, soft_route

WIDTH = 3

WAYS = [("list", 1), ("list", 40), ("list", 1 << 22)]
WAYS += [(way, chunk) for way in ("loops", "products") for chunk in (1, 1 << 22)]
"""How pairs are added up, and how many may be held."""


def routed_by(patch: pytest.MonkeyPatch, way: tuple[str, int]) -> None:
    """Choose one of :data:`WAYS`."""
    patch.setattr(leaf_routing, "are_listed", lambda _: way[0] == "list")
    patch.setattr(leaf_products, "LEAST_PAIRS", 1 << 62 if way[0] == "loops" else 0)
    patch.setattr(leaf_geometry, "CHUNK_PAIRS", way[1])


def make_leaves(
    lengths: list[int], *, keep: tuple[int, int], tau: float, squared: bool, seed: int
) -> tuple[Tensor, LeafGeometry, Frozen, Tensor]:
    """Leaf sums, their geometry, the same for the general operator, and its filled slots."""
    history, _ = make_case(lengths, [0] * len(lengths), dtype=torch.float64, seed=seed)
    codebook = make_shape(dtype=torch.float64).codebook
    leaves = count_leaves(history.codes, history.offsets, CODES)
    agents = activate(leaves, keep, CODES)
    geometry = leaf_geometry.leaf_geometry(
        leaves, agents, len(lengths), codebook, tau=tau, squared=squared
    )
    slot, filled = to_slots(agents, len(lengths))
    keys = path_vectors(leaves.path, codebook)
    queries = keys.new_zeros((*filled.shape, keys.shape[1]))
    queries[agents.request, slot] = keys[agents.leaf]
    frozen = Frozen(queries, keys, leaves.events, geometry.leaf_offsets, tau, squared)
    generator = torch.Generator().manual_seed(seed)
    sums = torch.randn(len(keys), WIDTH, generator=generator, dtype=torch.float64)
    return sums.requires_grad_(), geometry, frozen, filled


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 17, 60]), min_size=1, max_size=5),
    keep=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    tau=st.sampled_from([0.05, 1.0]),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_general_operator(
    way: tuple[str, int],
    lengths: list[int],
    keep: tuple[int, int],
    tau: float,
    squared: bool,
    seed: int,
) -> None:
    sums, geometry, frozen, filled = make_leaves(
        lengths, keep=keep, tau=tau, squared=squared, seed=seed
    )
    with pytest.MonkeyPatch.context() as patch:
        routed_by(patch, way)
        routed = route_leaves(sums, geometry)
        expected = soft_route(sums, frozen)[filled]
        # 1e-5: the general operator takes distances as differences of rounded squares.
        torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-5)
        direction = torch.randn(routed.shape, dtype=torch.float64)
        (found,) = torch.autograd.grad((routed * direction).sum(), sums)
    (wanted,) = torch.autograd.grad((expected * direction).sum(), sums)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("chunk", [40, 1 << 22])
def test_look_ups_and_products_give_the_same_weights(
    squared: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaf_geometry, "CHUNK_PAIRS", chunk)
    _, geometry, _, _ = make_leaves([17, 0, 60, 1], keep=(3, 4), tau=0.5, squared=squared, seed=2)
    parts = geometry.parts()
    assert (len(parts) > 1) == (chunk == 40)
    for part in parts:
        products = list(leaf_products.multiply_weights(geometry, part, torch.float64))
        weights = torch.cat([torch.zeros(0), *(one.weights.flatten() for one in products)])
        looked_up = leaf_products.look_up_weights(geometry, part, torch.float64)
        # A distance of zero is exact by look-ups, and the root of a rounding by products.
        torch.testing.assert_close(looked_up, weights.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradient(way: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    routed_by(monkeypatch, way)
    sums, geometry, _, _ = make_leaves([17, 0, 5], keep=(2, 2), tau=0.5, squared=False, seed=1)
    assert torch.autograd.gradcheck(lambda rows: route_leaves(rows, geometry), (sums,))


@pytest.mark.parametrize("way", WAYS)
def test_an_agent_reads_its_own_leaf_exactly(
    way: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a low temperature an agent is the mean of its own leaf, also in fp32."""
    routed_by(monkeypatch, way)
    sums, geometry, _, _ = make_leaves([60], keep=(4, 6), tau=1e-4, squared=False, seed=3)
    routed = route_leaves(sums.detach().float(), geometry)
    own = sums[geometry.agents] / geometry.counts[geometry.agents].unsqueeze(1)
    torch.testing.assert_close(routed, own.detach().float())


def test_threads_share_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where requests are fewer than threads, or empty."""
    for lengths in ([17, 0, 60, 1, 5, 30], [60], [0, 0], [0, 9, 0]):
        _, geometry, _, _ = make_leaves(lengths, keep=(4, 4), tau=0.5, squared=False, seed=4)
        whole = slice(0, len(lengths))
        one = leaf_products.look_up_weights(geometry, whole, torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr(leaf_products, "PAIRS_A_THREAD", 1)
            patch.setattr(torch, "get_num_threads", lambda: 3)
            assert torch.equal(leaf_products.look_up_weights(geometry, whole, torch.float32), one)


def test_products_of_code_words_are_held_until_the_codebook_changes() -> None:
    held = leaf_geometry.CodeWords()
    codebook = [torch.randn(3, 2), torch.randn(4, 2)]
    words, gram = held.of(codebook)
    assert held.of(codebook)[1] is gram
    codebook[1].mul_(2.0)
    changed = held.of(codebook)[1]
    torch.testing.assert_close(changed[3:, 3:], 4 * gram[3:, 3:])
    torch.testing.assert_close(changed[:3, :3], gram[:3, :3])
    assert words.shape == (7, 2)
