"""Build a :class:`RequestBatch` from chosen requests of a table in memory.

Legend: R requests, T history events, U distinct items among them, N candidates, D semantic-ID
levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from hisac_rec.data.bags import BagLookup, FrozenEvents, fill_bags, newest_rows
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.exposure import Forgetting
from hisac_rec.data.inputs import InputSpec
from hisac_rec.data.items import ItemRows, ItemStore
from hisac_rec.data.jagged import Ints, distinct, offsets_of, take_ranges
from hisac_rec.data.units import RequestTable


class BatchAssembler:
    """Turns request rows into batches; one per reader.

    Args:
        spec: which keys a batch has.
        items: item features and codes.
        name_events: fill ``history_items`` whatever the model looks up.
        forget: which ids are read as unknown; None: none.
    """

    def __init__(
        self,
        spec: InputSpec,
        items: ItemStore,
        *,
        name_events: bool = False,
        forget: Forgetting | None = None,
    ) -> None:
        self._spec = spec
        self._forget = forget
        self._draw = np.random.default_rng(0)
        self._items = items
        pooled = spec.pooled()
        self._lookups = tuple(lk for lk in spec.lookups if lk.table not in pooled)
        candidate = {lk.table: (lk.column, lk.multi) for lk in spec.of_side("candidate")}
        self._bags = tuple(
            BagLookup(lk.table, (lk.column, lk.multi), candidate.get(lk.table))
            for lk in spec.of_side("history")
            if lk.table in pooled
        )
        by_row = any(lk.side == "history" for lk in self._lookups)
        by_row = by_row or "history" in spec.vector_sides or not pooled
        self._one_by_one = by_row or name_events

    def assemble(
        self, table: RequestTable, rows: NDArray[np.int64], seed: Sequence[int] = ()
    ) -> RequestBatch:
        """Gather the requests ``rows`` [R] of ``table``. O(T + U log U + (U + N) x lookups),
        vectorised. ``seed`` decides which ids are read as unknown.
        """
        self._draw = np.random.default_rng(seed)
        lengths = table.history_lengths()[rows]
        events = take_ranges(table.history_start[rows], lengths)
        counts = table.candidate_lengths()[rows]
        candidates = take_ranges(table.candidate_start[rows], counts)
        history_item = table.history_item[events].astype(np.int64)
        candidate_item = table.candidate_item[candidates].astype(np.int64)
        age = np.repeat(table.time[rows], lengths) - table.history_time[events]
        user_rows = table.user_row[rows]
        users = {name: values[user_rows] for name, values in table.users.items()}
        oracle = table.candidate_oracle
        return self._build(
            users=users,
            history=self._items.seen_by(np.repeat(users["user"], lengths), history_item),
            history_offsets=offsets_of(lengths),
            history_type=table.history_type[events].astype(np.int64),
            history_age=age.astype(np.float32),
            candidates=self._items.seen_by(np.repeat(users["user"], counts), candidate_item),
            candidate_offsets=offsets_of(counts),
            labels=table.candidate_label[candidates],
            tasks={task: labels[candidates] for task, labels in table.candidate_tasks.items()},
            request_rows=np.stack(
                [
                    users["user"].astype(np.int64),
                    table.time[rows],
                    table.number[rows],
                    table.visible[rows],
                ],
                axis=1,
            ),
            oracle=oracle[candidates] if len(oracle) else oracle,
        )

    def empty(self) -> RequestBatch:
        """One request without events or candidates: work for a rank that has run out."""
        none = np.zeros(0, dtype=np.int64)
        bounds = np.zeros(2, dtype=np.int64)
        return self._build(
            users={lookup.column: np.zeros(1, np.int32) for lookup in self._spec.of_side("user")},
            history=ItemRows(none, none),
            history_offsets=bounds,
            history_type=none,
            history_age=np.zeros(0, np.float32),
            candidates=ItemRows(none, none),
            candidate_offsets=bounds,
            labels=np.zeros(0, np.float32),
            tasks={task.name: np.zeros(0, np.float32) for task in self._spec.tasks[1:]},
            request_rows=np.zeros((1, 4), np.int64),
            oracle=np.zeros(0, np.float32),
        )

    def _build(
        self,
        *,
        users: dict[str, NDArray[np.int32]],
        history: ItemRows,
        history_offsets: Ints,
        history_type: Ints,
        history_age: NDArray[np.float32],
        candidates: ItemRows,
        candidate_offsets: Ints,
        labels: NDArray[np.float32],
        tasks: dict[str, NDArray[np.float32]],
        request_rows: Ints,
        oracle: NDArray[np.float32],
    ) -> RequestBatch:
        none = np.zeros(0, dtype=np.int64)
        looked_up, row = none, none
        if self._one_by_one:
            looked_up, row = distinct(history.coded)
        requests = len(request_rows)
        items = {"history": self._items.of_coded(looked_up), "candidate": candidates}
        asked: dict[str, NDArray[np.integer]] = {}
        places: dict[str, Tensor] = {}
        owners: dict[str, Tensor] = {}
        for lookup in self._lookups:
            owner: Ints | None = None
            if lookup.side == "user":
                values: NDArray[np.integer] = users[lookup.column]
            elif lookup.multi:
                ids = items[lookup.side].ids
                values, counts = self._items.multi[lookup.column].take(ids)
                owner = np.repeat(np.arange(len(ids)), counts)
            else:
                values = self._items.column(lookup.column, items[lookup.side])
            if self._forget is not None:
                values = self._forget(lookup.table, values, self._draw)
            values, owner = self._items.rows_of(lookup.table, values, owner)
            if owner is not None:
                owners[lookup.key] = _tensor(owner)
            if values is not looked_up:
                values, place = distinct(values)
                places[lookup.key] = _tensor(place)
            asked[lookup.key] = values
        vectors = {
            f"{side}.vector": items[side].coded
            for side in self._spec.vector_sides
            if side != "user"
        }
        codes = _tensor(self._items.codes[history.coded])
        kind, placed = _tensor(history_type), torch.from_numpy(self._items.placed[history.coded])
        singles = none
        bags = KeyedJaggedTensor(keys=[], values=_tensor(none), lengths=_tensor(none))
        if self._spec.grouping is not None and self._bags:
            singles = newest_rows(history_offsets, self._spec.singles)
            events = FrozenEvents(_tensor(history_offsets), codes, kind, placed)
            groups = self._spec.grouping(events)
            bags = fill_bags(self._bags, self._items, history, groups, singles, candidates)
        return RequestBatch(
            features=_asked_by_the_first(asked, requests),
            bags=bags,
            single_events=_tensor(singles),
            semantics=_asked_by_the_first(vectors, requests),
            history_offsets=_tensor(history_offsets),
            history_items=_tensor(items["history"].ids),
            history_rows=_tensor(row),
            history_codes=codes,
            history_type=kind,
            history_placed=placed,
            history_age=torch.from_numpy(history_age),
            history_features=self._raw_features(history),
            candidate_offsets=_tensor(candidate_offsets),
            candidate_codes=_tensor(self._items.codes[candidates.coded]),
            candidate_placed=torch.from_numpy(self._items.placed[candidates.coded]),
            candidate_features=self._raw_features(candidates),
            places=places,
            owners=owners,
            memory={},
            labels=torch.from_numpy(np.array(labels, dtype=np.float32)),
            tasks={
                name: torch.from_numpy(np.array(of, dtype=np.float32)) for name, of in tasks.items()
            },
            request_rows=_tensor(request_rows),
            candidate_items=_tensor(candidates.ids),
            oracle=torch.from_numpy(np.array(oracle, dtype=np.float32)),
            loss_scale=torch.tensor(1.0 / max(1, len(labels))),
        )

    def _raw_features(self, items: ItemRows) -> dict[str, Tensor]:
        return {
            lookup.key: _tensor(self._items.column(lookup.column, items))
            for lookup in self._spec.item_features
        }


def _tensor(values: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))


def _asked_by_the_first(
    asked: Mapping[str, NDArray[np.integer]], requests: int
) -> KeyedJaggedTensor:
    """Keys of stride ``requests``, all of whose ids are the first request's: an id that several
    requests ask for is looked up once.
    """
    lengths = np.zeros((len(asked), requests), dtype=np.int64)
    lengths[:, 0] = [len(ids) for ids in asked.values()]
    none = np.zeros(0, dtype=np.int64)
    return KeyedJaggedTensor(
        keys=list(asked),
        values=_tensor(np.concatenate([none, *asked.values()])),
        lengths=_tensor(lengths.ravel()),
    )
