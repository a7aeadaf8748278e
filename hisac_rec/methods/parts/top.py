"""The best-scored events of every candidate, without padding to the longest history.

Legend: N candidates, T events, P pairs of blocks (parts/pairs.py) of Bc candidates and Bt
events, p of these pairs, H heads, k retrieved events, N L the number of (candidate, event)
pairs of the same request.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hisac_rec.methods.parts.pairs import Pairs

_UNFILLED = torch.iinfo(torch.int64).min
_LOW_BITS = (1 << 32) - 1


@torch.no_grad()
def top_events(
    pairs: Pairs, score: Callable[[Pairs], Tensor], k: int, *, elements_per_pair: int = 0
) -> tuple[Tensor, Tensor]:
    """The k best-scored events of every candidate, without gradient.

    Each pair keeps its own best k, then neighbours are merged two by two until each candidate
    has one list: no tensor is as wide as the longest history. Scores are compared in fp32;
    of equal ones the newest event wins.

    Args:
        pairs: all pairs.
        score: gives the [p, Bc, Bt] or [p, H, Bc, Bt] scores of a part of the pairs (fp32
            or less; wider is rounded), for which :func:`dot_scores` and the methods of
            :class:`Pairs` work as for the whole. Masked places are left out here; an event
            with a score of -inf is still an event.
        k: how many, > 0.
        elements_per_pair: size of the largest intermediate of ``score`` for one pair, heads
            included, if it is more than 2 Bc Bt; memory is bounded by it.

    Returns:
        rows [N, k] int64 (or [N, H, k], each head its own), best first, and filled of the
        same shape; rows are 0 where unfilled. O(N L H log k) comparisons,
        O(N H k + CHUNK_ELEMENTS) memory.
    """
    _, candidate_size, event_size = pairs.shape
    best: list[Tensor] = []
    blocks: list[Tensor] = []
    for part in pairs.chunks(max(elements_per_pair, 2 * candidate_size * event_size)):
        keys = _sortable(score(part), part)
        keys, at = _merge(keys, part.candidate_block, k)
        best.append(keys)
        blocks.append(at)
    keys, at = _merge(torch.cat(best), torch.cat(blocks), k)
    count = len(pairs.candidates.request)
    full = keys.new_full((count, *keys.shape[1:]), _UNFILLED)
    full[at] = keys.sort(-1, descending=True).values
    if full.dim() == 4:
        full = full.transpose(1, 2)
    rows = pairs.candidate_rows(full)
    filled = rows != _UNFILLED
    return torch.where(filled, rows & _LOW_BITS, 0), filled


def _sortable(scores: Tensor, pairs: Pairs) -> Tensor:
    """One integer an event that sorts by score, then by row: newest last. [..., Bt] int64."""
    # Adding zero turns -0.0, which would sort below 0.0, into 0.0.
    bits = (scores.float() + 0.0).contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    rows, mask = pairs.events.index[pairs.event_block].unsqueeze(1), pairs.mask
    if scores.dim() == 4:
        rows, mask = rows.unsqueeze(1), mask.unsqueeze(1)
    return ((ordered.long() << 32) | rows).masked_fill(~mask, _UNFILLED)


def _merge(keys: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Merge the lists [x, ..., w] of each candidate block; ``blocks`` [x] ascending.

    Returns:
        keys [y, ..., k] and blocks [y], one list a block. O(x w log k) comparisons.
    """
    keys = _best(keys, k)
    names, counts = torch.unique_consecutive(blocks, return_counts=True)
    rounds = int(counts.max()).bit_length() if len(counts) else 0
    for _ in range(rounds):
        if len(keys) == len(names):
            break
        first = counts.cumsum(0) - counts
        of = torch.repeat_interleave(torch.arange(len(counts), device=keys.device), counts)
        within = torch.arange(len(keys), device=keys.device) - first[of]
        counts = (counts + 1) // 2
        target = (counts.cumsum(0) - counts)[of] + within // 2
        # Two lists side by side; the second is unfilled where a list is left alone.
        merged = keys.new_full((int(counts.sum()), 2, *keys.shape[1:]), _UNFILLED)
        merged[target, within % 2] = keys
        keys = _best(merged.movedim(1, -2).flatten(-2), k)
    return functional.pad(keys, (0, k - keys.shape[-1]), value=_UNFILLED), names


def _best(keys: Tensor, k: int) -> Tensor:
    """The k largest of the last dimension, in any order."""
    if keys.shape[-1] <= k:
        return keys
    return keys.topk(k, dim=-1, sorted=False).values
