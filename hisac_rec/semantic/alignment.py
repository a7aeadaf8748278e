"""Codes that stay: code words that follow their items, items that leave a path only for a reason.

Legend: n items, D levels, C_l codes of level l, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hisac_rec.semantic.codebook import Codebook
from hisac_rec.semantic.config import RefreshConfig

NEW = -1
"""In place of the codes of an item that had none before."""


def settle(
    book: Codebook, vectors: Tensor, before: Tensor, config: RefreshConfig, iterations: int
) -> Codebook:
    """Move code words to the items that have them, and items to better paths, in turn.

    k-means whose items are held back by their past: see :func:`stay`. A code without items keeps
    its word. O(iterations n d D sum(C_l)).

    Args:
        book: code words to begin with, whose codes mean what those of ``before`` mean.
        vectors: [n, d].
        before: [n, D] earlier codes, ``NEW`` where there were none.
        config: what holds an item back.
        iterations: at most; it ends when no item moves.
    """
    last = None
    vectors = vectors.to(book.levels[0].device)
    for _ in range(iterations):
        codes = stay(book, vectors, before, config)
        if last is not None and torch.equal(codes, last):
            break
        last = codes
        book = _means(book, vectors, codes)
    return book


def stay(book: Codebook, vectors: Tensor, before: Tensor, config: RefreshConfig) -> Tensor:
    """Codes that leave the earlier path only where that is worth it.

    Of the earlier path the longest prefix is kept that, gone on from by the nearest code words,
    ends at most ``margin`` farther off (in squared distance) than the path without a past. If more
    than the share ``churn`` of the items would leave their paths, those that gain least by it
    stay. O(n D) walks down the tree.

    Args:
        book: today's code words.
        vectors: [n, d].
        before: [n, D] earlier codes, ``NEW`` where there were none.
        config: margin and churn.

    Returns:
        [n, D] int32 on the device of ``vectors``.
    """
    codes = book.encode(vectors)
    had = before.to(codes.device)[:, 0] != NEW
    vectors, old = vectors[had].float(), before.to(codes.device)[had]
    own = codes[had]
    allowed = (1.0 + config.margin) * _error(book, vectors, own)
    for length in range(1, old.shape[1] + 1):
        tried = old[:, :length]
        if length < old.shape[1]:
            rest = vectors - book.path_vector(tried)
            tried = torch.cat([tried, Codebook(book.levels[length:]).encode(rest)], dim=1)
        good = _error(book, vectors, tried) <= allowed
        own[good] = tried[good]
    gain = _error(book, vectors, old) - _error(book, vectors, own)
    gain[(own == old).all(dim=1)] = -torch.inf
    held = gain.argsort(descending=True, stable=True)[int(config.churn * len(old)) :]
    own[held] = old[held]
    codes[had] = own
    return codes


def _error(book: Codebook, vectors: Tensor, codes: Tensor) -> Tensor:
    """[n] squared distance of vectors [n, d] to their paths."""
    return (vectors - book.path_vector(codes)).square().sum(dim=1)


def _means(book: Codebook, vectors: Tensor, codes: Tensor) -> Codebook:
    """Code words at the mean of what their items have left over at their level."""
    residual = vectors.to(book.levels[0].device, torch.float32)
    levels = []
    for level, words in enumerate(book.levels):
        code = codes[:, level].long().to(words.device)
        sizes = torch.bincount(code, minlength=len(words))[:, None]
        sums = torch.zeros_like(words).index_add_(0, code, residual)
        words = torch.where(sizes > 0, sums / sizes.clamp_min(1), words)
        levels.append(words)
        residual = residual - words[code]
    return Codebook(levels)
