"""Plain references of what the partitioning compressors share, in Python floats and loops."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from histories import CODES, make_shape
from torch import Tensor

from hisac_rec.methods.base import History
from hisac_rec.methods.parts.agents import AgentMemory

LENGTHS = [0, 1, 2, 17, 60]


@dataclass
class Point:
    """What one or several events of a request are told apart by."""

    vector: list[float]
    events: list[int]
    """Places within the request."""


def plain_points(history: History, request: int, semantics: str) -> list[Point]:
    rows = slice(*history.offsets[request : request + 2].tolist())
    if semantics != "codes":
        table = history.vectors if semantics == "vectors" else history.values
        assert table is not None
        return [Point(vector, [i]) for i, vector in enumerate(table[rows].tolist())]
    codebook = [words.tolist() for words in make_shape(dtype=history.values.dtype).codebook]
    leaves: dict[tuple[int, ...], list[int]] = {}
    for i, path in enumerate(history.codes[rows].tolist()):
        leaves.setdefault(tuple(path), []).append(i)
    assert all(path[0] < CODES[0] for path in leaves)
    return [
        Point([math.fsum(column) for column in zip(*words, strict=True)], leaves[path])
        for path in sorted(leaves)
        for words in [[codebook[level][code] for level, code in enumerate(path)]]
    ]


def squared(a: list[float], b: list[float]) -> float:
    return math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def plain_lloyd(
    vectors: list[list[float]], weights: list[float], k: int, iterations: int
) -> list[int]:
    """k-means of one group: the four steps in the docstring of ``lloyd``."""
    centres = [vectors[(2 * j + 1) * len(vectors) // (2 * k)] for j in range(k)]

    def nearest(vector: list[float]) -> int:
        return min(range(k), key=lambda j: squared(vector, centres[j]))

    cluster = [nearest(vector) for vector in vectors]
    for _ in range(iterations):
        own = [squared(vector, centres[j]) for vector, j in zip(vectors, cluster, strict=True)]
        far = sorted(range(len(vectors)), key=lambda i: -own[i])
        relocated = 0
        for j in range(k):
            members = [i for i, c in enumerate(cluster) if c == j]
            if members:
                mass = math.fsum(weights[i] for i in members)
                centres[j] = [
                    math.fsum(weights[i] * vectors[i][x] for i in members) / mass
                    for x in range(len(vectors[0]))
                ]
            else:
                centres[j] = vectors[far[relocated]]
                relocated += 1
        cluster = [nearest(vector) for vector in vectors]
    return cluster


def assert_agents_are(memory: AgentMemory, history: History, parts: list[list[list[int]]]) -> None:
    """The agents are the means of these parts: request -> slot -> places of events."""
    for request, slots in enumerate(parts):
        first, end = history.offsets[request : request + 2].tolist()
        values = history.values[first:end].detach()
        expected = [values[places].mean(0) if places else values.new_zeros(1) for places in slots]
        assert len(slots) <= memory.filled.shape[1]
        for slot in range(memory.filled.shape[1]):
            places = slots[slot] if slot < len(slots) else []
            assert memory.filled[request, slot] == bool(places)
            assert memory.events[request, slot] == len(places)
            if places:
                torch.testing.assert_close(memory.vectors[request, slot], expected[slot])
            else:
                assert not memory.vectors[request, slot].any()


def assert_partition(memory: AgentMemory, history: History, agents: int) -> None:
    """Every event counts once: sizes add up, and the agents' weighted mean is the history's."""
    lengths = history.offsets.diff()
    assert (memory.filled.sum(1) <= agents).all()
    assert memory.filled.shape[1] <= agents
    assert torch.equal(memory.filled, memory.events > 0)
    assert torch.equal(memory.events.sum(1), lengths.to(torch.float32))
    assert not memory.vectors[~memory.filled].any()
    sums = (memory.vectors * memory.events.unsqueeze(-1)).sum(1)
    for request, length in enumerate(lengths.tolist()):
        first = int(history.offsets[request])
        expected = history.values[first : first + length].detach().sum(0)
        torch.testing.assert_close(sums[request].detach().to(expected), expected)


def gradient_shares(memory: AgentMemory, values: Tensor) -> Tensor:
    """[T] sum over the agents of (gradient x events): 1 where an event is in just one mean."""
    weighted = (memory.vectors[..., 0] * memory.events).sum()
    (gradient,) = torch.autograd.grad(weighted, values, retain_graph=True)
    return gradient[:, 0]
