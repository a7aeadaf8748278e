"""How much of each table training has touched: rows never read keep their initial values.

Counted on a sample, so that the state stays small however large the table: of a table of more
than ``SAMPLE`` rows every n-th row is watched. No rank waits for another before the share is
asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputSpec

SAMPLE = 1 << 16
"""Rows watched of a table, at most: a share is known to 0.002, in 64 KiB a table and rank."""


class Coverage:
    """Rows of each table touched since :meth:`clear`.

    Args:
        spec: the tables and the keys that read them.
    """

    def __init__(self, spec: InputSpec) -> None:
        # What keys of managed tables lead to is known to the ranks that own the rows alone.
        tables = {
            name: first.rows for name, (first, *_) in spec.tables().items() if not first.managed
        }
        self._every = {name: -(-rows // SAMPLE) for name, rows in tables.items()}
        self._touched = {
            name: np.zeros(-(-rows // self._every[name]), bool) for name, rows in tables.items()
        }
        self._table = {lookup.key: lookup.table for lookup in spec.lookups}

    def clear(self) -> None:
        """An epoch begins: no row has been touched."""
        for touched in self._touched.values():
            touched[:] = False

    def note(self, batch: RequestBatch) -> None:
        """A step on ``batch`` (on the host) is done. O(ids looked up)."""
        for table, ids in (*self._read(batch.features), *self._read(batch.bags)):
            if table not in self._every:
                continue
            every = self._every[table]
            watched = ids if every == 1 else ids[ids % every == 0] // every
            self._touched[table][watched] = True

    def shares(self) -> dict[str, float]:
        """Table -> share of its rows touched by any rank. Called on every rank.

        Sends one bit a watched row.
        """
        bits = [np.packbits(touched) for touched in self._touched.values()]
        sent = torch.from_numpy(np.concatenate(bits))
        dist.all_reduce(sent, dist.ReduceOp.BOR)
        ends = np.cumsum([len(part) for part in bits])[:-1]
        return {
            name: float(np.unpackbits(part, count=len(touched)).mean())
            for (name, touched), part in zip(
                self._touched.items(), np.split(sent.numpy(), ends), strict=True
            )
        }

    def _read(self, lookups: KeyedJaggedTensor) -> Iterator[tuple[str, NDArray[np.integer]]]:
        keys = lookups.keys()
        if not keys:
            return
        ends = np.cumsum(lookups.length_per_key())[:-1]
        for key, ids in zip(keys, np.split(lookups.values().numpy(), ends), strict=True):
            yield self._table.get(key, key), ids  # bags are keyed by their table
