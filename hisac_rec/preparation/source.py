"""What :mod:`hisac_rec.preparation.prepare` needs from wherever the events come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import Feature, Split
from hisac_rec.preparation.blocks import CutRules, EventBlock

if TYPE_CHECKING:
    from hisac_rec.preparation.negatives import Negatives


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Items and their features, as known at the end of the training period."""

    features: list[Feature]
    """Side features of items."""
    content_dim: int | None
    """Width of the ``content`` column, None where there is none."""
    has_text: bool
    """True where there is a ``text`` column."""
    values_mean: dict[str, float]
    """Feature -> mean number of values of an item."""
    vocabularies: dict[str, pa.Array]
    """Feature -> raw values, index = id; index 0 is null."""
    batches: Iterator[pa.Table]
    """Items in the order of their ids, 0 included: the columns of ``contract.items_schema``
    up to ``content``."""


class Source(Protocol):
    """Events, users and items with dense ids."""

    users: int
    """Rows of the user table, unknown included."""
    items: int
    """Rows of the item table, unknown included."""
    event_types: list[str]
    """Names of the types of history events."""
    has_oracle: bool
    """True where blocks carry true probabilities."""
    tasks: list[str]
    """Names of the further tasks whose labels blocks carry."""
    user_features: list[Feature]
    """Features of users."""
    user_values: dict[str, NDArray[np.int32]]
    """User feature -> value id of every user id, [users]."""
    user_vocabularies: dict[str, pa.Array]
    """"user" and "user_<feature>" -> raw values, index = id; index 0 is null."""

    def rules(self, split: Split) -> CutRules:
        """How requests of this split are cut."""
        ...

    def blocks(self, first: int = 0) -> Iterator[EventBlock]:
        """All events, whole users at a time, in the order of user ids.

        Args:
            first: how many blocks to pass over; a source cuts the same blocks every time.
        """
        ...

    def negatives(self, blocks: Iterator[EventBlock]) -> Negatives | None:
        """Draws non-events into the requests; None: the events hold them.

        Args:
            blocks: all events, for what can be drawn.
        """
        ...

    def catalogue(self, seen: NDArray[np.bool_]) -> Catalogue:
        """Items and their features.

        Args:
            seen: [items] True for items of the training period; values that no such item
                carries become unknown.
        """
        ...
