"""Hierarchical voting and sparse activation (HiSAC, arXiv 2602.21009; docs/method.md).

Per request, bottom-up: a leaf's votes are its events, or what each of them votes for it, an inner
node's the sum over its children. Top-down: under each surviving parent only its top-k children by
votes survive; ties go to the smaller code. The surviving leaves are the interest-agents. A leaf
without votes is no agent: its events are read, and choose nothing.

Two backends give the same numbers: loops over the events on a CPU, torch operators elsewhere.
Legend: R requests, T events, D levels, C_l codes, U occupied leaves, A agents (all requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor

from hisac_rec.methods.base import request_of_rows
from hisac_rec.methods.hisac.leaves import Agents, Leaves

VOTE_UNIT = 1 << 16
"""What one vote of the newest event is worth where votes are not all alike: sums of whole numbers
are exact, and ties the same on every machine."""


class Backend(Protocol):
    """What a kind of device runs; arguments are those of this module's functions."""

    def count_leaves(self, codes: Tensor, offsets: Tensor, code_counts: Sequence[int]) -> Leaves:
        """Of :func:`count_leaves`, one vote an event."""

    def surviving(
        self, leaves: Leaves, keep: Sequence[int], code_counts: Sequence[int], tail: int
    ) -> Tensor:
        """[A] int64 leaves of the agents of :func:`activate`, ascending."""


def choose_backend(device: torch.device) -> Backend:
    """The backend for this device."""
    if device.type == "cpu":
        from hisac_rec.methods.hisac import voting_cpu  # needs Numba, which a GPU does not

        return cast("Backend", voting_cpu)
    from hisac_rec.methods.hisac import voting_torch

    return cast("Backend", voting_torch)


def recent_votes(offsets: Tensor, events: int, half_life: float) -> Tensor:
    """[T] int64 votes that halve every ``half_life`` events into the past.

    In units of 1 / VOTE_UNIT; the oldest event keeps one unit. O(T).

    Args:
        offsets: [R+1] int64 over T; a request's events are in time order.
        events: T.
        half_life: in events, > 0.
    """
    request = request_of_rows(offsets, events)
    row = torch.arange(events, device=offsets.device)
    age = (offsets[1:][request] - 1 - row).to(torch.float64)
    return torch.exp2(-age / half_life).mul_(VOTE_UNIT).round_().long().clamp_min_(1)


def count_leaves(
    codes: Tensor,
    offsets: Tensor,
    code_counts: Sequence[int],
    votes: Tensor | None = None,
    *,
    signed: bool = False,
) -> Leaves:
    """Occupied leaves with their votes. O(T D + U), or on other devices O(T log T).

    Where a request has events and none votes for anything, each votes the least there is, 1 /
    VOTE_UNIT: it has agents that can be read, and next to no strength.

    Args:
        codes: [T, D] int64.
        offsets: [R+1] int64 over T.
        code_counts: C_1..C_D.
        votes: [T] int64 of each event, in units of 1 / VOTE_UNIT; None: one each.
        signed: some may be below 0 and count against their leaf.
    """
    leaves = choose_backend(codes.device).count_leaves(codes, offsets, code_counts)
    if votes is None:
        return leaves

    def summed(of_events: Tensor) -> Tensor:
        return torch.zeros_like(leaves.events).index_add_(0, leaves.of_event, of_events)

    total = summed(votes.clamp_min(0))
    of_request = total.new_zeros(len(offsets) - 1).index_add_(0, leaves.request, total)
    total = torch.where(of_request[leaves.request] == 0, leaves.events, total)
    against = summed(votes.neg().clamp_min(0)) if signed else None
    return replace(leaves, votes=total, against=against, unit=VOTE_UNIT)


def activate(
    leaves: Leaves, keep: Sequence[int], code_counts: Sequence[int], tail: int = 0
) -> Agents:
    """Keep the top ``keep[l]`` children under each surviving parent, level by level; none without
    votes.

    O(D U log U).

    Args:
        leaves: of :func:`count_leaves`.
        keep: k^(1)..k^(D).
        code_counts: C_1..C_D.
        tail: so many of a request's pruned leaves survive all the same, most votes first.
    """
    leaf = choose_backend(leaves.path.device).surviving(leaves, keep, code_counts, tail)
    return Agents(leaf, leaves.request[leaf], leaves.path[leaf], leaves.votes[leaf])


def to_slots(agents: Agents, requests: int) -> tuple[Tensor, Tensor]:
    """Dense places of the agents: slot [A] within the request, and filled [R, K] bool."""
    counts = torch.bincount(agents.request, minlength=requests)
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(agents.request), device=agents.request.device) - first[agents.request]
    most = int(counts.max()) if len(counts) else 0
    filled = torch.arange(max(1, most), device=counts.device) < counts[:, None]
    return slot, filled
