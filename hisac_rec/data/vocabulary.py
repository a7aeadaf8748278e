"""Open vocabularies: which row of a table an id reads where a table has not one row for each id.

A prepared data set numbers its ids anew, so nothing here looks at the number: what is hashed is
the raw id, and an item keeps its rows over preparations. Each id is hashed once per data set;
what is left for a batch is one look into an array.

Legend: I ids of a vocabulary (id 0 unknown), k hash functions.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hisac_rec.config import Strict
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.hashing import GOLDEN, Words, hash_strings, mix

CODES = re.compile(r"(sid|prefix)(\d+)")
"""Tables of codes: their ids are numbers of the codebook, not values of the data."""

KEYS = 2**62
"""Keys of a managed vocabulary lie below it: of 100 million ids two share one with 0.1 %."""

_MANAGED_KEYS = ("eviction", "eviction_every", "decay", "admission", "admission_value")


class VocabularyConfig(Strict):
    """``[tables.vocabulary.<table>]`` of a model file: which rows a table has, and for whom."""

    kind: Literal["dense", "hashed", "managed"] = "dense"
    """``dense``: a row for each id that the prepared data knows. ``hashed``: ``rows`` rows that ids
    share by chance. ``managed``: ``rows`` rows that TorchRec's managed collision module gives to
    the ids that are met most; the others share one (one on each rank)."""
    rows: int | None = Field(default=None, ge=2)
    """Rows of the table where it is not dense; row 0 of a hashed one is the unknown id's."""
    hashes: int = Field(default=1, ge=1, le=8)
    """Hashed: each id reads so many rows by hash functions of their own, and is their mean. Two ids
    are taken for one only where all their rows are the same."""
    eviction: Literal["distance_lfu", "lfu", "lru"] = "distance_lfu"
    """Managed: which ids stay when there are more than rows: the most met, discounted by how long
    ago they were met last; the most met; the last met."""
    eviction_every: int = Field(default=100, gt=0)
    """Managed: steps between two rounds of admission and eviction. Until its first round an id
    reads the shared row."""
    decay: float = Field(default=1.0, gt=0)
    """Managed: power of the steps since an id was met last, for ``distance_lfu`` and ``lru``."""
    admission: Literal["all", "average", "dynamic", "probabilistic"] = "all"
    """Managed: which of the ids met since the last round may ask for a row: all; those met more
    than the average; those met more than ``admission_value`` times the average; each meeting
    with the probability ``admission_value``."""
    admission_value: float | None = Field(default=None, gt=0)
    """Managed: of ``dynamic`` (unset: 10) and ``probabilistic`` (unset: 0.01)."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> VocabularyConfig:
        fields = type(self).model_fields
        apart = {"dense": ("rows", "hashes", *_MANAGED_KEYS), "hashed": _MANAGED_KEYS}
        for key in apart.get(self.kind, ("hashes",)):
            if getattr(self, key) != fields[key].default:
                raise ValueError(f"'{key}' means nothing where kind = '{self.kind}'; leave it out")
        if self.kind != "dense" and self.rows is None:
            raise ValueError(f"kind = '{self.kind}' needs 'rows', the rows of the table")
        if self.admission_value is not None:
            if self.admission not in ("dynamic", "probabilistic"):
                raise ValueError(
                    f"'admission_value' means nothing where admission = '{self.admission}'; "
                    "leave it out"
                )
            if self.admission == "probabilistic" and self.admission_value > 1:
                raise ValueError("'admission_value' is a probability here: at most 1")
        return self


def rows_of_ids(
    data: PreparedData, table: str, ids: int, vocabulary: VocabularyConfig
) -> NDArray[np.integer]:
    """What each id of a table reads: [I] or, with k > 1 hashes, [I, k] rows, or [I] keys.

    Args:
        data: the prepared data, with the raw values of the ids.
        table: name of the table.
        ids: I.
        vocabulary: hashed or managed.

    Returns:
        Hashed: int32 rows below ``vocabulary.rows``, 0 for the unknown id. Managed: int64 keys
        below :data:`KEYS`, which the managed collision module maps to rows; 0 for the unknown id.

    Raises:
        UserError: the raw values are not there.
    """
    words = _hashes(data, table, ids)
    if vocabulary.kind == "managed":
        keys = (1 + words % np.uint64(KEYS - 1)).astype(np.int64)
        keys[0] = 0
        return keys
    assert vocabulary.rows is not None
    own = np.uint64(vocabulary.rows - 1)
    found = np.empty((ids, vocabulary.hashes), np.int32)
    for function in range(vocabulary.hashes):
        # Each function after the first mixes the word again, with a constant of its own.
        mixed = words if function == 0 else mix(words + np.uint64(function) * GOLDEN)
        found[:, function] = 1 + (mixed % own)
    found[0] = 0
    return found[:, 0] if vocabulary.hashes == 1 else found


def _hashes(data: PreparedData, table: str, ids: int) -> Words:
    """[I] 64-bit hash of the raw value of each id."""
    if CODES.fullmatch(table):
        return mix(np.arange(ids, dtype=np.uint64))
    name, column = raw_values(table)
    return hash_strings(data.read_parquet(name, [column])[column])


def raw_values(table: str) -> tuple[str, str]:
    """(file of the prepared data, column) with the raw value of every id of a table."""
    return ("items.parquet", "raw_id") if table == "item" else (f"vocab/{table}.parquet", "value")
