"""An event log on Spark: it reads, makes ids, joins and sorts; blocks are cut as ever.

Everything that grows with the number of events is done by Spark and lies in Parquet files of the
work folder, one a block of users. What grows with users and items (order of ids, vocabularies,
item features) and the cutting of requests is the very code of :mod:`hisac_rec.preparation.rawlog`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.data.contract import SPLITS, task_field
from hisac_rec.data.parquet import READING
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.entities import ITEMS, USERS
from hisac_rec.preparation.rawlog import MAX_TYPES, RawLog
from hisac_rec.preparation.sorting import EVENTS, NO_GROUP, RAW_EVENTS, group_key
from hisac_rec.preparation.spark.session import open_session
from hisac_rec.preparation.sql import text
from hisac_rec.preparation.work import WorkFolder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

RAW_VIEW = "raw_events"


class SparkLog(RawLog):
    """As :class:`RawLog`, with the events in Spark.

    Args:
        definition: with ``[source]``.
        raw: folder of raw files, which every executor sees.
        work: folder of Parquet files on the way, which every executor sees.
        origin: the definition's file, for messages.
        memory_limit: of DuckDB, and of Spark's driver.
        threads: of DuckDB and of a local Spark; None: one per core.
        settings: of Spark, "KEY=VALUE" each.

    Raises:
        UserError: as :class:`RawLog`; SQL has no equal in Spark; Spark is not installed.
    """

    def __init__(
        self,
        definition: DatasetDefinition,
        raw: Path | None,
        work: WorkFolder,
        origin: str,
        memory_limit: str,
        threads: int | None,
        settings: Sequence[str] = (),
    ) -> None:
        self._spark = open_session(origin, memory_limit, threads, settings)
        from hisac_rec.preparation.spark.readers import RawFiles
        from hisac_rec.preparation.spark.translate import Translator

        self._origin = origin
        self._translator = Translator(origin, RawFiles(self._spark, origin))
        self._folder = work.scratch / "spark"
        super().__init__(definition, raw, work, origin, memory_limit, threads)

    def _read(self, table: str, select: str, key: str) -> None:
        """Run a SELECT in Spark; its rows are a view there and here."""
        name = "raw_events" if table == RAW_EVENTS else table.split(".")[-1].strip('"')
        folder = str(self._raw).replace("'", "''")
        sql = self._translator.select(select.replace("{raw}", folder), key)
        self._write(f"read {key.removeprefix('source.')}", name, lambda: self._sql(sql, key), key)
        self._spark.read.parquet(str(self._folder / name)).createOrReplaceTempView(name)
        self._view(table, name, key)

    def _view(self, table: str, name: str, key: str) -> None:
        """What Spark has written, as a view of DuckDB's."""
        files = text(str(self._folder / name / "*.parquet"))
        sql = f"CREATE VIEW {table} AS SELECT * FROM read_parquet({files})"
        self._engine.run(sql, f"view of {name}", key)

    def _clean_up(self) -> None:
        """The raw events stay until the work folder goes."""

    def _raw_ids(self, side: str) -> str:
        name = f"ids_{side}"
        sql = f"""
            SELECT CAST(`{side}` AS STRING) AS value, COUNT(*) AS events
            FROM {RAW_VIEW} GROUP BY 1"""
        self._write(f"raw ids of {side}s", name, lambda: self._sql(sql, "source.events"), "")
        return f"SELECT value FROM read_parquet({text(str(self._folder / name / '*.parquet'))})"

    def _history_types(self) -> list[str]:
        kind = "CAST(type AS STRING)" if self._type != "'event'" else "'event'"
        key = "history.where"
        where = self._translator.expression(self.definition.history.where, key)
        frame = self._sql(
            f"SELECT DISTINCT {kind} AS type FROM {RAW_VIEW} WHERE TRUE AND {where}", key
        )
        rows = self._asked(key, lambda: frame.limit(MAX_TYPES + 1).collect())
        return sorted((row.type for row in rows), key=str.encode)

    def _sort_events(self, types: dict[str, str]) -> None:
        self._number_users()
        sql, order = self._sorting(types)
        key = "history.where, requests.where, requests.label, requests.group or split.column"
        numbered = text(str(self._folder / "numbered_user.parquet"))
        blocks = self._engine.rows(f"SELECT max(block) + 1 FROM read_parquet({numbered})")[0][0]

        def sort() -> DataFrame:
            from pyspark.sql import functions

            frame = self._sql(sql, key).repartitionById(blocks, functions.col("block"))
            return frame.sortWithinPartitions(*order).drop("block", "place")

        self._write("sort events", "events", sort, key)
        self._view(EVENTS, "events", key)

    def _number_users(self) -> None:
        """Ids as files that Spark can join; with every user, the block that it belongs to."""
        counted = text(str(self._folder / "ids_user" / "*.parquet"))
        blocks = f"""
            SELECT u.id, u.value,
                ((sum(c.events) OVER (ORDER BY u.id) - 1) // {self.block_events})::INTEGER AS block
            FROM {USERS} u JOIN read_parquet({counted}) c ON c.value = u.value"""
        items = f"SELECT id, value FROM {ITEMS} WHERE id > 0"
        for side, select in (("user", blocks), ("item", items)):
            path = text(str(self._folder / f"numbered_{side}.parquet"))
            self._engine.run(
                f"COPY ({select}) TO {path} (FORMAT parquet)", f"number {side}s", "source.events"
            )
            frame = self._spark.read.parquet(str(self._folder / f"numbered_{side}.parquet"))
            frame.createOrReplaceTempView(f"numbered_{side}")

    def _sorting(self, types: dict[str, str]) -> tuple[str, list[str]]:
        """SELECT of ids in place of raw values, and the columns to sort by: as in DuckDB."""
        requests, definition = self._requests, self.definition
        say = self._translator.expression
        group, is_whole = group_key(self._engine, definition)
        grouped = "CAST(0 AS BIGINT)" if group == "event" else say(group, "requests.group")
        no_group = NO_GROUP.partition("::")[0].strip("()")
        grouped = (
            f"COALESCE(CAST({grouped} AS BIGINT), CAST('{no_group}' AS BIGINT))"
            if is_whole
            else f"XXHASH64({grouped})"
        )
        kind = "CAST(type AS STRING)" if "type" in types else "'event'"
        place = "sequence" if "sequence" in types else "0"
        cases = " ".join(
            f"WHEN {_literal(name)} THEN {number}" for number, name in enumerate(self.event_types)
        )
        split = ""
        if definition.split.column is not None:
            column = say(definition.split.column, "split.column")
            names = " ".join(f"WHEN '{name}' THEN {n}" for n, name in enumerate(SPLITS))
            split = f", CAST(CASE CAST({column} AS STRING) {names} END AS TINYINT) AS split"
        tasks = {
            task_field(task): say(sql, f"requests.tasks.{task}")
            for task, sql in (requests.tasks or {}).items()
        }
        raw_tasks = "".join(f", CAST({sql} AS FLOAT) AS raw_{n}" for n, sql in tasks.items())
        masked = "".join(
            f", CASE WHEN is_candidate THEN raw_{n} ELSE CAST(0 AS FLOAT) END AS {n}" for n in tasks
        )
        sql = f"""
            WITH flagged AS (
                SELECT CAST(`user` AS STRING) AS raw_user, CAST(item AS STRING) AS raw_item, time,
                    {kind} AS type_name, {place} AS place,
                    COALESCE({say(definition.history.where, "history.where")}, FALSE) AS is_history,
                    COALESCE({say(requests.where, "requests.where")}, FALSE) AS is_candidate,
                    CAST({say(requests.label, "requests.label")} AS FLOAT) AS raw_label,
                    {grouped} AS `group`{split}{raw_tasks}
                FROM {RAW_VIEW}
            )
            SELECT u.id AS `user`, i.id AS item, CAST(time AS BIGINT) AS time,
                CAST(CASE type_name {cases} ELSE 0 END AS TINYINT) AS type,
                is_history, is_candidate,
                CASE WHEN is_candidate THEN raw_label ELSE CAST(0 AS FLOAT) END AS label,
                `group`{", split" if split else ""}{masked}, place, u.block
            FROM flagged JOIN numbered_user u ON u.value = raw_user
                JOIN numbered_item i ON i.value = raw_item"""
        order = ["user", "time", "place", "item", "type", "is_history", "is_candidate", "label"]
        return sql, [*order, "group", *(["split"] if split else []), *tasks]

    def _tables(self, size: int, first: int) -> Iterator[pa.Table]:
        """The files that Spark has sorted, one a block."""
        for path in sorted((self._folder / "events").glob("*.parquet"))[first:]:
            yield pq.read_table(path, **READING)

    def _sql(self, sql: str, key: str) -> DataFrame:
        return self._asked(key, lambda: self._spark.sql(sql))

    def _write(self, title: str, name: str, make: Callable[[], DataFrame], key: str) -> None:
        """Write a table as Parquet, unless an earlier start has."""
        path = str(self._folder / name)
        self._work.once(
            title,
            lambda: self._asked(key, lambda: make().write.mode("overwrite").parquet(path)),
        )

    def _asked(self, key: str, work: Callable[[], Any]) -> Any:
        """Do something in Spark; what it says about the SQL names the key."""
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException

        try:
            return work()
        except (PySparkException, Py4JJavaError) as error:
            reason = str(error).split("\n\nJVM stacktrace")[0].strip()
            raise UserError(
                f"{self._origin}: key '{key}': Spark does not run the SQL:\n{reason[:2000]}"
            ) from None


def _literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
