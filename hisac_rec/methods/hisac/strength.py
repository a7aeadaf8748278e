"""How strong a candidate's interest is, read from what a cache holds: votes, not averages.

Routed vectors are averages and forget how many events stand behind them. Votes along the
candidate's own path count what lies on its branch; votes by likeness count what lies near it,
on whatever branch. Neither has a gradient.

Legend: N candidates, R requests, K agent slots, J slots of rejected leaves, D levels, B tiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hisac_rec.methods.base import Candidates
from hisac_rec.methods.hisac.leaves import path_numbers
from hisac_rec.methods.parts.attention import Kinship
from hisac_rec.methods.parts.tiers import tier_of
from hisac_rec.ops.loops import as_arrays, suit_loops

if TYPE_CHECKING:
    from hisac_rec.methods.hisac.method import InterestMemory

VOTE_FEATURES = 2
"""Numbers per level or tier that tell a candidate's strength: log votes and share of votes."""
AGAINST_FEATURES = 2
"""Numbers more per level where events vote against leaves: log votes against, and balance."""


def path_vote_features(
    memory: InterestMemory, candidates: Candidates, code_counts: Sequence[int]
) -> Tensor:
    """Strength of the candidate's own interest, from what a cache holds.

    For each level: log(1 + votes) of the agents below the candidate's node, and their share
    of all agents' votes. Where events vote against leaves, also log(1 + votes against) of the
    rejected leaves below that node, and the balance (for - against) / (1 + for + against).

    Args:
        memory: of :meth:`HiSAC.compress`.
        candidates: their codes are read.
        code_counts: C_1..C_D.

    Returns:
        [N, 2 D] float32, [N, 4 D] with votes against; zeros for a candidate of whom nothing is
        known. O(N (K + J) D) integer operations.
    """
    node = path_numbers(candidates.codes, code_counts)
    total = memory.events.sum(1).clamp_min(1).index_select(0, candidates.request)
    at = node, candidates.request, code_counts
    here = _votes_on_path(memory.path, memory.events, *at)
    told = [here.log1p(), here / total.unsqueeze(1)]
    if memory.against is not None and memory.against_path is not None:
        against = _votes_on_path(memory.against_path, memory.against, *at)
        told += [against.log1p(), (here - against) / (1 + here + against)]
    return _of_placed(torch.stack(told, dim=2).flatten(1), candidates)


def _votes_on_path(
    leaf: Tensor, behind: Tensor, node: Tensor, request: Tensor, code_counts: Sequence[int]
) -> Tensor:
    """[N, D] votes on the leaves below each candidate's node, the leaf first.

    Args:
        leaf: [R, K] paths, -1 where unfilled.
        behind: [R, K] votes.
        node: [N] leaf of each candidate.
        request: [N] its request.
        code_counts: C_1..C_D.
    """
    if suit_loops(behind):
        from hisac_rec.methods.hisac.strength_cpu import votes_on_path  # needs Numba

        path, votes_of, own, of = as_arrays(leaf, behind, node, request)
        counts = np.array(code_counts, np.int64)
        return torch.from_numpy(votes_on_path(path, votes_of, own, of, counts))
    agents, votes, found = leaf[request], behind[request], []
    for count in reversed(code_counts):
        found.append(torch.where(agents == node.unsqueeze(1), votes, 0).sum(1))
        # Floor division keeps the -1 of unfilled slots negative: it never matches a node.
        agents, node = agents.div(count, rounding_mode="floor"), node // count
    return torch.stack(found, dim=1)


@torch.no_grad()
def vote_tiers(
    memory: InterestMemory, candidates: Candidates, kinship: Kinship, tiers: int
) -> Tensor:
    """How many votes lie how near the candidate, from what a cache holds.

    Args:
        memory: of :meth:`HiSAC.compress`.
        candidates: whose.
        kinship: cosines of candidates and agents.
        tiers: B, of equal width over -1..1.

    Returns:
        [N, 2 B] float32: log(1 + votes) of each tier, then its share of all votes; zeros for
        a candidate of whom nothing is known. O(N K D).
    """
    counts = _votes_by_tier(memory, kinship, candidates.request, tiers)
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    return _of_placed(torch.cat([counts.log1p(), shares], dim=1), candidates)


def _votes_by_tier(memory: InterestMemory, kinship: Kinship, request: Tensor, tiers: int) -> Tensor:
    """[N, B] votes of the agents in each tier of their cosine with the candidate."""
    products = kinship.products
    if suit_loops(products):
        from hisac_rec.methods.hisac.strength_cpu import votes_by_tier  # needs Numba

        votes = memory.events.to(products.dtype)
        likeness, words, scale, behind, of = as_arrays(
            products, kinship.words, kinship.scale, votes, request
        )
        return torch.from_numpy(votes_by_tier(likeness, words, scale, behind, of, tiers))
    cosines = kinship.cosines(request)
    votes = memory.events[request].to(cosines.dtype)  # 0 where unfilled
    counts = cosines.new_zeros((cosines.shape[0], tiers))
    return counts.scatter_add_(1, tier_of(cosines, tiers), votes)


def _of_placed(features: Tensor, candidates: Candidates) -> Tensor:
    """Zeros where the candidate's codes, and so its place in the tree, mean nothing."""
    if candidates.placed is None:
        return features
    return features * candidates.placed.unsqueeze(1)
