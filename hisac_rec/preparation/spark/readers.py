"""Views of Spark over the raw files that a definition reads, as DuckDB would read them.

DuckDB says what is in a file (columns, types, delimiter, header) from a look at its beginning;
Spark reads all of it. Text files are read as text and cast, which the two do alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
from pyspark.errors import PySparkException
from sqlglot import exp

from hisac_rec.errors import UserError
from hisac_rec.preparation.spark.translate import LINE
from hisac_rec.preparation.sql import text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ENCODINGS = {"latin-1": "ISO-8859-1", "utf-8": "UTF-8", "utf-16": "UTF-16"}
KNOWN = {
    "csv": {"delim", "sep", "header", "encoding", "quote", "escape", "columns", "auto_detect"}
    | {"filename"},
    "parquet": {"union_by_name"},
    "json": {"columns", "format", "auto_detect"},
    "text": set[str](),
}
"""Options of DuckDB's table functions that are understood, by kind of file."""
FUNCTIONS = {"read_csv": "csv", "read_csv_auto": "csv", "read_parquet": "parquet"}
FUNCTIONS |= {"parquet_scan": "parquet", "read_json": "json", "read_json_auto": "json"}
FUNCTIONS |= {"read_ndjson": "json", "read_text": "text"}
FILE = "REGEXP_REPLACE(_metadata.file_path, '^file:/+', '/')"
"""The path of a row's file as DuckDB says it."""
TYPES = {"UTINYINT": "SMALLINT", "USMALLINT": "INT", "UINTEGER": "BIGINT", "VARCHAR": "STRING"}
TYPES |= {"UBIGINT": "DECIMAL(20,0)", "HUGEINT": "DECIMAL(38,0)", "UUID": "STRING"}
TYPES |= {"TIMESTAMP": "TIMESTAMP_NTZ"}


class Reading(NamedTuple):
    """What a table function is asked for, and what DuckDB says of its files."""

    key: str
    """Of the definition."""
    files: list[str]
    """In the order of their names."""
    options: dict[str, exp.Expression]
    columns: dict[str, str]
    """Column -> DuckDB type."""
    lines: bool
    """Number the rows."""


class RawFiles:
    """Makes views, one for every table function or path of a definition.

    Args:
        spark: the session.
        origin: the definition's file, for messages.
    """

    def __init__(self, spark: SparkSession, origin: str) -> None:
        self._spark, self._origin = spark, origin
        self._duckdb = duckdb.connect()
        self._views = 0

    def __call__(self, key: str, call: exp.Expression, lines: bool) -> str:
        """The name of a view; see :data:`hisac_rec.preparation.spark.translate.Reader`.

        Raises:
            UserError: a table function or an option is not understood; the file is not there.
        """
        kind, paths, options = self._understood(key, call)
        sql = text(call.name) if isinstance(call, exp.Identifier) else call.sql("duckdb")
        try:
            columns = {row[0]: row[1] for row in self._rows(f"DESCRIBE FROM {sql}")}
            files = [str(name) for path in paths for name in self._glob(path)]
            read = getattr(self, f"_{kind}")
            frame = read(Reading(key, files, options, columns, lines))
        except (duckdb.Error, PySparkException) as error:
            reason = str(error).partition("\n\nJVM stacktrace")[0]
            raise UserError(f"{self._origin}: key '{key}': {reason}") from None
        self._views += 1
        frame.createOrReplaceTempView(f"raw_files_{self._views}")
        return f"raw_files_{self._views}"

    def _understood(
        self, key: str, call: exp.Expression
    ) -> tuple[str, list[str], dict[str, exp.Expression]]:
        if isinstance(call, exp.Identifier):
            suffixes = [suffix for suffix in Path(call.name).suffixes if suffix != ".gz"]
            kind = {".parquet": "parquet", ".json": "json", ".ndjson": "json"}.get(
                suffixes[-1] if suffixes else "", "csv"
            )
            return kind, [call.name], {}
        if isinstance(call, exp.Anonymous):
            function, arguments = call.name.lower(), list(call.expressions)
        else:
            function = call.sql_name().lower()
            arguments = [a for a in (call.this, *call.expressions) if a is not None]
        kind = FUNCTIONS.get(function, "")
        if not kind:
            raise self._wrong(key, f"table function {function}")
        first, *others = arguments
        paths = first.expressions if isinstance(first, exp.Array) else [first]
        options = {other.this.name.lower(): other.expression for other in others}
        for name in options:
            if name not in KNOWN[kind]:
                raise self._wrong(key, f"option {name} of {function}")
        return kind, [path.name for path in paths], options

    def _csv(self, asked: Reading) -> DataFrame:
        said: dict[str, Any] = {name: option.name for name, option in asked.options.items()}
        delimiter, quote = said.get("delim", said.get("sep")), said.get("quote")
        escape = said.get("escape")
        header = said["header"].lower() == "true" if "header" in said else None
        header = asked.options["header"].this if "header" in asked.options else header
        skipped = 0
        if delimiter is None or header is None:
            encoding = f", encoding = {text(said['encoding'])}" if "encoding" in said else ""
            found = self._rows(
                "SELECT Delimiter, Quote, Escape, SkipRows, HasHeader "
                f"FROM sniff_csv({text(asked.files[0])}{encoding})"
            )[0]
            delimiter = found[0] if delimiter is None else delimiter
            quote = _character(found[1]) if quote is None else quote
            escape = _character(found[2]) if escape is None else escape
            skipped, header = found[3], found[4] if header is None else header
        if skipped:
            raise self._wrong(asked.key, f"{asked.files[0]}: {skipped} lines before the header")
        quote = '"' if quote is None else quote
        inside = {
            n: kind
            for n, kind in asked.columns.items()
            if n != "filename" or n not in asked.options
        }
        reader = self._spark.read.schema(
            ", ".join(f"{_quoted(name)} STRING" for name in inside)
        ).options(
            sep=delimiter.replace("\\t", "\t"),
            header=bool(header),
            quote=quote,
            escape=escape or quote or "\\",
            encoding=ENCODINGS.get(said.get("encoding", "utf-8").lower(), said.get("encoding")),
            mode="FAILFAST",
        )
        frame = reader.csv(asked.files)
        if "filename" in asked.options:
            frame = frame.selectExpr("*", f"{FILE} AS filename", "_metadata")
        frame = self._with_lines(frame, asked.lines)
        return frame.selectExpr(*_casts(asked.columns), *([LINE] if asked.lines else []))

    def _parquet(self, asked: Reading) -> DataFrame:
        frame = self._spark.read.option("mergeSchema", "union_by_name" in asked.options).parquet(
            *asked.files
        )
        frame = self._with_lines(frame, asked.lines)
        plain = [
            f"CAST(TIMESTAMP_MICROS({_quoted(name)} DIV 1000) AS TIMESTAMP_NTZ) AS {_quoted(name)}"
            if kind == "TIMESTAMP_NS"
            else _quoted(name)
            for name, kind in asked.columns.items()
        ]
        return frame.selectExpr(*plain, *([LINE] if asked.lines else []))

    def _json(self, asked: Reading) -> DataFrame:
        with Path(asked.files[0]).open("rb") as file:
            is_array = file.read(64).lstrip().startswith(b"[")
        schema = ", ".join(
            f"{_quoted(name)} {spark_type(kind)}" for name, kind in asked.columns.items()
        )
        reader = self._spark.read.schema(schema).options(multiLine=is_array, mode="FAILFAST")
        return self._with_lines(reader.json(asked.files), asked.lines)

    def _text(self, asked: Reading) -> DataFrame:
        frame = self._with_lines(self._spark.read.text(asked.files, wholetext=True), asked.lines)
        return frame.selectExpr(
            f"{FILE} AS filename",
            "value AS content",
            *([LINE] if asked.lines else []),
        )

    def _with_lines(self, frame: DataFrame, lines: bool) -> DataFrame:
        """With the place of every row in the files, in the order of their names."""
        if not lines:
            return frame
        return frame.selectExpr(
            "*",
            "_metadata.file_path AS in_file",
            "_metadata.file_block_start AS in_block",
            "MONOTONICALLY_INCREASING_ID() AS in_task",
        ).selectExpr(
            "* EXCEPT (in_file, in_block, in_task)",
            f"ROW_NUMBER() OVER (ORDER BY in_file, in_block, in_task) AS {LINE}",
        )

    def _glob(self, path: str) -> list[str]:
        return [row[0] for row in self._rows(f"SELECT file FROM glob({text(path)}) ORDER BY file")]

    def _rows(self, query: str) -> list[Any]:
        return self._duckdb.execute(query).fetchall()

    def _wrong(self, key: str, what: str) -> UserError:
        return UserError(
            f"{self._origin}: key '{key}': cannot run on Spark: {what}; DuckDB runs it "
            "(leave out --engine spark)"
        )


def spark_type(kind: str) -> str:
    """A type of DuckDB's as Spark writes it."""
    if kind in TYPES:
        return TYPES[kind]
    return exp.DataType.build(kind, dialect="duckdb").sql("spark")


def _casts(columns: dict[str, str]) -> list[str]:
    quoted = ((_quoted(name), spark_type(kind)) for name, kind in columns.items())
    return [f"CAST({name} AS {kind}) AS {name}" for name, kind in quoted]


def _character(said: str) -> str:
    """A delimiter or quote as DuckDB says it."""
    return "" if said in ("(empty)", "\\0", "\0") else said


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
