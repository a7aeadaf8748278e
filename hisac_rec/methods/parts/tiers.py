"""SimTier: how many events are how similar to a candidate (arXiv 2407.19467).

A histogram of cosines in tiers of equal width over -1..1; it has no gradient. Legend:
N candidates, T events, B tiers, k retrieved events, s width of unit vectors. "N L" is the
number of (candidate, event) pairs of the same request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hisac_rec.methods.parts.nearest import IndexedEvents
from hisac_rec.methods.parts.pairs import CHUNK_ELEMENTS, make_pairs
from hisac_rec.methods.parts.retrieved import take_events


def tier_of(cosine: Tensor, tiers: int) -> Tensor:
    """int64 tier in [0, B) of each cosine: floor((cosine + 1) / 2 * B), 1 in the last."""
    return ((cosine + 1) * (tiers / 2)).floor().long().clamp(0, tiers - 1)


def count_taken(cosine: Tensor, filled: Tensor, tiers: int) -> Tensor:
    """Histogram of retrieved events.

    Args:
        cosine: [N, k].
        filled: [N, k] bool.
        tiers: B.

    Returns:
        [N, B] float32 counts. O(N (k + B)).
    """
    counts = torch.zeros((len(cosine), tiers), device=cosine.device)
    return counts.scatter_add_(1, tier_of(cosine.detach(), tiers), filled.float())


@torch.no_grad()
def count_all(
    queries: Tensor, candidate_offsets: Tensor, index: IndexedEvents, tiers: int
) -> Tensor:
    """Histogram of all events of the candidate's request.

    Args:
        queries: [N, s] unit vectors.
        candidate_offsets: [R+1] int64 over N.
        index: events with unit vectors as keys.
        tiers: B.

    Returns:
        [N, B] float32 counts. O(N L s); the cosines exist in parts of bounded size.
    """
    # bf16 has no more than eight bits for a cosine, so autocast stops here.
    with torch.autocast(queries.device.type, enabled=False):
        pairs = make_pairs(candidate_offsets, index.offsets, len(queries), len(index.keys))
        left, right = pairs.candidates.gather(queries), pairs.events.gather(index.keys)
        _, wanted, events = pairs.shape
        counts = torch.zeros((len(left), wanted, tiers), device=queries.device)
        # Tier numbers are int64: two fp32 numbers' worth of memory.
        size = (wanted + events) * queries.shape[1] + 4 * wanted * events
        for part in pairs.chunks(size, CHUNK_ELEMENTS):
            cosine = left[part.candidate_block] @ right[part.event_block].transpose(1, 2)
            own = part.mask.expand_as(cosine).float()
            here = counts.new_zeros((len(part), wanted, tiers))
            here.scatter_add_(2, tier_of(cosine, tiers), own)
            counts.index_add_(0, part.candidate_block, here)
        return pairs.candidate_rows(counts)


@torch.no_grad()
def taken_products(queries: Tensor, keys: Tensor, rows: Tensor, filled: Tensor) -> Tensor:
    """Dot product of each candidate with each of its retrieved events.

    Args:
        queries: [N, s].
        keys: [T, s].
        rows: [N, k] int64 into T.
        filled: [N, k] bool.

    Returns:
        [N, k], zeros where unfilled. O(N k s), of which CHUNK_ELEMENTS exist at a time.
    """
    products = queries.new_zeros(rows.shape)
    size = max(1, CHUNK_ELEMENTS // max(1, rows.shape[1] * queries.shape[1]))
    with torch.autocast(queries.device.type, enabled=False):
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            taken = take_events(keys, rows[part], filled[part])
            products[part] = (taken @ queries[part].unsqueeze(-1)).squeeze(-1)
    return products
