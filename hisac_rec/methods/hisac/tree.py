"""From codes to the leaves and agents of a batch: everything that no training changes.

Legend: R requests, T events, U occupied leaves, D semantic-ID levels, C_l codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from hisac_rec.data.bags import FrozenEvents, Groups
from hisac_rec.methods.hisac.leaf_geometry import CodeWords, LeafGeometry, leaf_geometry
from hisac_rec.methods.hisac.leaves import Agents, Leaves
from hisac_rec.methods.hisac.reach import events_reached, nearest_agents
from hisac_rec.methods.hisac.voting import VOTE_UNIT, activate, count_leaves, recent_votes


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
        weights: what an event of each type votes; none: 1, whatever its type.
    """

    code_counts: tuple[int, ...]
    keep: tuple[int, ...]
    tail_agents: int
    vote_half_life: float | None
    tau: float
    squared: bool
    weights: tuple[float, ...] = ()

    @property
    def signed(self) -> bool:
        """Whether events of some type vote against their leaf."""
        return any(weight < 0 for weight in self.weights)

    def grow(self, events: FrozenEvents) -> tuple[Leaves, Agents]:
        """Vote and activate. O(T D + D U log U)."""
        votes = self.votes(events)
        at = events.codes, events.offsets, self.code_counts
        leaves = count_leaves(*at, votes, signed=self.signed)
        return leaves, activate(leaves, self.keep, self.code_counts, self.tail_agents)

    def rejected(self, leaves: Leaves) -> Agents:
        """The leaves with most votes against them, pruned by the same rules as agents are;
        ``votes`` are those against.
        """
        if leaves.against is None:
            raise ValueError("no event votes against anything: check signed before")
        turned = replace(leaves, votes=leaves.against)
        return activate(turned, self.keep, self.code_counts, self.tail_agents)

    def votes(self, events: FrozenEvents) -> Tensor | None:
        """[T] int64 votes in units of 1 / VOTE_UNIT; None where each has one. O(T).

        An event's vote is its type's weight, halved every ``vote_half_life`` events into the past;
        none where its codes say nothing of its item.
        """
        votes, count = None, len(events.codes)
        if self.vote_half_life is not None:
            votes = recent_votes(events.offsets, count, self.vote_half_life)
        if self.weights:
            if events.type is None:
                raise ValueError("votes by event type need the events' types")
            weight = _on_device(self.weights, events.codes.device)[events.type]
            one: Tensor | int = VOTE_UNIT if votes is None else votes
            votes = weight.mul(one).round_().long()
        placed = events.placed
        # On a GPU the question whether all are placed would wait for it.
        if placed is not None and not (placed.device.type == "cpu" and placed.all()):
            if votes is None:
                votes = torch.full((count,), VOTE_UNIT, device=placed.device)
            votes = votes * placed
        return votes

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

    def __call__(self, events: FrozenEvents) -> Groups:
        """Group the events of R requests. Cost: of ``count_leaves``."""
        leaves = count_leaves(events.codes, events.offsets, self.code_counts)
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

    def __call__(self, events: FrozenEvents) -> Groups:
        """Group the events of R requests: at most ``reach`` entries for each."""
        leaves, agents = self.rules.grow(events)
        geometry = self.rules.geometry(leaves, agents, len(events.offsets) - 1, self.codebook)
        return events_reached(leaves, nearest_agents(geometry, self.reach), len(agents.leaf))


@lru_cache(maxsize=16)
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """[types] float64, copied to the device once."""
    return torch.tensor(weights, dtype=torch.float64, device=device)
