"""Where the leaves and agents of a batch lie: all that soft routing between them needs to know.

Legend: R requests, U occupied leaves, A agents, P (agent, leaf) pairs of the same request,
D levels, C code words of all levels, s semantic width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hisac_rec.methods.base import offsets_of_rows
from hisac_rec.methods.hisac.leaves import Agents, Leaves, path_words

CHUNK_PAIRS = 1 << 22
"""At most about this many pairs exist at a time; one request's pairs stay together."""


@dataclass(frozen=True)
class LeafGeometry:
    """Where the leaves of R requests lie, and which of them are agents.

    Args:
        words: [U, D] int64 row of each leaf's code words in the codebook's levels joined.
        counts: [U] events on each leaf.
        agents: [A] int64 leaf of each agent, ascending.
        leaf_offsets: [R+1] int64 over U.
        agent_offsets: [R+1] int64 over A.
        codebook: [C, s] float64, the code words of all levels.
        tau: temperature, > 0.
        squared: use the squared distance.
    """

    words: Tensor
    counts: Tensor
    agents: Tensor
    leaf_offsets: Tensor
    agent_offsets: Tensor
    codebook: Tensor
    tau: float
    squared: bool

    def pairs(self) -> int:
        """P: (agent, leaf) pairs of the same request."""
        return int((self.leaf_offsets.diff() * self.agent_offsets.diff()).sum())

    def parts(self) -> list[slice]:
        """The requests, in order, in runs of at most about CHUNK_PAIRS pairs; at least one run."""
        pairs = self.leaf_offsets.diff() * self.agent_offsets.diff()
        ends = pairs.cumsum(0).cpu()
        parts: list[slice] = []
        while not parts or parts[-1].stop < len(ends):
            first = parts[-1].stop if parts else 0
            limit = (int(ends[first - 1]) if first else 0) + CHUNK_PAIRS
            end = int(torch.searchsorted(ends, limit, right=True))
            parts.append(slice(first, max(end, first + 1)))
        return parts


def leaf_geometry(
    leaves: Leaves,
    agents: Agents,
    requests: int,
    codebook: Sequence[Tensor],
    *,
    tau: float,
    squared: bool,
) -> LeafGeometry:
    """Describe the leaves and agents of a batch. O(C s + U D + A).

    Products of code words are taken in float64: a leaf's distance to itself is then 0 to 8
    digits, where fp32 leaves the square root of its rounding.

    Args:
        leaves: of :func:`~hisac_rec.methods.hisac.voting.count_leaves`.
        agents: of :func:`~hisac_rec.methods.hisac.voting.activate`.
        requests: R.
        codebook: D tensors [C_l, s].
        tau: temperature, > 0.
        squared: use the squared distance.
    """
    return LeafGeometry(
        words=path_words(leaves.path, [len(words) for words in codebook]),
        counts=leaves.events,
        agents=agents.leaf,
        leaf_offsets=offsets_of_rows(leaves.request, requests),
        agent_offsets=offsets_of_rows(agents.request, requests),
        codebook=torch.cat(list(codebook)).double(),
        tau=tau,
        squared=squared,
    )
