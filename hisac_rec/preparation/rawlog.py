"""An event log as a data set's source: raw files, through the definition's SQL, to blocks.

DuckDB does what is larger than memory: reading, dense ids, one sort by user and time.
Visibility, splits and requests are cut from the sorted events by
:mod:`hisac_rec.preparation.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import Split, task_field
from hisac_rec.data.votes import types_that_vote, vote_weights
from hisac_rec.errors import did_you_mean
from hisac_rec.preparation.blocks import CutRules, EventBlock, split_by_fraction
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.entities import ITEMS, USERS, make_entities
from hisac_rec.preparation.features import (
    Encoded,
    encode,
    ids_query,
    vocabulary,
)
from hisac_rec.preparation.headers import check_headers
from hisac_rec.preparation.locate import Locator
from hisac_rec.preparation.negatives import Negatives, open_negatives, write_pools
from hisac_rec.preparation.rawchecks import (
    check_expressions,
    check_labels,
    check_select,
    check_times,
    content_width,
    require_files,
)
from hisac_rec.preparation.sorting import EVENTS, RAW_EVENTS, sort_events
from hisac_rec.preparation.source import Catalogue
from hisac_rec.preparation.sql import Engine, identifier, subquery
from hisac_rec.preparation.work import WorkFolder

BLOCK_EVENTS = 2_000_000
"""Events handed over at once, but always whole users: about 100 MB."""
BATCH_ITEMS = 100_000
MAX_TYPES = 127


class RawLog:
    """Reads everything on construction; use as a context manager.

    Args:
        definition: with ``[source]``.
        raw: folder of raw files.
        work: folder for the database.
        origin: the definition's file, for messages.
        memory_limit: of DuckDB.
        threads: of DuckDB; None: one per core.

    Raises:
        UserError: see :func:`hisac_rec.preparation.prepare.prepare`.
    """

    has_oracle = False

    def __init__(
        self,
        definition: DatasetDefinition,
        raw: Path | None,
        work: WorkFolder,
        origin: str,
        memory_limit: str,
        threads: int | None,
    ) -> None:
        source, requests = definition.source, definition.requests
        assert source is not None
        assert requests is not None
        self.definition, self._source, self._requests = definition, source, requests
        self.tasks = list(requests.tasks or {})
        self._raw = require_files(source, raw, origin)
        self._work = work
        self._engine = Engine(work, origin, memory_limit, threads)
        try:
            self._load()
        except BaseException:
            self._engine.close()
            raise

    def __enter__(self) -> RawLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    @property
    def block_events(self) -> int:
        """Events of a block, about."""
        negatives = self._requests.negatives
        return max(1, BLOCK_EVENTS // (1 + (negatives.per_positive if negatives else 0)))

    def rules(self, split: Split) -> CutRules:
        """As ``[history]`` and ``[requests]`` say."""
        requests, history = self._requests, self.definition.history
        counted = types_that_vote(history.votes, self.event_types)
        return CutRules(history.min_events, requests.of_split(split), history.max_length, counted)

    def blocks(self, first: int = 0) -> Iterator[EventBlock]:
        """Events of whole users, from block ``first`` on: about ``BLOCK_EVENTS`` at a time, what
        is drawn for them counted in.
        """
        for table in self._tables(self.block_events, first):
            columns = {name: table[name].to_numpy() for name in table.column_names}
            columns["group"] = columns["group"].view(np.uint64)
            further = {task: columns.pop(task_field(task)) for task in self.tasks}
            if self._requests.group == "event":
                columns["group"] = None
            if self.definition.split.by != "column":
                columns["split"] = self._splits(columns["user"], columns["time"])
            yield EventBlock(**columns, further=further)

    def _tables(self, size: int, first: int) -> Iterator[pa.Table]:
        """Sorted events of whole users, about ``size`` at a time, from table ``first`` on."""
        bounds = self._engine.rows(f"""
            SELECT min("user"), max("user") FROM (
                SELECT "user", (sum(count(*)) OVER (ORDER BY "user") - 1) // {size} AS block
                FROM {EVENTS} GROUP BY "user"
            ) GROUP BY block ORDER BY block""")
        for low, high in bounds[first:]:
            yield self._engine.arrow(
                f'SELECT * FROM {EVENTS} WHERE "user" BETWEEN {low} AND {high} ORDER BY rowid'
            )

    def negatives(self, blocks: Iterator[EventBlock]) -> Negatives | None:
        """As ``[requests.negatives]`` says."""
        if self._requests.negatives is None:
            return None
        folder, definition = self._work.scratch / "negatives", self.definition
        self._work.once(
            "pool of negatives", lambda: write_pools(self._engine, blocks, definition, folder)
        )
        return open_negatives(definition, folder, self.items)

    def catalogue(self, seen: NDArray[np.bool_]) -> Catalogue:
        """Items with features, text and content; see :class:`Catalogue`."""
        engine, types = self._engine, self._item_types
        ids = np.flatnonzero(seen).astype(np.int32)
        engine.take_in("prepared.seen_items", pa.table({"id": ids}))
        features = self._encode("item", types, ITEMS, "prepared.seen_items")
        others = ["e.id AS item", "e.value AS raw_id"]
        if "text" in types:
            others.append("coalesce(e.text::VARCHAR, '') AS text")
        dim = self._content_dim
        if dim is not None:
            zeros = f"list_resize([]::FLOAT[], {dim}, 0.0)::FLOAT[{dim}]"
            others.append(f"coalesce(e.content::FLOAT[{dim}], {zeros}) AS content")
        query = ids_query(ITEMS, features, others)
        engine.run(
            f"CREATE TABLE prepared.catalogue AS {query} ORDER BY e.id", "items", "source.items"
        )
        means = {f.feature.name: 1.0 for f in features}
        for f in features:
            if f.feature.multi:
                sql = f"SELECT avg(len({f.column})) FROM prepared.catalogue WHERE item > 0"
                means[f.feature.name] = float(engine.rows(sql)[0][0])
        return Catalogue(
            features=[f.feature for f in features],
            content_dim=dim,
            has_text="text" in types,
            values_mean=means,
            vocabularies={f.feature.name: f.values for f in features},
            batches=engine.arrow_batches(
                "SELECT * FROM prepared.catalogue ORDER BY item", BATCH_ITEMS
            ),
        )

    def _load(self) -> None:
        engine, source = self._engine, self._source
        tables: dict[str, str] = {}
        engine.locate_with(Locator(engine.cursor(), source, self._raw, tables))
        for name, table in source.tables.items():
            there = table.optional_file is None or any(self._raw.glob(table.optional_file))
            tables[name] = (table.select if there else table.otherwise) or ""
            key = f"source.tables.{name}.{'select' if there else 'otherwise'}"
            self._read(identifier(name), tables[name], key)
        self._read(RAW_EVENTS, source.events, "source.events")
        types = check_select(
            engine, "source.events", RAW_EVENTS, ["user", "item", "time"], ("sequence", "type")
        )
        if self.definition.clock:
            check_times(engine, RAW_EVENTS)
        if not engine.rows(f"SELECT 1 FROM {RAW_EVENTS} LIMIT 1"):
            raise engine.wrong("source.events", "no events: the SELECT gives no row")
        check_expressions(engine, self.definition, RAW_EVENTS)

        self._item_types = self._entities("item", source.items, ITEMS)
        self._content_dim = content_width(engine, self._item_types, ITEMS)
        user_types = self._entities("user", source.users, USERS)
        known = {*self._item_types, *user_types}
        for name in self.definition.features.min_count:
            if name not in known:
                hint = did_you_mean(name, known)
                raise engine.wrong("features.min_count", f"no feature '{name}'{hint}")
        self._event_types(types)
        self._sort_events(types)
        check_labels(engine, self.definition, EVENTS, USERS)
        self._count_and_encode_users(user_types)
        self._clean_up()

    def _clean_up(self) -> None:
        self._engine.run(f"DROP TABLE {RAW_EVENTS}", "clean up", "source.events")

    def _count_and_encode_users(self, types: dict[str, str]) -> None:
        engine, split = self._engine, self.definition.split
        self.users = engine.rows(f"SELECT count(*) FROM {USERS}")[0][0]
        self.items = engine.rows(f"SELECT count(*) FROM {ITEMS}")[0][0]
        seen = f'SELECT DISTINCT "user" AS id FROM {EVENTS}'
        if split.by == "time":  # by fraction, every user's first event is train
            seen += f" WHERE time < {split.valid_from}"
        elif split.by == "column":
            seen += " WHERE split = 0"
        engine.run(f"CREATE TABLE prepared.seen_users AS {seen}", "users", "source.events")
        features = self._encode("user", types, USERS, "prepared.seen_users")
        self.user_features = [f.feature for f in features]
        table = engine.arrow(f"{ids_query(USERS, features, ['e.id'])} ORDER BY e.id")
        self.user_values = {f.feature.name: table[f.feature.name].to_numpy() for f in features}
        self.user_vocabularies = {
            "user": vocabulary(engine, USERS),
            **{f"user_{f.feature.name}": f.values for f in features},
        }

    def _read(self, table: str, select: str, key: str) -> None:
        body = subquery(select, self._raw)
        check_headers(key, body, self._raw, self._engine.origin)
        sql = f"CREATE TABLE {table} AS SELECT * FROM {body}"
        self._engine.run(sql, f"read {key.removeprefix('source.')}", key)

    def _raw_ids(self, side: str) -> str:
        """SELECT of the different raw ids in the events, as text in column ``value``."""
        return f'SELECT k::VARCHAR AS value FROM (SELECT DISTINCT "{side}" AS k FROM {RAW_EVENTS})'

    def _entities(self, side: str, select: str | None, table: str) -> dict[str, str]:
        """Make the table of items or users; see :func:`make_entities`."""
        names, raw = self._raw_ids(side), None
        if select is not None:
            raw = f"prepared.raw_{side}s"
            self._read(raw, select, f"source.{side}s")
        return make_entities(self._engine, self.definition.features, side, names, raw, table)

    def _event_types(self, types: dict[str, str]) -> None:
        self._type = '"type"::VARCHAR' if "type" in types else "'event'"
        self.event_types = self._history_types()
        if not self.event_types:
            raise self._engine.wrong("history.where", "no event is history")
        if len(self.event_types) > MAX_TYPES:
            raise self._engine.wrong(
                "source.events",
                f"history has {len(self.event_types):,} types, at most {MAX_TYPES} are possible; "
                "make column 'type' coarser",
            )
        key = f"{self._engine.origin}: key 'history.votes'"
        vote_weights(self.definition.history.votes, self.event_types, key)

    def _history_types(self) -> list[str]:
        """The different types of history events, in order."""
        where = self.definition.history.where
        found = self._engine.rows(
            f"SELECT DISTINCT {self._type} FROM {RAW_EVENTS} WHERE ({where}\n) ORDER BY 1",
            "history.where",
        )
        return [row[0] for row in found]

    def _sort_events(self, types: dict[str, str]) -> None:
        sort_events(self._engine, self.definition, types, self._type, self.event_types)

    def _splits(self, user: NDArray[np.int32], time: NDArray[np.int64]) -> NDArray[np.int8]:
        split = self.definition.split
        if split.by == "user_fraction":
            return split_by_fraction(user, split.train, split.valid)
        assert split.valid_from is not None
        assert split.test_from is not None
        late = (time >= split.valid_from).astype(np.int8)
        return (late + (time >= split.test_from)).astype(np.int8)

    def _encode(self, side: str, types: dict[str, str], entities: str, seen: str) -> list[Encoded]:
        counts = self.definition.features.min_count
        return [
            encode(self._engine, side, name, entities, seen, counts.get(name, 1), multi=multi)
            for name, kind in types.items()
            if name not in ("text", "content")
            for multi in (kind.endswith("[]"),)
        ]
