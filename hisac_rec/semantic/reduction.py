"""Factorise a matrix of items to a given width: a seeded, truncated SVD."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)


def truncated_svd(matrix: Any, dim: int, seed: int) -> Any:
    """The fitted :class:`sklearn.decomposition.TruncatedSVD` of a matrix [n, m].

    O(nnz dim) time. ``dim`` is lowered to ``min(n, m) - 1`` where the matrix is smaller.
    """
    from sklearn.decomposition import TruncatedSVD

    width = min(dim, min(matrix.shape) - 1)
    if width < dim:
        log.warning("dim = %d is more than the data holds: %d is used", dim, width)
    return TruncatedSVD(width, random_state=seed, n_iter=7).fit(matrix)


def reduce_width(
    matrix: Any, dim: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of a dense or sparse [n, m] in the first ``dim`` singular directions.

    Returns:
        The rows [n, dim], and the directions [dim, m], for :func:`project` of further rows.
    """
    svd = truncated_svd(matrix, dim, seed)
    reduced = np.ascontiguousarray(svd.transform(matrix), dtype=np.float32)
    return reduced, np.ascontiguousarray(svd.components_, dtype=np.float32)


def project(matrix: Any, directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of a dense or sparse [n, m] in directions [dim, m] found earlier, [n, dim]."""
    return np.ascontiguousarray(matrix @ directions.T, dtype=np.float32)
