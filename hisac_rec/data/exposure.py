"""How often training meets each id, and which ids a training batch reads as unknown.

An id that training never met reads the row of the unknown id. That row is worth something only if
training has read it too, in the place of ids about which little is known. So a training batch
leaves the row of an id out for the unknown one with the probability ``rate / (rate + n)``, where n
is how often training meets the id: rare ids mostly teach what a rare id is like, frequent ones keep
all but a trace of their rows.

Source: the same form is used for rare words in parsing (Kiperwasser and Goldberg, 2016, "Simple and
Accurate Dependency Parsing", section 4.2).

Legend: n ids of some rows, U users, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.inputs import InputSpec
from hisac_rec.data.items import ItemStore
from hisac_rec.data.jagged import Ints
from hisac_rec.data.parquet import DAMAGED, READING, damaged
from hisac_rec.data.vocabulary import CODES
from hisac_rec.progress import progress

BATCH_ROWS = 8_192


@dataclass(frozen=True)
class Forgetting:
    """Which ids a training batch reads as unknown.

    Args:
        chances: table -> [ids] float32, the probability of each id.
    """

    chances: dict[str, NDArray[np.float32]]

    def __call__(
        self, table: str, ids: NDArray[np.integer], draw: np.random.Generator
    ) -> NDArray[np.integer]:
        """[n] the ids of a table, some of them 0. O(n)."""
        chances = self.chances.get(table)
        if chances is None or not len(ids):
            return ids
        return np.where(draw.random(len(ids), np.float32) < chances[ids], 0, ids)


def forgetting(data: PreparedData, spec: InputSpec, items: ItemStore, rate: float) -> Forgetting:
    """Count the ids of the training split. O(events + candidates), read once.

    An item is met as a candidate and as an event, a value of an item's feature wherever one of its
    items is, a user and a value of his features once a candidate.

    Raises:
        UserError: a file is damaged.
    """
    users, item_counts, of_features = _count(data, spec)
    counts: dict[str, Ints] = {}
    for lookup in spec.lookups:
        if lookup.table in counts or CODES.fullmatch(lookup.table):
            continue
        if lookup.column == "user":
            counts[lookup.table] = users
        elif lookup.side == "user":
            counts[lookup.table] = of_features[lookup.column]
        elif lookup.column == "item":
            counts[lookup.table] = item_counts
        else:
            counts[lookup.table] = _of_feature(items, lookup.column, lookup.multi, item_counts)
    chances = {}
    for table, count in counts.items():
        chances[table] = (rate / np.maximum(rate + count, 1e-9)).astype(np.float32)
    return Forgetting(chances)


def _of_feature(items: ItemStore, column: str, multi: bool, counts: Ints) -> Ints:
    if multi:
        ragged = items.multi[column]
        values, weights = ragged.values, np.repeat(counts, np.diff(ragged.offsets))
    else:
        values, weights = items.single[column], counts
    return np.bincount(values, weights=weights).astype(np.int64)


def _count(data: PreparedData, spec: InputSpec) -> tuple[Ints, Ints, dict[str, Ints]]:
    """How often users [U], items [I] and values of user features are met."""
    manifest = data.manifest
    users = np.zeros(manifest.users, np.int64)
    items = np.zeros(manifest.items, np.int64)
    columns = [lookup.column for lookup in spec.of_side("user") if lookup.column != "user"]
    features = {
        lookup.column: np.zeros(lookup.ids, np.int64)
        for lookup in spec.of_side("user")
        if lookup.column != "user"
    }
    read = ["user", *(f"user_{name}" for name in columns), "history_item", "requests"]
    with progress("count ids", manifest.splits["train"].users, "users") as advance:
        for path in data.split_files("train"):
            try:
                file = pq.ParquetFile(path, memory_map=True, **READING)
                for batch in file.iter_batches(BATCH_ROWS, columns=read):
                    candidates = batch.column("requests").flatten().field("items")
                    requests = batch.column("requests").value_lengths().fill_null(0).to_numpy()
                    owner = np.repeat(np.arange(batch.num_rows), requests)
                    met = np.bincount(
                        owner,
                        weights=candidates.value_lengths().fill_null(0).to_numpy(),
                        minlength=batch.num_rows,
                    ).astype(np.int64)
                    np.add.at(users, batch.column("user").to_numpy(), met)
                    for name, counts in features.items():
                        np.add.at(counts, batch.column(f"user_{name}").to_numpy(), met)
                    for values in (candidates.flatten(), batch.column("history_item").flatten()):
                        items += np.bincount(values.to_numpy(), minlength=len(items))
                    advance(batch.num_rows)
            except DAMAGED as error:
                raise damaged(path, error) from None
    return users, items, features
