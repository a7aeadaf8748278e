"""Sparse alpha: each behaviour reaches its nearest agents alone.

What is kept of alpha is then small enough to be a list of weights, and a weighted bag of table
rows is all that an agent is: the ranks that own the rows can add them up (``tables.pool``).

Legend: R requests, T events, U occupied leaves, A agents, W kept (agent, leaf) pairs, m reach,
d value width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hisac_rec.data.bags import Groups
from hisac_rec.methods.base import request_of_rows
from hisac_rec.methods.hisac.leaf_geometry import LeafGeometry
from hisac_rec.methods.hisac.leaf_products import request_parts
from hisac_rec.methods.hisac.leaves import Leaves


class Reached(NamedTuple):
    """The kept pairs, by agent, and alpha of each: an agent's sum to 1 over its events.

    Args:
        agent: [W] int64, ascending.
        leaf: [W] int64.
        alpha: [W] float32, of each event of the leaf.
    """

    agent: Tensor
    leaf: Tensor
    alpha: Tensor


def nearest_agents(geometry: LeafGeometry, reach: int) -> Reached:
    """The ``reach`` nearest agents of every leaf, with alpha over what is kept.

    An agent that no leaf keeps, as one of two with the same vector may be, gets nothing.
    O(P (s + log m)) for P pairs of a request's agents and leaves.
    """
    agents, leaves, weights = [], [], []
    for part in request_parts(geometry, torch.float32):
        size = len(part.weights)
        best, at = part.weights.topk(min(reach, size), dim=0)  # [m, U_r]
        own = torch.arange(part.leaves.start, part.leaves.stop, device=at.device)
        agents.append((at + part.agents.start).flatten())
        leaves.append(own.expand_as(at).flatten())
        weights.append(best.flatten())
    if not agents:
        none = geometry.agents[:0]
        return Reached(none, none, none.to(torch.float32))
    agent, leaf, weight = torch.cat(agents), torch.cat(leaves), torch.cat(weights)
    mass = weight.new_zeros(len(geometry.agents))
    mass.index_add_(0, agent, weight * geometry.counts[leaf])
    alpha = weight / mass.clamp_min(torch.finfo(mass.dtype).tiny)[agent]
    order = torch.argsort(agent, stable=True)
    return Reached(agent[order], leaf[order], alpha[order])


def route_reached(sums: Tensor, reached: Reached, agents: int) -> Tensor:
    """[A, d] agents from the sums [U, d] of the leaves' events. O(W d)."""
    if not len(reached.leaf):  # embedding_bag refuses tables without rows
        return sums.new_zeros((agents, sums.shape[1])) + sums.sum()
    counts = torch.bincount(reached.agent, minlength=agents)
    bounds = functional.pad(counts.cumsum(0), (1, 0))
    return functional.embedding_bag(
        reached.leaf,
        sums,
        bounds,
        mode="sum",
        per_sample_weights=reached.alpha.to(sums.dtype),
        include_last_offset=True,
    )


def events_reached(leaves: Leaves, reached: Reached, agents: int) -> Groups:
    """Every agent's events, weighted: an entry for each event of each kept pair. O(m T).

    Args:
        leaves: of the batch.
        reached: of :func:`nearest_agents`.
        agents: A.
    """
    by_leaf = torch.argsort(leaves.of_event, stable=True)
    counts = leaves.events[reached.leaf]
    ends = counts.cumsum(0)
    pair = request_of_rows(functional.pad(ends, (1, 0)), int(counts.sum()))
    within = torch.arange(len(pair), device=pair.device) - (ends - counts)[pair]
    first = (leaves.events.cumsum(0) - leaves.events)[reached.leaf]
    return Groups(
        count=agents,
        group=reached.agent[pair],
        event=by_leaf[first[pair] + within],
        weight=reached.alpha[pair],
    )
