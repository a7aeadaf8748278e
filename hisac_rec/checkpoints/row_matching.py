"""Which row of a table made on other data a row of this one's table is.

Ids are dense and given out anew by every preparation, so rows are matched by what they stand for:
raw ids and values through the vocabularies of both data sets, codes and paths of codes through
the code words, or where those were fitted anew, through the items that both data sets know.

Legend: n rows of a slice, I items, D levels, C_l codes of level l.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.jagged import Ints
from hisac_rec.data.vocabulary import CODES, VocabularyConfig, raw_values
from hisac_rec.semantic.store import Semantics, prefix_ids

Rows: TypeAlias = Callable[[int, int], Ints]
"""(first, past the last) row here -> [n] the row there of each, -1 where there is none."""


@dataclass(frozen=True)
class Match:
    """How rows of one table are matched.

    Args:
        rows: the matching.
        by: in words.
    """

    rows: Rows
    by: str


class RowMatcher:
    """Matches the tables of two data sets.

    Args:
        here: the data that is trained on now.
        there: the data that was trained on.
        codes_here: its semantic ids, where it has any.
        codes_there: likewise.
        vocabularies: of the tables of this model, as far as they are not dense.
        vocabularies_there: of those of that model.
    """

    def __init__(
        self,
        here: PreparedData,
        there: PreparedData,
        codes_here: Semantics | None,
        codes_there: Semantics | None,
        vocabularies: Mapping[str, VocabularyConfig] | None = None,
        vocabularies_there: Mapping[str, VocabularyConfig] | None = None,
    ) -> None:
        self._here, self._there = here, there
        self._codes = (codes_here, codes_there)
        self._vocabularies = (vocabularies or {}, vocabularies_there or {})

    def match(self, table: str) -> Match | str:
        """How the rows of ``table`` are matched, or why they cannot be."""
        here, there = (of.get(table, _DENSE) for of in self._vocabularies)
        if here.kind == there.kind == "dense":
            return self._dense(table) or "nothing to match its rows by"
        of_keys = here.kind == there.kind == "managed"  # on any number of rows
        same = (here.kind, here.rows, here.hashes) == (there.kind, there.rows, there.hashes)
        if not (of_keys or same):
            return f"another vocabulary: {_described(there)} there, {_described(here)} here"
        if CODES.fullmatch(table):
            codes = self._dense(table)
            if codes is None or codes.rows is not _same:
                return "numbers of other code words, which were hashed"
        return Match(_same, "the same hashes of raw ids")

    def _dense(self, table: str) -> Match | None:
        level = CODES.fullmatch(table)
        if level is not None:
            return self._by_codes(table, level[1], int(level[2]))
        if self._here.manifest.fingerprint == self._there.manifest.fingerprint:
            return Match(_same, "the same data")
        name, column = raw_values(table)
        if not (self._there.root / name).is_file():
            return None
        return Match(_by_values(self._here, self._there, name, column), "raw ids")

    def _by_codes(self, table: str, kind: str, level: int) -> Match | None:
        here, there = self._codes
        if here is None or there is None or level > len(there.codebook):
            return None
        levels = range(level) if kind == "prefix" else [level - 1]
        if all(np.array_equal(here.codebook[i], there.codebook[i]) for i in levels):
            return Match(_same, "the same code words")
        if there.fingerprint in here.lineage and here.code_counts == there.code_counts:
            return Match(_same, "code words aligned to those")
        ours, theirs = self._nodes(here, kind, level), self._nodes(there, kind, level)
        unplaced = (_unplaced(here, kind, level), _unplaced(there, kind, level))
        return Match(self._by_shared_items(ours, theirs, unplaced), "the items they share")

    @staticmethod
    def _nodes(semantics: Semantics, kind: str, level: int) -> Ints:
        """[I] the row of each item in a table of codes or paths, in the first view; -1 where it
        means nothing.
        """
        view = semantics.in_view(0)
        nodes = semantics.codes[view, level - 1].astype(np.int64)
        if kind == "prefix":
            counts = semantics.code_counts[:level]
            nodes = prefix_ids(semantics.codes[view, :level], counts)[:, -1]
        return np.where(semantics.known[view], nodes, -1)

    def _by_shared_items(self, ours: Ints, theirs: Ints, unplaced: tuple[int, int]) -> Rows:
        """Each row here is the one there that most of its items had. O(I log I).

        ``unplaced`` are the rows, here and there, of items without a place in the tree.
        """
        same_data = self._here.manifest.fingerprint == self._there.manifest.fingerprint
        items = _same if same_data else _by_values(self._here, self._there, *_ITEMS)
        old = items(0, len(ours))
        both = (old >= 0) & (ours >= 0)
        both[both] &= theirs[old[both]] >= 0
        pairs, votes = np.unique(
            np.stack([ours[both], theirs[old[both]]], 1), axis=0, return_counts=True
        )
        # The most votes last: of each row's pairs the last one stays.
        pairs = pairs[np.lexsort((-pairs[:, 1], votes, pairs[:, 0]))]
        last = np.concatenate([pairs[1:, 0] != pairs[:-1, 0], np.ones(min(1, len(pairs)), bool)])
        known, found = pairs[last, 0], pairs[last, 1]

        def rows(first: int, end: int) -> Ints:
            matched = np.full(end - first, -1, np.int64)
            inside = slice(*np.searchsorted(known, [first, end]))
            matched[known[inside] - first] = found[inside]
            if first <= unplaced[0] < end:
                matched[unplaced[0] - first] = unplaced[1]
            return matched

        return rows


_ITEMS = raw_values("item")
_DENSE = VocabularyConfig()


def _described(vocabulary: VocabularyConfig) -> str:
    if vocabulary.kind == "dense":
        return "dense"
    hashes = f", {vocabulary.hashes} hashes" if vocabulary.hashes > 1 else ""
    return f"{vocabulary.kind} ({vocabulary.rows:,} rows{hashes})"


def _unplaced(codes: Semantics, kind: str, level: int) -> int:
    """The row of items without a place in the tree: the last one."""
    return (codes.code_counts if kind == "sid" else codes.prefix_counts)[level - 1]


def _same(first: int, end: int) -> Ints:
    return np.arange(first, end, dtype=np.int64)


def _by_values(here: PreparedData, there: PreparedData, name: str, column: str) -> Rows:
    """Rows of equal value; the unknown one is the unknown one. The values of this data are read a
    slice at a time, those of the other all at once.
    """

    def rows(first: int, end: int) -> NDArray[np.int64]:
        ours = here.read_parquet(name, [column])[column].slice(first, end - first)
        theirs = there.read_parquet(name, [column])[column]
        if ours.type != theirs.type:
            ours, theirs = ours.cast(pa.string()), theirs.cast(pa.string())
        found = pc.index_in(ours, value_set=theirs, skip_nulls=True)
        matched = found.fill_null(-1).to_numpy().astype(np.int64)
        if first == 0 and len(matched):
            matched[0] = 0
        return matched

    return rows
