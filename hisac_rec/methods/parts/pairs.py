"""Work per candidate and event over jagged histories, without padding to the longest one.

Candidates and events of a request are cut into blocks (parts/blocks.py); every pair of a
candidate block and an event block of the same request is one small dense matrix. A batch of
very different lengths is then a batch of equal matrices.

Legend: R requests, N candidates, T events, C candidate blocks of Bc, P pairs, Bt events a
block, H heads (a dimension of scores that functions below carry along, or none), d width,
N L the number of (candidate, event) pairs of the same request: the sum of N_r T_r.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hisac_rec.methods.parts.blocks import Blocks, block_size, make_blocks

CHUNK_ELEMENTS = 1 << 22
"""How many numbers of a large intermediate exist at a time where a caller asks for chunks."""


@dataclass
class Pairs:
    """All pairs of a candidate block and an event block of one request, or some of them.

    Pairs of one candidate block follow each other, oldest events first.

    Args:
        candidates: the C candidate blocks.
        events: the event blocks.
        candidate_block: [P] int64, ascending.
        event_block: [P] int64.
    """

    candidates: Blocks
    events: Blocks
    candidate_block: Tensor
    event_block: Tensor

    def __len__(self) -> int:
        """P."""
        return len(self.candidate_block)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(P, Bc, Bt)."""
        return len(self), self.candidates.index.shape[1], self.events.index.shape[1]

    @property
    def mask(self) -> Tensor:
        """[P, 1, Bt] bool: places that hold an event. A candidate block's unfilled places
        repeat a candidate and are dropped by :meth:`candidate_rows`, so need no mask.
        """
        return self.events.mask[self.event_block].unsqueeze(1)

    def of_candidates(self, rows: Tensor) -> Tensor:
        """[N, ...] -> [P, Bc, ...]. O(P Bc width)."""
        return _gather(rows, self.candidates.index[self.candidate_block])

    def of_events(self, rows: Tensor) -> Tensor:
        """[T, ...] -> [P, Bt, ...]. O(P Bt width)."""
        return _gather(rows, self.events.index[self.event_block])

    def candidate_rows(self, blocked: Tensor) -> Tensor:
        """[C, Bc, ...] -> [N, ...]. O(N width)."""
        return self.candidates.rows(blocked)

    def chunks(self, elements_per_pair: int, limit: int | None = None) -> Iterator[Pairs]:
        """The pairs in order, in parts whose intermediate stays near ``limit`` numbers.

        Args:
            elements_per_pair: size of the intermediate for one pair of blocks.
            limit: how many numbers a part may hold, by default CHUNK_ELEMENTS; a part has at
                least one pair.

        Without pairs there is one empty part: parameters that a caller applies to its parts
        then still take part in the backward pass, which data-parallel training relies on.
        """
        size = max(1, (limit or CHUNK_ELEMENTS) // max(1, elements_per_pair))
        for first in range(0, max(1, len(self)), size):
            part = slice(first, first + size)
            yield Pairs(
                self.candidates, self.events, self.candidate_block[part], self.event_block[part]
            )


def make_pairs(
    candidate_offsets: Tensor,
    event_offsets: Tensor,
    candidates: int,
    events: int,
    *,
    largest_candidates: int = 64,
    largest_events: int = 128,
) -> Pairs:
    """Pair the candidates of each request with its events.

    Blocks are powers of two near the mean lengths: one candidate a request costs no padded
    candidates, and only the last event block of a request is padded.

    Args:
        candidate_offsets: [R+1] int64 over N.
        event_offsets: [R+1] int64 over T.
        candidates: N.
        events: T.
        largest_candidates: limit of Bc.
        largest_events: limit of Bt.

    Returns:
        The pairs; none for requests without candidates or without events.
        O(N + T + P) time and memory; P is about N L / (Bc Bt).
    """
    requests = len(event_offsets) - 1
    candidate_size = block_size(candidates, requests, smallest=1, largest=largest_candidates)
    event_size = block_size(events, requests, smallest=8, largest=largest_events)
    wanted = make_blocks(candidate_offsets, candidate_size)
    history = make_blocks(event_offsets, event_size)
    per_request = torch.bincount(history.request, minlength=requests)
    first_event_block = per_request.cumsum(0) - per_request
    counts = per_request[wanted.request]
    blocks = torch.arange(len(wanted.request), device=event_offsets.device)
    candidate_block = torch.repeat_interleave(blocks, counts)
    first_pair = counts.cumsum(0) - counts
    within = torch.arange(len(candidate_block), device=event_offsets.device)
    within = within - first_pair[candidate_block]
    event_block = first_event_block[wanted.request[candidate_block]] + within
    return Pairs(wanted, history, candidate_block, event_block)


def dot_scores(pairs: Pairs, queries: Tensor, keys: Tensor) -> Tensor:
    """Scores of all pairs as dot products, not scaled.

    Args:
        pairs: of :func:`make_pairs`.
        queries: [N, d], or [N, H, d/H] for one score a head.
        keys: [T, d], or [T, H, d/H].

    Returns:
        [P, Bc, Bt] or [P, H, Bc, Bt]; anything at masked places. O(N L d).
    """
    left, right = pairs.of_candidates(queries), pairs.of_events(keys)
    if queries.dim() == 2:
        return left @ right.transpose(1, 2)
    return left.transpose(1, 2) @ right.permute(0, 2, 3, 1)


def softmax(pairs: Pairs, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax over a candidate's events, which lie in several pairs.

    Args:
        pairs: all pairs, not a part of them.
        scores: [P, Bc, Bt] or [P, H, Bc, Bt].
        mask: what takes part, broadcast against ``scores``; by default all events
            (``pairs.mask``). A candidate with nothing to attend to gets zeros.

    Returns:
        As ``scores``, in fp32 or wider; zeros at masked places. Differentiable. O(N L H).
    """
    if mask is None:
        mask = pairs.mask
        if scores.dim() == 4:
            mask = mask.unsqueeze(1)
    # A sum over thousands of events needs more than bf16 has, so autocast stops here.
    with torch.autocast(scores.device.type, enabled=False):
        wide = _wide(scores).masked_fill(~mask, float("-inf"))
        per_block = (len(pairs.candidates.request), *wide.shape[1:-1])
        at = pairs.candidate_block
        top = wide.detach().amax(-1)
        highest = top.new_full(per_block, float("-inf"))
        highest.scatter_reduce_(0, at.view(-1, *[1] * (top.dim() - 1)).expand_as(top), top, "amax")
        highest = torch.where(highest.isfinite(), highest, 0)
        weights = (wide - highest[at].unsqueeze(-1)).exp()
        total = weights.new_zeros(per_block).index_add(0, at, weights.sum(-1))
        total = total.clamp_min(torch.finfo(total.dtype).tiny)
        return weights / total[at].unsqueeze(-1)


def weighted_sum(pairs: Pairs, weights: Tensor, values: Tensor) -> Tensor:
    """Sum of event values per candidate, over all of its pairs.

    Args:
        pairs: all pairs, not a part of them.
        weights: [P, Bc, Bt] or [P, H, Bc, Bt]; zeros at masked places (:func:`softmax` gives
            such, other weights need ``masked_fill(~pairs.mask, 0)``).
        values: [T, d]; with heads, each head sums its own d/H columns.

    Returns:
        [N, d] in fp32 or wider, zeros without events. O(N L d).
    """
    blocked = pairs.of_events(values)
    if weights.dim() == 4:
        blocked = blocked.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
    # Blocks are added up in fp32 or wider: bf16 has too few digits for thousands of events.
    parts = _wide(weights.to(blocked.dtype) @ blocked)
    sums = parts.new_zeros((len(pairs.candidates.request), *parts.shape[1:]))
    sums = sums.index_add(0, pairs.candidate_block, parts)
    if weights.dim() == 4:
        sums = sums.transpose(1, 2).flatten(2)
    return pairs.candidate_rows(sums)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """[x, ...], [P, B] -> [P, B, ...]."""
    # Straight from the rows: a part of the pairs must not cost as much as all of them.
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def _wide(rows: Tensor) -> Tensor:
    """In fp32 at least."""
    return rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
