"""Voting and routing written as plainly as possible: float64, Python loops over users.

Slow on purpose. The fast forms in ``voting`` and ``routing`` are tested to equal these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Path = tuple[int, ...]
Vector = Sequence[float]


def vote(
    paths: Sequence[Path],
    keep: Sequence[int],
    *,
    half_life: float | None = None,
    tail: int = 0,
    weights: Sequence[float] | None = None,
) -> dict[Path, int]:
    """Agents of one user: surviving leaf path -> votes, in order of path; none without votes.

    Args:
        paths: the semantic ID of each event, D codes each.
        keep: k^(1)..k^(D).
        half_life: votes halve every so many events into the past, and are counted in 65536ths
            of the newest event's; None: one each.
        tail: pruned leaves kept all the same.
        weights: what each event votes, counted in 65536ths too; what is not above 0 is no vote
            here, and where no event votes each votes 1/65536. None: one each.
    """
    votes: Counter[Path] = Counter()
    nobody = weights is not None and not any(weight > 0 for weight in weights)
    for back, path in enumerate(reversed(paths)):
        one = 1 if half_life is None else max(1, round(65536 * 0.5 ** (back / half_life)))
        if weights is not None and not nobody:
            weight = weights[len(paths) - 1 - back]
            one = round(max(weight, 0) * (65536 if half_life is None else one))
        elif nobody:
            one = 1
        for level in range(1, len(path) + 1):
            votes[path[:level]] += one
    surviving: list[Path] = [()]
    for level, k in enumerate(keep, start=1):
        next_level: list[Path] = []
        for parent in surviving:
            children = [n for n in votes if len(n) == level and n[:-1] == parent]
            children.sort(key=lambda node: (-votes[node], node))
            next_level += children[:k]
        surviving = next_level
    pruned = [path for path in set(paths) if path not in surviving]
    pruned.sort(key=lambda node: (-votes[node], node))
    return {path: votes[path] for path in sorted(surviving + pruned[:tail]) if votes[path]}


def path_vector(path: Path, codebook: Sequence[Sequence[Vector]]) -> list[float]:
    """z: the sum of the code words on a path."""
    words = [codebook[level][code] for level, code in enumerate(path)]
    return [math.fsum(column) for column in zip(*words, strict=True)]


def share_out(
    queries: Sequence[Vector],
    keys: Sequence[Vector],
    values: Sequence[Vector],
    tau: float,
    squared: bool,
    *,
    hard: bool,
) -> list[list[float]]:
    """All agents, every event shared out among them by softmax(-distance / tau), or given to
    its nearest alone: the weighted mean of what arrives at each; zeros where nothing does.
    """
    total = [0.0] * len(queries)
    sums = [[0.0] * len(values[0]) for _ in queries]
    for key, value in zip(keys, values, strict=True):
        squares = [math.fsum((a - b) ** 2 for a, b in zip(q, key, strict=True)) for q in queries]
        distances = squares if squared else [math.sqrt(square) for square in squares]
        nearest = min(distances)
        shares = [math.exp((nearest - distance) / tau) for distance in distances]
        if hard:
            shares = [0.0] * len(queries)
            shares[distances.index(nearest)] = 1.0
        for agent, share in enumerate(shares):
            share /= math.fsum(shares)
            total[agent] += share
            sums[agent] = [s + share * v for s, v in zip(sums[agent], value, strict=True)]
    return [
        [s / t for s in row] if t else [0.0] * len(row) for row, t in zip(sums, total, strict=True)
    ]


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
