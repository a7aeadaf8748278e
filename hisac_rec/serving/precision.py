"""How exactly a cache keeps vectors: 32, 16 or 8 bits a number.

Legend: A agents, d width.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
STORED: dict[Precision, type[np.generic]] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "int8": np.int8,
}


def encode(
    vectors: NDArray[np.float32], precision: Precision
) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """What is stored of ``vectors`` [A, d]: [A, d] numbers, and a scale [A] for each.

    int8 is symmetric: a vector's largest number becomes 127; the error of a number is at most
    half a step, 1/254 of the largest. The scales of the others are 1.
    """
    if precision != "int8":
        return vectors.astype(STORED[precision]), np.ones(len(vectors), np.float32)
    largest = np.abs(vectors).max(axis=1, initial=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(vectors / scale[:, None]).astype(np.int8), scale


def decode(stored: NDArray[np.generic], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """[A, d] float32 of :func:`encode`."""
    vectors = stored.astype(np.float32)
    return vectors * scale[:, None] if stored.dtype == np.int8 else vectors


def squared_error(vectors: NDArray[np.float32], precision: Precision) -> NDArray[np.float64]:
    """[2] sums over all numbers of [A, d]: the squares of what storing them changes, and theirs."""
    whole = float(np.square(vectors, dtype=np.float64).sum())
    if precision == "fp32":
        return np.array([0.0, whole])
    off = decode(*encode(vectors, precision)) - vectors
    return np.array([float(np.square(off, dtype=np.float64).sum()), whole])
