"""Where users' compressed histories lie while serving: a key-value store.

:class:`Store` is all the scorer asks for, so that another one (Redis, one's own) is one class.
:class:`LmdbStore` is embedded: a memory-mapped file that many processes read and one at a time
writes, and that survives being killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol

import lmdb
import numpy as np

from hisac_rec.errors import UserError
from hisac_rec.scorer.state import StateFormat
from hisac_rec.serving.cache import Cache, CacheManifest

Space = Literal["state", "fresh", "meta"]
"""Compressed histories, events that arrived since, and what the states are of."""
SPACES: tuple[Space, ...] = ("state", "fresh", "meta")
LONGEST_KEY = 511
"""Bytes; LMDB's limit."""
MANIFEST_KEY = "manifest"


class Store(Protocol):
    """Bytes by space and key. All methods may be called from many threads."""

    def get(self, space: Space, key: str) -> bytes | None:
        """The value, or None."""

    def put_many(self, space: Space, pairs: Iterable[tuple[str, bytes]]) -> None:
        """Set values, all of them or, where it fails, none."""

    def change(self, space: Space, key: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a value by what ``change`` makes of it; nobody else writes in between."""


class LmdbStore:
    """A store in one folder.

    Args:
        path: the folder; made where it is absent, unless ``read_only``.
        read_only: only read; many processes may.
        most_bytes: the file grows up to this size and takes no more than what it holds.

    Raises:
        UserError: there is no store to read.
    """

    def __init__(self, path: Path, *, read_only: bool = False, most_bytes: int = 1 << 40) -> None:
        self.path = path
        try:
            self._environment = lmdb.open(
                str(path),
                map_size=most_bytes,
                max_dbs=len(SPACES),
                readonly=read_only,
                create=not read_only,
                max_readers=1024,
            )
            self._spaces = {
                space: self._environment.open_db(space.encode(), create=not read_only)
                for space in SPACES
            }
        except lmdb.Error as error:
            raise UserError(
                f"{path}: no store of compressed histories ({error}); make one with "
                "'hisac-rec store CACHE --out FOLDER'"
            ) from None

    def get(self, space: Space, key: str) -> bytes | None:
        """See :class:`Store`. One walk down a tree of pages in memory."""
        name = key.encode()
        if not 0 < len(name) <= LONGEST_KEY:  # nothing of that name can be here
            return None
        with self._environment.begin(db=self._spaces[space]) as transaction:
            found: bytes | None = transaction.get(name)
            return found

    def put_many(self, space: Space, pairs: Iterable[tuple[str, bytes]]) -> None:
        """See :class:`Store`."""
        with self._environment.begin(db=self._spaces[space], write=True) as transaction:
            for key, value in pairs:
                transaction.put(_key(key), value)

    def change(self, space: Space, key: str, change: Callable[[bytes | None], bytes]) -> None:
        """See :class:`Store`."""
        name = _key(key)
        with self._environment.begin(db=self._spaces[space], write=True) as transaction:
            transaction.put(name, change(transaction.get(name)))

    def close(self) -> None:
        """Close the files."""
        self._environment.close()


def fill_store(store: Store, cache: Cache, chunk: int = 4096) -> int:
    """Put the newest history of every user of a cache into a store; how many.

    Events that the store got since stay: those that the cache has seen are no longer added.
    """
    meta = cache.manifest.model_dump_json().encode()
    users = np.unique(cache.keys.user)
    rows = cache.newest(users, np.full(len(users), np.iinfo(np.int64).max))
    states = StateFormat(cache.manifest)
    for begin in range(0, len(rows), chunk):
        batch = cache.record_batch(rows[begin : begin + chunk])
        names = batch.column("name").to_pylist()
        store.put_many("state", zip(names, states.encode_rows(batch), strict=True))
    store.put_many("meta", [(MANIFEST_KEY, meta)])
    return len(rows)


def manifest_of(store: Store) -> CacheManifest:
    """What the states of a store are of.

    Raises:
        UserError: nothing has been put into it.
    """
    found = store.get("meta", MANIFEST_KEY)
    if found is None:
        raise UserError(
            "the store is empty; fill it with 'hisac-rec store CACHE --out FOLDER' first"
        )
    return CacheManifest.model_validate_json(found)


def _key(key: str) -> bytes:
    name = key.encode()
    if not 0 < len(name) <= LONGEST_KEY:
        raise UserError(f"a user's id has 1 to {LONGEST_KEY} bytes, this one {len(name)}")
    return name
