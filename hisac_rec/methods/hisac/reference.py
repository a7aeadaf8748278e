"""Voting and routing written as plainly as possible: float64, Python loops over users.

Slow on purpose. The fast forms in ``voting`` and ``routing`` are tested to equal these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Path = tuple[int, ...]
Vector = Sequence[float]


def vote(paths: Sequence[Path], keep: Sequence[int]) -> dict[Path, int]:
    """Agents of one user: surviving leaf path -> votes, in order of path.

    Args:
        paths: the semantic ID of each event, D codes each.
        keep: k^(1)..k^(D).
    """
    votes: Counter[Path] = Counter()
    for path in paths:
        for level in range(1, len(path) + 1):
            votes[path[:level]] += 1
    surviving: list[Path] = [()]
    for level, k in enumerate(keep, start=1):
        next_level: list[Path] = []
        for parent in surviving:
            children = [n for n in votes if len(n) == level and n[:-1] == parent]
            children.sort(key=lambda node: (-votes[node], node))
            next_level += children[:k]
        surviving = next_level
    return {path: votes[path] for path in sorted(surviving)}


def path_vector(path: Path, codebook: Sequence[Sequence[Vector]]) -> list[float]:
    """z: the sum of the code words on a path."""
    words = [codebook[level][code] for level, code in enumerate(path)]
    return [math.fsum(column) for column in zip(*words, strict=True)]


def route(
    query: Vector, keys: Sequence[Vector], values: Sequence[Vector], tau: float, squared: bool
) -> list[float]:
    """One agent: the sum over events of softmax(-distance / tau) times the value."""
    scores = []
    for key in keys:
        distance = math.fsum((a - b) ** 2 for a, b in zip(query, key, strict=True))
        scores.append(-(distance if squared else math.sqrt(distance)) / tau)
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return [
        math.fsum(w * v for w, v in zip(weights, column, strict=True)) / total
        for column in zip(*values, strict=True)
    ]
