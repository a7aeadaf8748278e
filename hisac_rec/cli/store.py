"""``hisac-rec store``: compressed histories from a cache into a store to serve from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def run(
    cache: Annotated[Path, typer.Argument(help="Of 'hisac-rec compress'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store, new or to be renewed.")],
) -> None:
    """Put the newest compressed history of every user into an embedded key-value store.

    Servers that have the store open read the new ones from then on; events that arrived since a
    history was compressed stay with it.

    **Example**

        hisac-rec store cache --out store
    """
    from hisac_rec.scorer.store import LmdbStore, fill_store
    from hisac_rec.serving.cache import Cache

    opened = Cache(cache)
    store = LmdbStore(out)
    try:
        users = fill_store(store, opened)
    finally:
        store.close()
    log.info("%s users: %s", f"{users:,}", out)
