"""How good a fit of semantic IDs is: the numbers of ``semantic_ids.json``.

Legend: n items with a vector of their own, D levels, C_l codes, d width.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.semantic.codebook import Codebook
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.probe import Probe
from hisac_rec.semantic.store import prefix_ids

COLLAPSE_USAGE = 0.5
"""A level that uses less than this share of its codes has collapsed."""
COLLAPSE_PERPLEXITY = 0.25
"""So has one whose perplexity is below this share of its codes,"""
COLLAPSE_LARGEST = 0.25
"""or one of whose C codes more than this share of the items and 1/C have."""
DISTANCE_SAMPLE = 4_096
"""Items and paths whose distances are averaged."""


class LevelQuality(Strict):
    """One level of the codebook."""

    level: int
    """From 0, the top."""
    codes: int
    """C_l."""
    usage: float
    """Share of the codes that some item has."""
    perplexity: float
    """exp(entropy) of the codes over items: how many codes are used evenly; at most C_l."""
    nodes: int
    """Nodes of the tree at this level (prefixes) that some item has."""
    mse: float
    """Mean squared distance of an item's vector to its path down to this level."""
    variance_explained: float
    """1 - mse / (mean squared distance to the mean vector)."""
    largest: float | None = None
    """Share of the items that have the most frequent code."""
    collapsed: bool = False
    """Few codes do the work of all: what ``warnings`` says in words."""


class Quality(Strict):
    """The whole fit, over items with a vector of their own."""

    levels: list[LevelQuality]
    """Top level first."""
    source_variance_explained: float
    """The same share for the source vectors rebuilt from the codes; comparable over methods."""
    collision_rate: float
    """Share of items whose whole path another item has too."""
    distance_own: float
    """Mean distance of an item's vector to the vector of its own path."""
    distance_other: float
    """Mean distance to the other paths in use."""
    tau_hint: float
    """(distance_other - distance_own) / ln(paths in use): at this routing temperature a
    behaviour on an agent's own path weighs about as much as one on each other path together."""
    warnings: list[str]
    """What a person should look at."""


class Refresh(Strict):
    """What became of an earlier fit. *Unchanged items* are those that both know and have a vector
    of their own in both.
    """

    kind: Literal["extended", "refitted"]
    """"extended": the old codebook, new items encoded by it; "refitted": code words moved on
    from the old ones."""
    predecessor: str
    """Folder of the data with the earlier fit."""
    predecessor_fit: str
    """Its fingerprint."""
    unchanged: int
    """Unchanged items."""
    new: int
    """Items that the earlier data did not have."""
    placed: int
    """Items that both have and only this fit has a vector for."""
    gone: int
    """Items that only the earlier data had."""
    changed: list[float]
    """Per level, the share of the unchanged items whose code differs: the churn."""
    changed_path: float
    """Share of them of which any code differs."""
    moved: float
    """Mean distance of an unchanged item's vector to where it was."""
    drift: list[float]
    """Per level, root mean square distance of a code word to where it was, as a share of the
    root mean square length of the earlier code words."""
    misfit: float
    """Share of the squared length of the earlier vectors that today's, turned onto them, do not
    explain: 0 where the vectors are the same."""
    margin: float | None
    """``refresh.margin`` of a refit."""


class Report(Strict):
    """``semantic_ids.json``."""

    config: SemanticIdConfig
    """What was used, ``source`` resolved."""
    data_fingerprint: str
    """``manifest.fingerprint`` of the data."""
    items: int
    """Rows of the item table, the unknown item included."""
    items_without_vector: int
    """Items of which the source knows nothing; they stand at the mean vector."""
    items_unseen: int
    """Items that the training period never saw."""
    items_unseen_with_vector: int
    """Of those, how many have a vector of their own all the same."""
    items_fitted: int
    """Items that the quantiser learned from."""
    quality: Quality
    """The numbers."""
    support: dict[str, float] | None = None
    """Users behind the vector of a seen item, from who consumed what: quantiles "0.1", "0.5", "0.9"
    over items, and "below", the share of items with too few of them (``min_support``). Of the mean
    over views."""
    probe: Probe | None = None
    """How well the codes alone tell labels."""
    inputs: list[str] = []
    """For people: what was read besides the prepared data, and how far it reaches."""
    digests: dict[str, str] = {}
    """Of what was read besides: "embeddings", "text.model"."""
    refresh: Refresh | None = None
    """What became of an earlier fit, where this one goes on from one."""


def measure(
    codes: NDArray[np.int32],
    vectors: Tensor,
    codebook: Codebook,
    source: Tensor,
    rebuilt: Tensor,
    seed: int = 0,
) -> Quality:
    """Measure a fit. O(n d D), and a sample of distances.

    Args:
        codes: [n, D].
        vectors: [n, d] semantic vectors as stored.
        codebook: the code words, on the CPU.
        source: [n, s] source vectors.
        rebuilt: [n, s] source vectors rebuilt from the codes.
        seed: of the sample of distances.
    """
    vectors = vectors.float()
    paths = torch.from_numpy(codes)
    variance = _variance(vectors)
    prefixes = prefix_ids(codes, codebook.code_counts)
    levels, warnings = [], []
    for level, count in enumerate(codebook.code_counts):
        sizes = np.bincount(codes[:, level], minlength=count)
        error = (vectors - codebook.path_vector(paths[:, : level + 1])).square().sum(1).mean()
        levels.append(
            LevelQuality(
                level=level,
                codes=count,
                usage=float((sizes > 0).mean()),
                perplexity=perplexity(sizes),
                nodes=len(np.unique(prefixes[:, level])),
                mse=error.item(),
                variance_explained=1.0 - error.item() / variance,
                largest=float(sizes.max() / max(sizes.sum(), 1)),
                collapsed=bool(_signs(sizes)),
            )
        )
        if signs := _signs(sizes):
            warnings.append(
                f"level {level} {', '.join(signs)}: the codebook has collapsed there; ask for "
                "fewer codes, or look whether items have equal vectors"
            )
    own, other, leaves = _distances(vectors, prefixes[:, -1], paths, codebook, seed)
    collisions = collision_rate(prefixes[:, -1])
    return Quality(
        levels=levels,
        source_variance_explained=1.0
        - (source - rebuilt).square().sum(1).mean().item() / _variance(source),
        collision_rate=collisions,
        distance_own=own,
        distance_other=other,
        tau_hint=max(other - own, 0.0) / math.log(max(leaves, 2)),
        warnings=warnings,
    )


def perplexity(sizes: NDArray[np.int64]) -> float:
    """exp(entropy) of a distribution given as counts."""
    share = sizes[sizes > 0] / max(sizes.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))


def collision_rate(leaves: NDArray[np.int64]) -> float:
    """Share of items [n] whose leaf another item has too."""
    _, sizes = np.unique(leaves, return_counts=True)
    return float(sizes[sizes > 1].sum() / max(len(leaves), 1))


def _variance(vectors: Tensor) -> float:
    return max((vectors - vectors.mean(0)).square().sum(1).mean().item(), 1e-12)


def _distances(
    vectors: Tensor, leaves: NDArray[np.int64], paths: Tensor, codebook: Codebook, seed: int
) -> tuple[float, float, int]:
    """Mean distance to the own path, mean distance to other paths in use, paths in use."""
    used, first, leaf = np.unique(leaves, return_index=True, return_inverse=True)
    rng = np.random.default_rng(seed)
    items = rng.permutation(len(vectors))[:DISTANCE_SAMPLE]
    some = np.sort(rng.permutation(len(used))[:DISTANCE_SAMPLE])
    own = (vectors[items] - codebook.path_vector(paths[items])).norm(dim=1)
    distance = torch.cdist(vectors[items], codebook.path_vector(paths[first[some]]))
    is_other = torch.from_numpy(leaf[items][:, None] != some[None, :])
    other = distance[is_other].mean().item() if is_other.any() else 0.0
    return own.mean().item(), other, len(used)


def _signs(sizes: NDArray[np.int64]) -> list[str]:
    """What says that a level of codes with so many items [C] has collapsed; empty: nothing."""
    count, total = len(sizes), max(int(sizes.sum()), 1)
    usage, largest, even = (sizes > 0).mean(), sizes.max() / total, perplexity(sizes)
    signs = []
    if usage < COLLAPSE_USAGE:
        signs.append(f"uses {usage:.0%} of its {count} codes")
    if even < COLLAPSE_PERPLEXITY * count:
        signs.append(f"uses its {count} codes as if they were {even:.1f}")
    if largest > COLLAPSE_LARGEST + 1 / count:
        signs.append(f"has {largest:.0%} of the items on one code")
    return signs
