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
from hisac_rec.errors import did_you_mean
from hisac_rec.preparation.blocks import CutRules, EventBlock, split_by_fraction
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.features import (
    IN_ORDER,
    Encoded,
    chosen_columns,
    encode,
    ids_query,
    vocabulary,
)
from hisac_rec.preparation.headers import check_headers
from hisac_rec.preparation.locate import Locator
from hisac_rec.preparation.negatives import NegativeSampler, open_sampler, write_pools
from hisac_rec.preparation.rawchecks import (
    check_expressions,
    check_labels,
    check_select,
    check_times,
    check_unique,
    content_width,
    require_files,
    split_columns,
)
from hisac_rec.preparation.source import Catalogue
from hisac_rec.preparation.sql import SIGNED_TYPES, Engine, identifier, subquery, text
from hisac_rec.preparation.work import WorkFolder

BLOCK_EVENTS = 2_000_000
"""Events handed over at once, but always whole users: about 100 MB."""
BATCH_ITEMS = 100_000
MAX_TYPES = 127
NO_GROUP = "(-9223372036854775808)::BIGINT"
"""Group of events where ``requests.group`` is NULL."""
RAW_EVENTS = "prepared.raw_events"
EVENTS = "prepared.events"
ITEMS, USERS = "prepared.items", "prepared.users"
AS_NUMBER = '"raw number"'
"""Column of items and users: a raw id that is a whole number, as one; events are joined by it,
which takes a third of the time that joining by text does. No feature can have this name."""


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
        return CutRules(history.min_events, requests.of_split(split), history.max_length)

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

    def negatives(self, blocks: Iterator[EventBlock]) -> NegativeSampler | None:
        """As ``[requests.negatives]`` says."""
        if self._requests.negatives is None:
            return None
        folder, definition = self._work.scratch / "negatives", self.definition
        self._work.once(
            "pool of negatives", lambda: write_pools(self._engine, blocks, definition, folder)
        )
        return open_sampler(definition, folder, self.items)

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
        """Make the table of items or users: ``id``, ``value`` (the raw id), what is used.

        Returns:
            Column -> type of the features, text and content in it.
        """
        engine, key, raw = self._engine, f"source.{side}s", f"prepared.raw_{side}s"
        used: dict[str, str] = {}
        names = self._raw_ids(side)
        columns = join = ""
        if select is not None:
            self._read(raw, select, key)
            types = check_select(engine, key, raw, [side])
            check_unique(engine, key, raw, side)
            features = self.definition.features
            chosen = chosen_columns(engine, side, types, getattr(features, side))
            more = [name for name in ("text", "content") if side == "item" and name in types]
            used = {name: types[name] for name in (*chosen, *more)}
            columns = "".join(f", r.{identifier(name)}" for name in used)
            join = f'LEFT JOIN {raw} r ON r."{side}"::VARCHAR = n.value'
        if select is not None and side == "item":
            names += f" UNION SELECT item::VARCHAR FROM {raw}"
        engine.run(
            f"""
            CREATE TABLE {table} AS
            WITH names AS (
                SELECT row_number() OVER (ORDER BY {IN_ORDER})::INTEGER AS id, value FROM ({names})
                UNION ALL SELECT 0, NULL
            )
            SELECT n.id, n.value,
                CASE WHEN try_cast(n.value AS BIGINT)::VARCHAR = n.value
                    THEN n.value::BIGINT END AS {AS_NUMBER} {columns}
            FROM names n {join} ORDER BY n.id
            """,
            f"ids of {side}s",
            key,
        )
        return used

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

    def _history_types(self) -> list[str]:
        """The different types of history events, in order."""
        where = self.definition.history.where
        found = self._engine.rows(
            f"SELECT DISTINCT {self._type} FROM {RAW_EVENTS} WHERE ({where}\n) ORDER BY 1",
            "history.where",
        )
        return [row[0] for row in found]

    def _group(self) -> tuple[str, bool]:
        """``requests.group`` as SQL, and whether it is a whole number, which needs no hash."""
        sql = self._requests.group
        if sql == "event":
            return "0", True
        described = self._engine.rows(f"DESCRIBE SELECT ({sql}\n) AS value FROM {RAW_EVENTS}")
        return sql, described[0][1] in SIGNED_TYPES

    def _sort_events(self, types: dict[str, str]) -> None:
        """Ids in place of raw values, sorted by user, time and a complete tie-break."""
        requests = self._requests
        sequence = "sequence" if "sequence" in types else "0"
        group, is_whole = self._group()
        group = f"coalesce(({group}\n)::BIGINT, {NO_GROUP})" if is_whole else f"hash(({group}\n))"
        names = ", ".join(text(name) for name in self.event_types)
        part, split = split_columns(self.definition)
        key, raw = {}, {}
        for name in ("user", "item"):
            whole_id = types[name] in SIGNED_TYPES
            key[name] = AS_NUMBER if whole_id else "value"
            raw[name] = f'"{name}"::{"BIGINT" if whole_id else "VARCHAR"}'
        of_tasks = requests.tasks or {}
        more = [identifier(task_field(task)) for task in of_tasks]
        raw_more = "".join(
            f", ({sql}\n)::FLOAT AS {name}"
            for name, sql in zip(more, of_tasks.values(), strict=True)
        )
        masked = "".join(f", CASE WHEN is_candidate THEN {n} ELSE 0 END AS {n}" for n in more)
        self._engine.run(
            f"""
            CREATE TABLE {EVENTS} AS
            WITH flagged AS (
                SELECT {raw["user"]} AS raw_user, {raw["item"]} AS raw_item, time,
                    {self._type} AS type_name, {sequence} AS place,
                    coalesce(({self.definition.history.where}\n), false) AS is_history,
                    coalesce(({requests.where}\n), false) AS is_candidate,
                    ({requests.label}\n)::FLOAT AS raw_label, {group} AS "group"{part}{raw_more}
                FROM {RAW_EVENTS}
            )
            SELECT u.id AS "user", i.id AS item, time::BIGINT AS time,
                greatest(coalesce(list_position([{names}], type_name), 1) - 1, 0)::TINYINT AS type,
                is_history, is_candidate,
                CASE WHEN is_candidate THEN raw_label ELSE 0 END AS label, "group"{split}{masked}
            FROM flagged JOIN {USERS} u ON u.{key["user"]} = raw_user
                JOIN {ITEMS} i ON i.{key["item"]} = raw_item
            ORDER BY u.id, time, place, i.id, type, is_history, is_candidate, label, "group"{split}
                {"".join(f", {name}" for name in more)}
            """,
            "sort events",
            "history.where, requests.where, requests.label, requests.tasks, requests.group or "
            "split.column",
        )

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
