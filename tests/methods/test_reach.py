"""Events that reach their nearest agents alone, against plain float64 and against all of alpha."""

from __future__ import annotations

import math

import pytest
import torch
from histories import CODES, make_case, make_shape
from torch import Tensor

from hisac_rec.data.bags import FrozenEvents
from hisac_rec.methods.hisac.leaf_geometry import LeafGeometry
from hisac_rec.methods.hisac.leaf_routing import route_leaves
from hisac_rec.methods.hisac.leaves import Agents, Leaves
from hisac_rec.methods.hisac.reach import events_reached, nearest_agents, route_reached
from hisac_rec.methods.hisac.tree import ByAgent, TreeRules

LENGTHS = [17, 0, 60, 1]
TAU = 0.4
RULES = TreeRules(CODES, (3, 2), 0, None, TAU, False)


def grown() -> tuple[Tensor, Tensor, Leaves, Agents, LeafGeometry]:
    history, _ = make_case(LENGTHS, [0] * len(LENGTHS), dtype=torch.float64, seed=5)
    leaves, agents = RULES.grow(history.frozen)
    codebook = make_shape(dtype=torch.float64).codebook
    geometry = RULES.geometry(leaves, agents, len(LENGTHS), codebook)
    return history.values, history.codes, leaves, agents, geometry


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_equals_the_plain_form(reach: int) -> None:
    values, codes, leaves, agents, geometry = grown()
    codebook = make_shape(dtype=torch.float64).codebook
    reached = nearest_agents(geometry, reach)
    sums = torch.zeros(len(leaves.path), values.shape[1], dtype=torch.float64)
    sums.index_add_(0, leaves.of_event, values)
    found = route_reached(sums, reached, len(agents.leaf))
    # One event after the other: its nearest agents of its request, each with its weight.
    total = [0.0] * len(agents.leaf)
    wanted = torch.zeros_like(found)
    request = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    for value, code, own in zip(values, codes, request.tolist(), strict=True):
        key = sum(words[c] for words, c in zip(codebook, code.tolist(), strict=True))
        near = []
        for agent, leaf in enumerate(agents.leaf.tolist()):
            if int(agents.request[agent]) == own:
                words = geometry.words[leaf]
                place = geometry.codebook[words].sum(0)
                near.append((float(torch.linalg.vector_norm(key - place)), agent))
        for distance, agent in sorted(near)[:reach]:
            total[agent] += math.exp(-distance / TAU)
            wanted[agent] += math.exp(-distance / TAU) * value
    wanted /= torch.tensor(total, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_reaching_all_is_the_whole_of_alpha() -> None:
    values, _, leaves, agents, geometry = grown()
    sums = torch.zeros(len(leaves.path), values.shape[1], dtype=torch.float64)
    sums.index_add_(0, leaves.of_event, values)
    sums.requires_grad_()
    some = route_reached(sums, nearest_agents(geometry, 10_000), len(agents.leaf))
    every = route_leaves(sums, geometry)
    torch.testing.assert_close(some, every, rtol=1e-5, atol=1e-6)
    direction = torch.randn(some.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad((some * direction).sum(), sums)
    (expected,) = torch.autograd.grad((every * direction).sum(), sums)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_groups_are_the_agents() -> None:
    """The entries that the loader sends sum up to the agents."""
    history, _ = make_case(LENGTHS, [0] * len(LENGTHS), dtype=torch.float64, seed=5)
    codebook = make_shape(dtype=torch.float64).codebook
    groups = ByAgent(RULES, codebook, 2)(history.frozen)
    values, _, leaves, agents, geometry = grown()
    sums = torch.zeros(len(leaves.path), values.shape[1], dtype=torch.float64)
    sums.index_add_(0, leaves.of_event, values)
    assert groups.event is not None
    assert groups.weight is not None
    found = torch.zeros(groups.count, values.shape[1], dtype=torch.float64)
    weighted = values[groups.event] * groups.weight.unsqueeze(1)
    found.index_add_(0, groups.group, weighted)
    wanted = route_reached(sums, nearest_agents(geometry, 2), len(agents.leaf))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # Each event reaches two agents, or the one there is.
    alone = torch.tensor([min(2, count) for count in torch.bincount(agents.request).tolist()])
    request = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    assert torch.bincount(groups.event).tolist() == alone[request].tolist()


def test_no_events_at_all() -> None:
    offsets, codes = torch.zeros(3, dtype=torch.int64), torch.zeros((0, 2), dtype=torch.int64)
    leaves, agents = RULES.grow(FrozenEvents(offsets, codes))
    geometry = RULES.geometry(leaves, agents, 2, make_shape().codebook)
    reached = nearest_agents(geometry, 3)
    groups = events_reached(leaves, reached, len(agents.leaf))
    assert (groups.count, len(groups.group)) == (0, 0)
    nothing = torch.zeros((0, 4), requires_grad=True)
    routed = route_reached(nothing, reached, 0)
    assert routed.shape == (0, 4)
    assert routed.requires_grad
