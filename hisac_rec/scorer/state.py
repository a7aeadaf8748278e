"""What is kept of a user while serving, and how it is written.

Legend: K agents, J rejected leaves, S newest events, d width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.serving.cache import AGAINST, AGAINST_PATH, CacheManifest, schema
from hisac_rec.serving.precision import decode

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def _none() -> Ids:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class UserState:
    """A compressed history and the newest events beside it.

    Args:
        user: dense id; 0: nobody the model knows.
        features: user-side features by name, in dense ids.
        seen: events of the history so far, also those that arrived after it was compressed.
        compressed: the moment that it was compressed at: earlier events are in it.
        vectors: [K, d] routed vectors, None where nothing is compressed yet.
        events: [K] votes.
        path: [K] leaf paths.
        against: [J] votes against rejected leaves.
        against_path: [J] their paths.
        newest_item: [S] dense ids, oldest first.
        newest_type: [S].
        newest_time: [S].
    """

    user: int = 0
    features: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    compressed: int = -(1 << 62)
    vectors: Floats | None = None
    events: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    path: Ids = field(default_factory=_none)
    against: Floats = field(default_factory=lambda: np.zeros(0, np.float32))
    against_path: Ids = field(default_factory=_none)
    newest_item: Ids = field(default_factory=_none)
    newest_type: Ids = field(default_factory=_none)
    newest_time: Ids = field(default_factory=_none)

    def with_events(self, item: Ids, kind: Ids, time: Ids, keep: int) -> UserState:
        """The same with new events behind the newest, of which ``keep`` stay."""
        together = [
            np.concatenate([self.newest_item, item]),
            np.concatenate([self.newest_type, kind]),
            np.concatenate([self.newest_time, time]),
        ]
        order = np.argsort(together[2], kind="stable")[-keep:] if keep else _none()
        newest = [column[order] for column in together]
        return replace(
            self,
            seen=self.seen + len(item),
            newest_item=newest[0],
            newest_type=newest[1],
            newest_time=newest[2],
        )


class StateFormat:
    """States as bytes: one row of a cache (:mod:`hisac_rec.serving.cache`) as an Arrow message.

    Args:
        manifest: of the cache.
    """

    def __init__(self, manifest: CacheManifest) -> None:
        self.manifest = manifest
        self._schema = schema(manifest)

    def encode_rows(self, rows: pa.RecordBatch) -> list[bytes]:
        """Each row of a cache as the bytes of its own."""
        return [rows.slice(at, 1).serialize().to_pybytes() for at in range(rows.num_rows)]

    def decode(self, data: bytes) -> UserState:
        """The state of one row. O(bytes)."""
        row = pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)

        def numbers(name: str) -> NDArray[np.generic]:
            column = row.column(name)
            return np.asarray(column.flatten())

        flat = row.column("vectors").flatten()
        stored = np.asarray(flat.flatten()).reshape(len(flat), self.manifest.dim)
        path = numbers("path") if "path" in self.manifest.fields else np.zeros(len(flat))
        rejected: dict[str, Any] = {}
        if self.manifest.rejected:
            rejected[AGAINST] = numbers(AGAINST).astype(np.float32)
            rejected[AGAINST_PATH] = numbers(AGAINST_PATH).astype(np.int64)
        return UserState(
            user=row.column("user")[0].as_py(),
            features={
                name: row.column(f"user_{name}")[0].as_py() for name in self.manifest.user_features
            },
            seen=row.column("seen")[0].as_py(),
            compressed=row.column("time")[0].as_py(),
            vectors=decode(stored, np.asarray(numbers("scale"), np.float32)),
            events=numbers("events").astype(np.float32),
            path=path.astype(np.int64),
            **rejected,
            newest_item=numbers("newest_item").astype(np.int64),
            newest_type=numbers("newest_type").astype(np.int64),
            newest_time=numbers("newest_time").astype(np.int64),
        )
