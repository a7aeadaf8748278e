"""Retrieval by dot product, and what retrieve-then-attend methods keep of a history for it.

Legend: R requests, N candidates, T events, k retrieved events, w width of what is compared,
d width of embeddings. "N L" is the number of (candidate, event) pairs of the same request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hisac_rec.methods.parts.pairs import Pairs, make_pairs
from hisac_rec.methods.parts.top import top_events


@dataclass
class IndexedEvents:
    """A history and what its events are found by. It grows with the history.

    Args:
        offsets: [R+1] int64 over T.
        values: [T, d] events e'.
        keys: [T, w] what queries are compared with.
    """

    offsets: Tensor
    values: Tensor
    keys: Tensor


@torch.no_grad()
def nearest_events(
    queries: Tensor, candidate_offsets: Tensor, index: IndexedEvents, k: int
) -> tuple[Tensor, Tensor]:
    """The k events of the own request with the largest dot product, for every candidate.

    Exact, in fp32 or wider, without gradient; of equal ones the newest wins.

    Args:
        queries: [N, w].
        candidate_offsets: [R+1] int64 over N.
        index: the events.
        k: how many, > 0.

    Returns:
        rows [N, k] int64 into T, best first, and filled [N, k] bool. O(N L (w + log k)).
    """
    # bf16 would call events equal that are not, so autocast stops here.
    with torch.autocast(queries.device.type, enabled=False):
        pairs = make_pairs(candidate_offsets, index.offsets, len(queries), len(index.keys))
        # Blocked once, not once for every part of the pairs.
        left, right = (
            pairs.candidates.gather(_wide(queries)),
            pairs.events.gather(_wide(index.keys)),
        )

        def score(part: Pairs) -> Tensor:
            return left[part.candidate_block] @ right[part.event_block].transpose(1, 2)

        _, wanted, events = pairs.shape
        size = (wanted + events) * queries.shape[1] + wanted * events
        return top_events(pairs, score, k, elements_per_pair=size)


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
