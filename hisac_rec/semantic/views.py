"""Views of semantic IDs: codes from who consumed what, made without the users who read them.

A training row must not read what was made from its own label. Co-consumption is made from labels:
that a user took an item moves the item's vector towards what else he took. So users are dealt out
into V groups by a hash of their raw id, and the item vectors that group v reads are fitted on the
users of all other groups (cross-fitting). Each is a *view*. All views share one space and one
codebook, so a code means the same for everybody; only which code an item has may differ.

A user reads the same view in training, in evaluation and when he is served, and the view of a new
user follows from his raw id. So nothing that is learned from training rows is lost at test time.

An item that the users of the other groups hardly consumed has no place in a view. To those who
took it in training it looks as new items do at test time.

Legend: V views, I items, U users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.hashing import hash_strings
from hisac_rec.data.vocabulary import raw_values


def views_of_users(data: PreparedData, views: int) -> NDArray[np.int64]:
    """[U] the view that each user reads, from a hash of the raw id. O(bytes of the raw ids)."""
    name, column = raw_values("user")
    words = hash_strings(data.read_parquet(name, [column])[column])
    # High bits: hashed user tables take their rows from the low ones.
    return ((words >> np.uint64(40)) % np.uint64(views)).astype(np.int64)


def rows_in_views(rows: NDArray[np.int64], views: int, items: int) -> NDArray[np.int64]:
    """[V I] rows in all views of another fit, from rows of items [I] there; -1 where there is none.

    Args:
        rows: [I] row of each item there, -1 where it is new.
        views: V, of both fits.
        items: number of items there.
    """
    shift = np.arange(views)[:, None] * items
    return np.where(rows >= 0, rows + shift, -1).ravel()
