"""Multi-head target attention of each candidate over the events retrieved for it.

What every retrieve-then-attend method (SIM, ETA, TWIN, MUSE) shares after its retrieval.
Legend: N candidates, T events, H heads, k retrieved events a candidate, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hisac_rec.errors import UserError


class RetrievedAttention(nn.Module):
    """softmax(q k / sqrt(d/H)) v over own events, with one learned null slot.

    The same function as :class:`~hisac_rec.methods.parts.attention.CandidateAttention`,
    which shares its keys among the candidates of a request; here each candidate has its own
    events, so the key and value projections move to the candidate's side of the products
    (q W_k^T instead of W_k e, and W_v after the sum): no event is projected.

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
        # As CandidateAttention: similarity of rows is meaningful from the first step.
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.eye_(layer.weight)

    def queries(self, candidates: Tensor) -> Tensor:
        """[N, d] -> [N, H, d/H], scaled by 1/sqrt(d/H). O(N d^2)."""
        projected = self.query(candidates).unflatten(-1, (self.heads, -1))
        return projected * projected.shape[-1] ** -0.5

    def keys(self, events: Tensor) -> Tensor:
        """[T, d] -> [T, H, d/H]: for scores of all events (TWIN). O(T d^2)."""
        return self.key(events).unflatten(-1, (self.heads, -1))

    def scores(self, candidates: Tensor, events: Tensor) -> Tensor:
        """Scaled dot products, before any mask.

        Args:
            candidates: [N, d].
            events: [N, k, d], or [N, H, k, d] where each head retrieved its own.

        Returns:
            [N, H, k]. O(N d^2 + N H k d).
        """
        weight = self.key.weight.unflatten(0, (self.heads, -1))
        folded = torch.einsum("nhw,hwd->nhd", self.queries(candidates), weight)
        if events.dim() == 4:
            return (events @ folded.unsqueeze(-1)).squeeze(-1)
        return folded @ events.transpose(1, 2)

    def forward(
        self, candidates: Tensor, events: Tensor, filled: Tensor, scores: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            candidates: [N, d].
            events: [N, k, d], or [N, H, k, d] where each head retrieved its own.
            filled: [N, k], or [N, H, k]: True where an event was retrieved.
            scores: [N, H, k] to use instead of :meth:`scores`, for a method that adds to
                them or mixes them.

        Returns:
            [N, d]; the null value's projection without events. O(N d^2 + N H k d).
        """
        if scores is None:
            scores = self.scores(candidates, events)
        own = filled.unsqueeze(1) if filled.dim() == 2 else filled
        null_key = self.null_key.view(self.heads, -1)
        null = (self.queries(candidates) * null_key).sum(-1, keepdim=True)
        scores = scores.masked_fill(~own, float("-inf"))
        weights = torch.cat([scores, null.to(scores.dtype)], dim=-1).softmax(-1)
        taken = weights[..., :-1].to(events.dtype)
        own_events = events.dim() == 4
        summed = (taken.unsqueeze(2) @ events).squeeze(2) if own_events else taken @ events
        value = self.value.weight.unflatten(0, (self.heads, -1))
        attended = torch.einsum("nhd,hwd->nhw", summed, value)
        attended = attended + weights[..., -1:] * self.null_value.view(self.heads, -1)
        mixed: Tensor = self.out(attended.flatten(1))
        return mixed


def take_events(values: Tensor, rows: Tensor, filled: Tensor) -> Tensor:
    """Rows of a jagged tensor at retrieved places.

    Args:
        values: [T, ...].
        rows: [...] int64, any shape; anything where unfilled.
        filled: as ``rows``, bool.

    Returns:
        [*rows.shape, ...], zeros where unfilled; works for T = 0. O(rows x width).
    """
    if not values.shape[0]:
        # A sum over no rows: zeros that keep their place in the backward pass.
        return values.sum(0).expand(*rows.shape, *values.shape[1:])
    # index_select's gradient is an index_add; that of plain indexing sorts all rows first.
    taken = values.index_select(0, torch.where(filled, rows, 0).flatten())
    mask = filled.view(*filled.shape, *[1] * (values.dim() - 1))
    return taken.view(*rows.shape, *values.shape[1:]) * mask.to(taken.dtype)
