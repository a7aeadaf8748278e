"""Cut jagged rows into fixed blocks, so that matrix products run batched without padding
to the longest request: only a request's last block is padded.

Legend: R requests, T rows, B rows a block, n blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Blocks:
    """Blocks of at most B rows; a block never spans two requests.

    Args:
        request: [n] int64 request of each block, ascending.
        index: [n, B] int64 row of each place; the request's first row where masked.
        mask: [n, B] bool, True where a place holds a row.
        place: [T] int64, where among the n B places each row lies.
    """

    request: Tensor
    index: Tensor
    mask: Tensor
    place: Tensor

    def gather(self, rows: Tensor) -> Tensor:
        """[T, ...] -> [n, B, ...]; masked places repeat a valid row. O(n B width)."""
        taken = rows.index_select(0, self.index.flatten())
        return taken.unflatten(0, (len(self.request), self.index.shape[1]))

    def rows(self, blocked: Tensor) -> Tensor:
        """[n, B, ...] -> [T, ...]: the inverse of :meth:`gather`. O(T width)."""
        return blocked.flatten(0, 1).index_select(0, self.place)


def make_blocks(offsets: Tensor, size: int) -> Blocks:
    """Cut the rows described by ``offsets`` [R+1] into blocks of ``size``. O(T + R)."""
    lengths = offsets.diff()
    counts = (lengths + size - 1) // size
    request = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), counts)
    first_block = counts.cumsum(0) - counts
    within = torch.arange(len(request), device=offsets.device) - first_block[request]
    place = torch.arange(size, device=offsets.device)
    start = offsets[request] + within * size
    index = start[:, None] + place
    mask = index < offsets[request + 1][:, None]
    # Blocks hold the rows in order, so the unmasked places in order are the rows' places.
    place = mask.flatten().nonzero().squeeze(1)
    return Blocks(request, torch.where(mask, index, start[:, None]), mask, place)


def one_block(rows: int, device: torch.device) -> Blocks:
    """All rows of a single request as one block: nothing is padded, no shape depends on values."""
    at = torch.arange(rows, device=device)
    return Blocks(at.new_zeros(1), at.unsqueeze(0), torch.ones_like(at, dtype=torch.bool)[None], at)


def block_size(rows: int, requests: int, *, smallest: int = 16, largest: int = 128) -> int:
    """A power of two near the mean rows per request: little padding, enough work a product."""
    mean = max(1, rows // max(1, requests))
    return max(smallest, min(largest, 1 << (mean - 1).bit_length()))
