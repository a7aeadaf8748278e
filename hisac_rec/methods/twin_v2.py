"""TWIN-V2's recursive clustering, as a compressor with a budget.

Source: TWIN V2 (arXiv 2407.16357): a cluster S of more than gamma behaviours is split by
k-means into floor(|S| ** 0.3) clusters, and so on; attention adds log |cluster| to the scores.

Differences, all for the comparison at equal budget:

- The biggest clusters are split first, into no more parts than the budget leaves, so that no
  cluster has to be dropped or merged. Clusters of more than ceil(L / agents) events, which the
  budget gives every agent on average, come before all others: were small ones split at
  the same time, the budget would go into single events.
- Where the budget ends first, or all events of a cluster share one point, clusters of more
  than gamma events remain.
- A split makes at least 2 parts: the paper's formula does so from 11 behaviours on.
- The points are frozen semantic vectors by default; ``semantics = "values"`` is the paper's
  choice, embeddings of the ranker.

Left out: groups by playing-time ratio before the clustering (a history has no such column),
the behaviour nearest to the centre as a cluster's categorical features (an agent is the mean
of its events), and the two stages of target attention: candidates read all agents, as those
of the other compressors, without the bias of cross features.

Legend: R requests, P points, C clusters (all requests), K agents, s width of a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import MethodShape
from hisac_rec.methods.parts.lloyd import first_alike, lloyd
from hisac_rec.methods.parts.points import PartitionCompressor, Points, PointsConfig

BRANCH_POWER = 0.3
"""A cluster of n events is split into floor(n ** 0.3) (the paper's choice)."""


class TwinV2Config(PointsConfig):
    """``[history]`` keys of ``method = "twin_v2"``."""

    gamma: int = Field(default=1, gt=0)
    """Clusters of at most this many events are not split (the paper: 20, without a budget);
    1 splits until the budget is used up."""
    iterations: int = Field(default=5, ge=0)
    """Lloyd iterations of every split."""


class Method(PartitionCompressor):
    """At most ``agents`` clusters a request; agent = mean of a cluster's event embeddings."""

    Config: ClassVar[type[Strict]] = TwinV2Config
    search: ClassVar[dict[str, list[Any]]] = {**PartitionCompressor.search, "gamma": [1, 5, 20]}

    def __init__(self, config: TwinV2Config, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.config: TwinV2Config = config
        # Even splits reach the budget in log2(agents) levels; uneven ones get as many again.
        self.levels = 2 * (config.agents - 1).bit_length()

    def assign(self, points: Points) -> Tensor:
        """[P] cluster of each point. O(levels iterations P K' s), K' the widest split."""
        requests, agents = len(points.offsets) - 1, self.config.agents
        request = cluster = points.request
        alike = first_alike(points.vectors, request)
        owner = torch.arange(requests, device=request.device)  # [C] request of each cluster
        for _ in range(self.levels):
            sizes = points.weights.new_zeros(len(owner)).index_add_(0, cluster, points.weights)
            members = torch.bincount(cluster, minlength=len(owner))
            clusters = Clusters(sizes, members, owner, requests)
            parts = parts_of(clusters, self.config.gamma, agents)
            if not bool((parts > 1).any()):
                break
            cluster, owner = _split(points, alike, cluster, owner, parts, self.config.iterations)
        return cluster - torch.searchsorted(owner, request)


@dataclass(frozen=True)
class Clusters:
    """The clusters of one level.

    Args:
        sizes: [C] events.
        members: [C] int64 points.
        owner: [C] int64 request, ascending.
        requests: R.
    """

    sizes: Tensor
    members: Tensor
    owner: Tensor
    requests: int


def parts_of(clusters: Clusters, gamma: int, agents: int) -> Tensor:
    """How many parts each cluster is split into; 1 where it stays.

    Args:
        clusters: of this level; at most ``agents`` a request.
        gamma: events up to which a cluster is never split.
        agents: the budget.

    Returns:
        [C] int64; per request they sum up to ``agents`` at most. O(C log C).
    """
    sizes, owner = clusters.sizes, clusters.owner
    events = sizes.new_zeros(clusters.requests).index_add_(0, owner, sizes)
    splittable = (clusters.members > 1) & (sizes > gamma)
    large = splittable & (sizes > (events / agents).ceil().index_select(0, owner))
    larger_left = torch.bincount(owner[large], minlength=clusters.requests) > 0
    chosen = torch.where(larger_left.index_select(0, owner), large, splittable)
    at = chosen.nonzero().squeeze(1)
    # Biggest first; the sort by owner is stable.
    at = at[torch.argsort(sizes[at], descending=True, stable=True)]
    at = at[torch.argsort(owner[at], stable=True)]
    # 1e-6: floor must not depend on how a power that is a whole number was rounded.
    wanted = (sizes[at].double() ** BRANCH_POWER + 1e-6).floor().to(torch.int64).clamp_min(2)
    more = torch.minimum(wanted, clusters.members[at]) - 1
    # What the clusters before this one, of the same request, have asked for.
    asked = more.cumsum(0) - more
    request = owner[at]
    asked = asked - asked[torch.searchsorted(request, request)]
    room = agents - torch.bincount(owner, minlength=clusters.requests)[request]
    granted = torch.minimum(more, (room - asked).clamp_min(0))
    return torch.ones_like(owner).index_copy_(0, at, granted + 1)


def _split(
    points: Points, alike: Tensor, cluster: Tensor, owner: Tensor, parts: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Split every cluster into its ``parts``; parts without points are dropped.

    Returns:
        [P] new cluster of each point; [C'] owners, ascending.
    """
    rows = (parts > 1).index_select(0, cluster).nonzero().squeeze(1)
    rows = rows[torch.argsort(cluster[rows], stable=True)]
    divided, members = torch.unique_consecutive(cluster[rows], return_counts=True)
    offsets = torch.nn.functional.pad(members.cumsum(0), (1, 0))
    part = lloyd(points.vectors, points.weights, offsets, parts[divided], iterations, rows, alike)
    first = parts.cumsum(0) - parts
    new = first.index_select(0, cluster).index_add(0, rows, part)
    owner = torch.repeat_interleave(owner, parts)
    used = torch.bincount(new, minlength=len(owner)) > 0
    return (used.cumsum(0) - 1).index_select(0, new), owner[used]
