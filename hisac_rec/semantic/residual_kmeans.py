"""Residual k-means: k-means per level, each on what the levels above left over.

The fast and stable default: code words live in the space of the source vectors, so an item's
semantic vector is its source vector. Legend as in :mod:`hisac_rec.semantic.codebook`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hisac_rec.progress import progress
from hisac_rec.semantic.codebook import Codebook, Quantiser, nearest

SEEDING_PER_CODE = 256
"""Seeding looks at this many points a code at most."""
SEEDING_PASSES = 10
"""Lloyd passes after which the seedings are compared."""
TOLERANCE = 1e-5
"""Lloyd stops when a pass lowers the error by less than this share."""


class ResidualKMeans(Quantiser):
    """K-means++ and full Lloyd passes on the residuals, level by level.

    O((iterations + restarts) n d sum(C_l)). Equal seeds give equal code words on a CPU; a GPU
    adds in another order, so the last bits may differ there.

    Args:
        codes: C_l per level.
        iterations: Lloyd passes per level, at most.
        restarts: seedings per level, of which the best is kept.
        seed: of the seedings.
        device: where to compute.
    """

    def __init__(
        self,
        codes: list[int],
        iterations: int = 50,
        restarts: int = 5,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.codes, self.seed = codes, seed
        self.iterations, self.restarts = iterations, restarts
        self.device = torch.device(device)

    def fit(self, vectors: Tensor) -> Codebook:
        """Fit the levels on vectors [n, d]."""
        generator = torch.Generator().manual_seed(self.seed)
        residual = vectors.to(self.device, torch.float32)
        levels = []
        total = len(self.codes) * self.iterations
        with progress("fit codebook", total, "passes") as advance:
            for level, count in enumerate(self.codes):
                done = 0

                def tell(error: float, level: int = level) -> None:
                    nonlocal done
                    done += 1
                    advance(1, f"level {level}, error {error:.4g}")

                words = kmeans(residual, count, self.iterations, generator, self.restarts, tell)
                advance(self.iterations - done)
                levels.append(words)
                residual = residual - words[nearest(residual, words)[0]]
        self.codebook = Codebook(levels)
        return self.codebook


def kmeans(
    vectors: Tensor,
    count: int,
    iterations: int,
    generator: torch.Generator,
    restarts: int = 1,
    tell: Callable[[float], None] = lambda error: None,
) -> Tensor:
    """Centres [count, d] of vectors [n, d] by Lloyd passes from the best k-means++ seeding.

    One seeding merges two true clusters easily; a handful hardly ever all do. They are
    compared after a few passes on a sample. A centre without points moves to the point
    farthest from its own centre. O((iterations + restarts) n count d).

    Args:
        vectors: [n, d] float32, n >= count.
        count: centres.
        iterations: passes at most.
        generator: on the CPU, so that all devices draw the same seeds.
        restarts: seedings tried.
        tell: called after each pass with the mean squared distance.
    """
    best, words = math.inf, vectors[:count]
    for _ in range(restarts):
        size = min(len(vectors), SEEDING_PER_CODE * count)
        rows = torch.randperm(len(vectors), generator=generator)[:size]
        points = vectors[rows.to(vectors.device)]
        trial = _seed(points, count, generator)
        if restarts > 1:
            trial, error = _lloyd(points, trial, min(iterations, SEEDING_PASSES))
            if error >= best:
                continue
            best = error
        words = trial
    return _lloyd(vectors, words, iterations, tell)[0]


def _lloyd(
    vectors: Tensor,
    words: Tensor,
    iterations: int,
    tell: Callable[[float], None] = lambda error: None,
) -> tuple[Tensor, float]:
    """Centres after at most ``iterations`` passes, and the error before the last of them."""
    last = error = math.inf
    for _ in range(iterations):
        code, distance = nearest(vectors, words)
        sizes = torch.bincount(code, minlength=len(words))
        sums = torch.zeros_like(words).index_add_(0, code, vectors)
        empty = sizes == 0
        words = torch.where(empty[:, None], words, sums / sizes.clamp_min(1)[:, None])
        error = distance.mean().item()
        tell(error)
        if empty.any():
            far = distance.topk(int(empty.sum()))
            moved = empty.nonzero()[:, 0][far.values > 0]
            words[moved] = vectors[far.indices[far.values > 0]]
            if len(moved):
                continue
        if last - error <= TOLERANCE * error:
            break
        last = error
    return words, error


def _seed(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few points drawn by squared distance, keep the one that helps most.

    Source: Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding".
    """
    squares = points.square().sum(1)
    trials = 2 + int(math.log(count))
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    chosen[0] = 0  # the points are in random order
    distance = (points - points[0]).square().sum(1)
    for index in range(1, count):
        mass = distance.double().cumsum(0)
        draws = torch.rand(trials, generator=generator, dtype=torch.float64).to(mass.device)
        trial = torch.searchsorted(mass, draws * mass[-1]).clamp_max(len(points) - 1)
        to_trial = torch.addmm(squares[:, None], points, points[trial].T, alpha=-2.0)
        to_trial = torch.minimum((to_trial + squares[trial]).clamp_min_(0.0), distance[:, None])
        best = to_trial.sum(0).argmin()
        chosen[index] = trial[best]
        distance = to_trial[:, best]
    return points[chosen].clone()
