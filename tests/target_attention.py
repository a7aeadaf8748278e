"""Retrieve-then-attend written plainly, for tests: lists, one candidate at a time, float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.parts.retrieved import RetrievedAttention

Vector = list[float]


def dot(left: Vector, right: Vector) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))


def times(matrix: list[Vector], vector: Vector) -> Vector:
    return [dot(row, vector) for row in matrix]


def best(scores: list[float], count: int) -> list[int]:
    """Places of the ``count`` largest scores; of equal ones the newest (last) is better."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], -i))[:count]


def attend(
    attention: RetrievedAttention,
    candidate: Vector,
    events: list[Vector],
    change: Callable[[int, int, float], float] = lambda head, event, score: score,
) -> Vector:
    """softmax((W_q q)_h (W_k e)_h / sqrt(d/H)) (W_v e)_h per head and null slot, times W_o.

    Args:
        attention: its weights alone are read.
        candidate: q.
        events: the retrieved events.
        change: (head, place of the event, score) -> the score to use.
    """
    width = len(candidate) // attention.heads
    query = times(attention.query.weight.tolist(), candidate)
    keys = [times(attention.key.weight.tolist(), event) for event in events]
    values = [times(attention.value.weight.tolist(), event) for event in events]
    null_key, null_value = attention.null_key.tolist(), attention.null_value.tolist()
    joined: Vector = []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        scores = [
            change(head, place, dot(query[part], key[part]) / math.sqrt(width))
            for place, key in enumerate(keys)
        ]
        scores.append(dot(query[part], null_key[part]) / math.sqrt(width))
        weights = [math.exp(score - max(scores)) for score in scores]
        rows = [value[part] for value in [*values, null_value]]
        joined += [
            sum(weight * row[x] for weight, row in zip(weights, rows, strict=True)) / sum(weights)
            for x in range(width)
        ]
    return times(attention.out.weight.tolist(), joined)


def each_candidate(history: History, wanted: Candidates) -> Iterator[tuple[int, slice]]:
    """(candidate row, rows of its request's events)."""
    bounds = history.offsets.tolist()
    for row, request in enumerate(wanted.request.tolist()):
        yield row, slice(bounds[request], bounds[request + 1])


def scramble(method: torch.nn.Module) -> None:
    """Random weights: at their start many of them are zeros or the identity."""
    generator = torch.Generator().manual_seed(5)
    for parameter in method.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
