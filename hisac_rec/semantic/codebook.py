"""The global hierarchical codebook and the interface of what fits one.

Legend: n items, D levels, C_l codes of level l, d width of the code words, s width of the
source vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.semantic.store import Semantics

Arrays = dict[str, NDArray]

CHUNK_SCORES = 1 << 24
"""Scores of an assignment held at once: 64 MiB of float32."""


class Codebook:
    """Code words per level; all prefixes of code paths form one tree of depth D.

    A node of the tree is a prefix (c_1, ..., c_l). It stands for the sum of its code words,
    and has the number ``p_l = p_{l-1} * C_l + c_l`` at its level.

    Args:
        levels: D tensors [C_l, d], float32, on one device.
    """

    def __init__(self, levels: Sequence[Tensor]) -> None:
        self.levels = list(levels)

    @classmethod
    def of(cls, semantics: Semantics, device: torch.device | str = "cpu") -> Codebook:
        """The codebook of stored semantic IDs."""
        return cls([torch.tensor(words, device=device) for words in semantics.codebook])

    @property
    def code_counts(self) -> list[int]:
        """C_l of every level."""
        return [len(words) for words in self.levels]

    @property
    def prefix_counts(self) -> list[int]:
        """Nodes of the tree at each level."""
        return list(accumulate(self.code_counts, mul))

    def encode(self, vectors: Tensor) -> Tensor:
        """Walk down the tree: at each level the code word nearest to what is left.

        O(n d sum(C_l)), in chunks; the answer is on the device of ``vectors``.

        Args:
            vectors: [n, d], any floating type.

        Returns:
            [n, D] int32.
        """
        device = self.levels[0].device
        codes = torch.empty(len(vectors), len(self.levels), dtype=torch.int32)
        step = max(1, CHUNK_SCORES // max(self.code_counts))
        for start in range(0, len(vectors), step):
            residual = vectors[start : start + step].to(device, torch.float32)
            for level, words in enumerate(self.levels):
                code, _ = nearest(residual, words)
                codes[start : start + step, level] = code.to("cpu", torch.int32)
                residual = residual - words[code]
        return codes.to(vectors.device)

    def path_vector(self, codes: Tensor) -> Tensor:
        """Sum of the code words on each path or prefix.

        Args:
            codes: [n, l], 1 <= l <= D.

        Returns:
            [n, d] float32 on the device of ``codes``.
        """
        total = torch.zeros(len(codes), self.levels[0].shape[1], device=codes.device)
        for level in range(codes.shape[1]):
            total += self.levels[level].to(codes.device)[codes[:, level].long()]
        return total

    def node_vectors(self, depth: int) -> Tensor:
        """Vectors of all nodes at ``depth`` (1 to D), in the order of their numbers.

        Returns:
            [C_1 * ... * C_depth, d]; mind the product of large levels.
        """
        nodes = self.levels[0]
        for words in self.levels[1:depth]:
            nodes = (nodes[:, None, :] + words[None, :, :]).reshape(-1, words.shape[1])
        return nodes


class Quantiser(ABC):
    """Fits a codebook to source vectors and gives items their codes.

    Three spaces, of which a method may fold some: source vectors [n, s] go through
    :meth:`embed` to semantic vectors [n, d], in which the code words live, and a path's
    vector goes back through :meth:`decode`. The semantic vectors are what is stored as e_i,
    because HiSAC measures ||e_i - z_a|| between them and sums of code words.
    """

    codebook: Codebook

    @abstractmethod
    def fit(self, vectors: Tensor) -> Codebook:
        """Fit and keep the codebook of source vectors [n, s]; n is at least max(C_l)."""

    def refit(self, vectors: Tensor, start: Codebook, state: Arrays) -> None:
        """Go on from an earlier fit with source vectors [n, s] of the same space.

        What maps source vectors to semantic ones is adapted; the code words then follow the items
        that keep them (:func:`hisac_rec.semantic.alignment.settle`).

        Args:
            vectors: of today's items.
            start: the earlier code words.
            state: what :meth:`state` said then.
        """
        self.restore(start, state)

    def state(self) -> Arrays:
        """Named arrays beside the code words that :meth:`restore` needs."""
        return {}

    def restore(self, codebook: Codebook, state: Arrays) -> None:
        """Take over an earlier fit."""
        self.codebook = codebook

    def embed(self, vectors: Tensor) -> Tensor:
        """Source vectors [n, s] to semantic vectors [n, d]."""
        return vectors

    def decode(self, vectors: Tensor) -> Tensor:
        """Path vectors [n, d] to reconstructed source vectors [n, s]."""
        return vectors

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes [n, D] int32 of source vectors [n, s], also of items never fitted."""
        return self.codebook.encode(self.embed(vectors))

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Source vectors [n, s] that the codes [n, D] stand for."""
        return self.decode(self.codebook.path_vector(codes))


def nearest(vectors: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest code word of each vector, by one matrix product a chunk.

    O(n C d) time, O(2^24) extra floats.

    Args:
        vectors: [n, d] float32.
        words: [C, d] float32.

    Returns:
        code [n] int64 and squared distance [n] float32, not below 0.
    """
    codes, distances = [], []
    squares = words.square().sum(1)
    for chunk in vectors.split(max(1, CHUNK_SCORES // len(words))):
        scores = torch.addmm(squares, chunk, words.T, alpha=-2.0)
        best, code = scores.min(1)
        codes.append(code)
        distances.append((best + chunk.square().sum(1)).clamp_min(0.0))
    if not codes:
        return vectors.new_empty(0, dtype=torch.int64), vectors.new_empty(0)
    return torch.cat(codes), torch.cat(distances)
