"""From codes to the leaves and agents of a batch: everything that no training changes.

Legend: R requests, T events, D semantic-ID levels, C_l codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hisac_rec.data.bags import Groups
from hisac_rec.methods.hisac.leaf_geometry import CodeWords, LeafGeometry, leaf_geometry
from hisac_rec.methods.hisac.leaves import Agents, Leaves
from hisac_rec.methods.hisac.reach import events_reached, nearest_agents
from hisac_rec.methods.hisac.voting import activate, count_leaves, recent_votes


@dataclass(frozen=True)
class TreeRules:
    """How a history's tree is grown, pruned and measured; see ``HiSACConfig``.

    Args:
        code_counts: C_1..C_D.
        keep: k^(1)..k^(D).
        tail_agents: pruned leaves kept all the same.
        vote_half_life: of a vote, in events; None: one event, one vote.
        tau: temperature.
        squared: use the squared distance.
    """

    code_counts: tuple[int, ...]
    keep: tuple[int, ...]
    tail_agents: int
    vote_half_life: float | None
    tau: float
    squared: bool

    def grow(self, offsets: Tensor, codes: Tensor) -> tuple[Leaves, Agents]:
        """Vote and activate, for histories ``offsets`` [R+1] with ``codes`` [T, D].
        O(T + D U log U).
        """
        votes = None
        if self.vote_half_life is not None:
            votes = recent_votes(offsets, len(codes), self.vote_half_life)
        leaves = count_leaves(codes, offsets, self.code_counts, votes)
        return leaves, activate(leaves, self.keep, self.code_counts, self.tail_agents)

    def geometry(
        self,
        leaves: Leaves,
        agents: Agents,
        requests: int,
        codebook: Sequence[Tensor],
        held: CodeWords | None = None,
    ) -> LeafGeometry:
        """Where leaves and agents lie, by the code words ``codebook``; see ``leaf_geometry``."""
        at = leaves, agents, requests, codebook, held
        return leaf_geometry(*at, tau=self.tau, squared=self.squared)


@dataclass(frozen=True)
class ByLeaf:
    """A grouping: the events of one leaf of one request, in the order of :class:`Leaves`.

    Args:
        code_counts: C_1..C_D.
    """

    code_counts: tuple[int, ...]

    def __call__(self, offsets: Tensor, codes: Tensor) -> Groups:
        """Group the events of R requests. Cost: of ``count_leaves``."""
        leaves = count_leaves(codes, offsets, self.code_counts)
        return Groups(len(leaves.path), leaves.of_event)


@dataclass(frozen=True)
class ByAgent:
    """A grouping: the events that reach an agent, weighted by alpha, in the order of the agents.

    Args:
        rules: of the tree.
        codebook: D tensors [C_l, s].
        reach: agents that an event reaches.
    """

    rules: TreeRules
    codebook: tuple[Tensor, ...]
    reach: int

    def __call__(self, offsets: Tensor, codes: Tensor) -> Groups:
        """Group the events of R requests: at most ``reach`` entries for each."""
        leaves, agents = self.rules.grow(offsets, codes)
        geometry = self.rules.geometry(leaves, agents, len(offsets) - 1, self.codebook)
        return events_reached(leaves, nearest_agents(geometry, self.reach), len(agents.leaf))
