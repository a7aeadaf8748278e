"""Multi-head target attention of candidates over per-request memory vectors.

Keys and values are projected once per request and shared by its candidates. Legend:
R requests, K memory slots, N candidates, H heads, d width, n candidate blocks of B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hisac_rec.errors import UserError
from hisac_rec.methods.parts.blocks import Blocks, block_size, make_blocks, one_block
from hisac_rec.ops.loops import suit_loops


@dataclass
class Kinship:
    """Frozen similarity of candidates and slots, and how much of it each head takes.

    A slot's vector is a sum of D code words times a scale, so its product with a candidate is
    a sum of D products with code words, which all slots share. Legend: C code words of all
    levels, D levels.

    Args:
        products: [N, C] frozen: each candidate's vector times each code word.
        words: [R, K, D] int64 code words of each slot, anything where unfilled.
        scale: [R, K] of each slot; 0 where unfilled.
        gain: [H], trained.
    """

    products: Tensor
    words: Tensor
    scale: Tensor
    gain: Tensor

    def scores(self, blocks: Blocks) -> Tensor:
        """[n, H, B, K+1]: gain times similarity, 0 for the null slot. O(N K (D + H)).

        The similarity knows no heads and needs no gradient: only the gains are trained.
        """
        similarity = self._similarities(blocks)
        return self.gain[:, None, None] * similarity.unsqueeze(1)

    @torch.no_grad()
    def _similarities(self, blocks: Blocks) -> Tensor:
        """[n, B, K+1] of the candidates of each block, 0 for the null slot."""
        rows = blocks.gather(self.products)
        scale = self.scale[blocks.request].unsqueeze(1)
        similarity = torch.zeros_like(scale)
        for words in self.words[blocks.request].unbind(-1):
            at = words.unsqueeze(1).expand(-1, rows.shape[1], -1)
            similarity = similarity + rows.gather(2, at)
        return functional.pad(similarity * scale, (0, 1))

    @torch.no_grad()
    def cosines(self, request: Tensor) -> Tensor:
        """[N, K] similarity of each candidate with the slots of its request; 0 where unfilled.

        ``request`` [N] int64. O(N K D).
        """
        at = self.words[request]
        near = self.products.gather(1, at.flatten(1)).view(at.shape).sum(-1)
        return near * self.scale[request]


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
        kinship: Kinship | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            candidates: [N, d].
            offsets: [R+1] int64 over N.
            memory: [R, K, d].
            mask: [R, K] bool, True where a slot is filled.
            bias: [R, K] added to the scores, or None.
            kinship: frozen similarities added to the scores, or None.

        Returns:
            [N, d]. Cost O(R K d^2 + N d^2 + N K (d + s)).
        """
        projected = self.query(candidates), self.key(memory), self.value(memory)
        # Asked of what has been projected: under autocast that is bf16, which no loop knows.
        by_loops = all(map(suit_loops, projected))
        attend = self._by_loops if by_loops else self._by_blocks
        added = torch.zeros_like(mask, dtype=projected[1].dtype) if bias is None else bias
        added = added.masked_fill(~mask, float("-inf"))
        return self.out(attend(*projected, offsets, added, kinship))

    def _by_loops(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        offsets: Tensor,
        added: Tensor,
        kinship: Kinship | None,
    ) -> Tensor:
        """[N, d] what all heads attend to, side by side; ``added`` [R, K] to the scores, -inf
        where unfilled.
        """
        from hisac_rec.methods.parts.attend import attend, similarities  # needs Numba

        near = None
        if kinship is not None:
            frozen = kinship.products, kinship.words, kinship.scale
            near = kinship.gain.to(keys.dtype), similarities(*frozen, offsets).to(keys.dtype)
        filled = torch.arange(1, added.shape[1] + 1) * ~added.isneginf()
        return attend(
            self.heads,
            queries,
            (self.null_key, keys),
            (self.null_value, values),
            added.to(keys.dtype),
            near,
            offsets,
            filled.amax(1),
        )

    def _by_blocks(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        offsets: Tensor,
        added: Tensor,
        kinship: Kinship | None,
    ) -> Tensor:
        """The same by torch's attention of blocks of candidates; the null slot comes last."""
        requests, count = keys.shape[0], queries.shape[0]
        if requests == 1 and count:  # `len` would fix the number in an export
            blocks = one_block(count, offsets.device)
        else:
            blocks = make_blocks(offsets, block_size(len(queries), requests, largest=64))
        scores = functional.pad(added, (0, 1))[blocks.request, None, None, :].to(queries.dtype)
        if kinship is not None:
            scores = scores + kinship.scores(blocks).to(queries.dtype)
        attended = functional.scaled_dot_product_attention(
            self._split(blocks.gather(queries)),
            self._split(_append(keys, self.null_key)).index_select(0, blocks.request),
            self._split(_append(values, self.null_value)).index_select(0, blocks.request),
            attn_mask=scores,
        )
        if kinship is not None and not count:
            # The fused kernel drops an empty bias from the graph; other ranks wait for it.
            attended = attended + 0.0 * kinship.gain.sum()
        return blocks.rows(attended.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def weights(
        self,
        candidates: Tensor,
        offsets: Tensor,
        memory: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        kinship: Kinship | None = None,
    ) -> Tensor:
        """[N, K+1] where each candidate looks, mean over heads, the null slot last. Plain and
        slow, for people; see :meth:`forward` for the arguments.
        """
        request = torch.repeat_interleave(offsets.diff())
        queries = self.query(candidates).unflatten(-1, (self.heads, -1))
        keys = _append(self.key(memory), self.null_key).unflatten(-1, (self.heads, -1))
        scores = torch.einsum("nhd,nkhd->nhk", queries, keys[request]) * queries.shape[-1] ** -0.5
        added = torch.zeros_like(mask, dtype=memory.dtype) if bias is None else bias
        added = added.masked_fill(~mask, float("-inf"))
        scores = scores + functional.pad(added, (0, 1))[request].unsqueeze(1)
        if kinship is not None:
            near = functional.pad(kinship.cosines(request), (0, 1))
            scores = scores + kinship.gain[:, None] * near.unsqueeze(1)
        return scores.softmax(-1).mean(1)

    def _split(self, rows: Tensor) -> Tensor:
        """[x, y, d] -> [x, H, y, d/H]."""
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _append(rows: Tensor, null: Tensor) -> Tensor:
    """[R, K, d] + [d] -> [R, K+1, d]."""
    return torch.cat([rows, null.to(rows.dtype).expand(rows.shape[0], 1, -1)], dim=1)
