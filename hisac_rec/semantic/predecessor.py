"""The fit of another day: what a refresh goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.featuriser import load_featuriser
from hisac_rec.semantic.fit import QUANTISER, read_report
from hisac_rec.semantic.quality import Report
from hisac_rec.semantic.store import Semantics, load_semantics

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Predecessor:
    """Semantic IDs of an earlier preparation, with what they were made by."""

    data: PreparedData
    semantics: Semantics
    report: Report
    arrays: Arrays
    """All of ``featuriser.npz``."""

    @cached_property
    def featuriser(self) -> Arrays:
        """The arrays that make source vectors."""
        return {name: of for name, of in self.arrays.items() if not name.startswith(QUANTISER)}

    @cached_property
    def quantiser(self) -> Arrays:
        """The arrays of the quantiser, under its own names."""
        return {
            name.removeprefix(QUANTISER): of
            for name, of in self.arrays.items()
            if name.startswith(QUANTISER)
        }

    @property
    def lineage(self) -> tuple[str, ...]:
        """Of whoever keeps these codes."""
        return (self.semantics.fingerprint, *self.semantics.lineage)


def open_predecessor(data: PreparedData) -> Predecessor:
    """Read the semantic IDs that lie in another prepared data set.

    Raises:
        UserError: there are none, a file is missing or damaged, or belongs to another fit.
    """
    semantics = load_semantics(data)
    report = read_report(data)
    if report is None:
        raise UserError(
            f"{data.root / 'semantic_ids.json'}: not readable; run "
            f"'hisac-rec semantic-ids {data.root} --force'"
        )
    return Predecessor(data, semantics, report, load_featuriser(data.root, semantics.fingerprint))


def match_items(here: PreparedData, there: PreparedData) -> NDArray[np.int64]:
    """[I] the row there of each item here, by raw id; -1 where it is new. Unknown is unknown."""
    ours, theirs = (
        data.read_parquet("items.parquet", ["raw_id"])["raw_id"].cast(pa.string())
        for data in (here, there)
    )
    found = pc.index_in(ours, value_set=theirs, skip_nulls=True)
    rows = found.fill_null(-1).to_numpy().astype(np.int64)
    rows[0] = 0
    return rows
