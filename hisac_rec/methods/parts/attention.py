"""Multi-head target attention of candidates over per-request memory vectors.

Keys and values are projected once per request and shared by its candidates. Legend:
R requests, K memory slots, N candidates, H heads, d width, n candidate blocks of B.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hisac_rec.errors import UserError
from hisac_rec.methods.parts.blocks import block_size, make_blocks


class CandidateAttention(nn.Module):
    """softmax(q k / sqrt(d/H) + bias) v, with one learned null slot.

    The null slot lets a candidate that matches nothing attend to nothing, and defines the
    result for an empty memory.

    Args:
        dim: d.
        heads: H, a divisor of d.

    Raises:
        UserError: ``heads`` is no divisor of ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(
                f"history.heads = {heads} does not divide tables.dim = {dim}; "
                "choose a divisor of tables.dim"
            )
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.null_key = nn.Parameter(torch.zeros(dim))
        self.null_value = nn.Parameter(torch.zeros(dim))
        # Candidates and events share their tables, so similarity of rows is meaningful from
        # the first step: start from the identity instead of random directions.
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.eye_(layer.weight)

    def forward(
        self,
        candidates: Tensor,
        offsets: Tensor,
        memory: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        extra: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            candidates: [N, d].
            offsets: [R+1] int64 over N.
            memory: [R, K, d].
            mask: [R, K] bool, True where a slot is filled.
            bias: [R, K] added to the scores, or None.
            extra: ([N, H, s], [R, K, s]) whose dot products are added to each head's scores,
                or None.

        Returns:
            [N, d]. Cost O(R K d^2 + N d^2 + N K (d + H s)).
        """
        requests = memory.shape[0]
        blocks = make_blocks(offsets, block_size(len(candidates), requests, largest=64))
        queries = self._split(blocks.gather(self.query(candidates)))
        keys = self._split(_append(self.key(memory), self.null_key))
        scale = queries.shape[-1] ** -0.5
        if extra is not None:
            # A dot product of longer vectors adds the extra scores without an [N, K] tensor.
            side = blocks.gather(extra[0]).transpose(1, 2).to(queries.dtype)
            queries = torch.cat([queries, side / scale], dim=-1)
            slots = functional.pad(extra[1].to(keys.dtype), (0, 0, 0, 1))
            slots = slots.unsqueeze(1).expand(-1, self.heads, -1, -1)
            keys = torch.cat([keys, slots], dim=-1)
        values = self._split(_append(self.value(memory), self.null_value))
        scores = torch.zeros_like(mask, dtype=memory.dtype) if bias is None else bias
        scores = scores.masked_fill(~mask, float("-inf"))
        scores = functional.pad(scores, (0, 1))[:, None, None, :].to(queries.dtype)
        attended = functional.scaled_dot_product_attention(
            queries,
            keys[blocks.request],
            values[blocks.request],
            attn_mask=scores[blocks.request],
            scale=scale,
        )
        joined = attended.transpose(1, 2).flatten(2)
        return self.out(blocks.rows(joined))

    def _split(self, rows: Tensor) -> Tensor:
        """[x, y, d] -> [x, H, y, d/H]."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _append(rows: Tensor, null: Tensor) -> Tensor:
    """[R, K, d] + [d] -> [R, K+1, d]."""
    return torch.cat([rows, null.to(rows.dtype).expand(rows.shape[0], 1, -1)], dim=1)
