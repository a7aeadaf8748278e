"""No history at all: the floor that every history method is measured against."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod


class NoHistoryConfig(Strict):
    """``[history]`` keys of ``method = "none"``: there are none."""


class Method(HistoryMethod):
    """A zero interest vector; the ranker leaves the short sequence out as well."""

    Config: ClassVar[type[Strict]] = NoHistoryConfig
    uses_history: ClassVar[bool] = False
    compresses = True

    def compress(self, history: History) -> None:
        """Nothing to remember."""

    def read(self, memory: None, candidates: Candidates) -> Tensor:
        """[N, 1, d] zeros."""
        return candidates.values.new_zeros((candidates.values.shape[0], 1, self.dim))
