"""The tree of semantic IDs as numbers: what lies on it, and the paths to its leaves.

Legend: R requests, T events, D levels, C_l codes, U occupied leaves, A agents (all requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Leaves:
    """Occupied leaves of every request, ordered by request, then by path.

    Args:
        request: [U] int64.
        path: [U] int64, the path of codes as one number (``prefix<D>``).
        events: [U] int64, how many events lie on each leaf.
        votes: [U] int64, the sum of their votes: the same number where each has one vote.
        of_event: [T] int64, the leaf of each event.
        against: [U] int64, the sum of the votes against it; None where no event can vote so.
        unit: what one vote is in these sums.
    """

    request: Tensor
    path: Tensor
    events: Tensor
    votes: Tensor
    of_event: Tensor
    against: Tensor | None = None
    unit: int = 1


@dataclass
class Agents:
    """Surviving leaves, ordered by request, then by path. Each has a vote.

    Args:
        leaf: [A] int64 into ``Leaves``.
        request: [A] int64.
        path: [A] int64.
        votes: [A] int64.
    """

    leaf: Tensor
    request: Tensor
    path: Tensor
    votes: Tensor


def path_numbers(codes: Tensor, code_counts: Sequence[int]) -> Tensor:
    """[T, D] codes -> [T] int64 paths in mixed radix; raises nothing. O(T D)."""
    path = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
    for level, count in enumerate(code_counts):
        path = path * count + codes[:, level]
    return path


def path_vectors(path: Tensor, codebook: Sequence[Tensor]) -> Tensor:
    """[n] paths -> [n, s]: the sum of the code words on each path (z_a). O(n D s)."""
    total: Tensor | None = None
    rest = path
    for words in reversed(codebook):
        word = words[rest % len(words)]
        rest = rest // len(words)
        total = word if total is None else total + word
    if total is None:
        raise ValueError("a codebook needs at least one level")
    return total


def path_words(path: Tensor, code_counts: Sequence[int]) -> Tensor:
    """[...] paths -> [..., D] rows of the code words on each path in the codebook's levels
    joined. O(n D).
    """
    below = sum(code_counts)
    rest, words = path, []
    for count in reversed(code_counts):
        below -= count
        words.append(below + rest % count)
        rest = rest // count
    return torch.stack(words[::-1], dim=-1)
