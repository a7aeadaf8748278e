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
        gram: [C, C] float64, their products.
        tau: temperature, > 0.
        squared: use the squared distance.
    """

    words: Tensor
    counts: Tensor
    agents: Tensor
    leaf_offsets: Tensor
    agent_offsets: Tensor
    codebook: Tensor
    gram: Tensor
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


class CodeWords:
    """The code words of all levels and their products, in float64, until the codebook changes.

    A distance of a leaf to itself is then 0 to 8 digits, where fp32 leaves the square root of its
    rounding.
    """

    def __init__(self) -> None:
        self._of: tuple[tuple[int, int], ...] | None = None
        self._held: tuple[Tensor, Tensor] | None = None

    def of(self, codebook: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """[C, s] and [C, C]. O(C^2 s), or nothing where the D tensors [C_l, s] are as before."""
        version = tuple((words.data_ptr(), words._version) for words in codebook)
        if self._held is None or version != self._of:
            joined = torch.cat(list(codebook)).double()
            self._of, self._held = version, (joined, joined @ joined.T)
        return self._held


def leaf_geometry(
    leaves: Leaves,
    agents: Agents,
    requests: int,
    codebook: Sequence[Tensor],
    held: CodeWords | None = None,
    *,
    tau: float,
    squared: bool,
) -> LeafGeometry:
    """Describe the leaves and agents of a batch. O(U D + A), and what ``held`` costs.

    Args:
        leaves: of :func:`~hisac_rec.methods.hisac.voting.count_leaves`.
        agents: of :func:`~hisac_rec.methods.hisac.voting.activate`.
        requests: R.
        codebook: D tensors [C_l, s].
        held: what may hold the products of its words from the last batch.
        tau: temperature, > 0.
        squared: use the squared distance.
    """
    words, gram = (held or CodeWords()).of(codebook)
    return LeafGeometry(
        words=path_words(leaves.path, [len(level) for level in codebook]),
        counts=leaves.events,
        agents=agents.leaf,
        leaf_offsets=offsets_of_rows(leaves.request, requests),
        agent_offsets=offsets_of_rows(agents.request, requests),
        codebook=words,
        gram=gram,
        tau=tau,
        squared=squared,
    )
