"""DuckDB SQL of a definition to Spark SQL, or an error that names the key and the function.

sqlglot parses and writes; what is done here is what the two engines mean differently. Only
functions that are known to mean the same in both are let through.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from hisac_rec.errors import UserError

Reader = Callable[[str, exp.Expression, bool], str]
"""``reader(key, call, lines)``: the name of a Spark view over raw files that a table function or
a path names; with ``lines``, it has a column ``LINE``: the place of a row in the files, from 1."""

LINE = "row_number_in_files"
SAME = {
    *("Abs", "And", "Any", "AnyValue", "ArgMax", "ArgMin", "Array", "ArrayConcat"),
    *("ArrayContains", "ArrayDistinct", "ArrayFilter", "ArraySize", "ArrayToString", "Avg"),
    *("Case", "Cast", "Ceil", "Chr", "Coalesce", "Concat", "ConcatWs", "Contains", "Count"),
    *("CountIf", "DenseRank", "EndsWith", "Exp", "Explode", "Extract", "Floor", "Greatest", "If"),
    *("Lag", "Lead", "Least", "Left", "Length", "Ln", "Log", "Lower", "Max", "Min", "Nullif"),
    *("Or", "Pow", "Rank", "RegexpExtract", "RegexpReplace", "Replace", "Reverse", "Right"),
    *("Round", "RowNumber", "Sign", "Split", "SplitPart", "Sqrt", "StartsWith", "StrToTime"),
    *("Substring", "Sum", "TimeToUnix", "TimestampTrunc", "Transform", "Trim", "TryCast", "Upper"),
    *("Year", "Month", "Day", "Xor", "IsNan", "Struct"),
}
"""Names of sqlglot's functions that mean the same in both, as they are written here."""
INTEGERS = {"TINYINT", "SMALLINT", "INT", "BIGINT"}
UNNESTED = "unnested"
NO_FRACTIONS = (
    *(exp.Null, exp.Predicate, exp.IntDiv, exp.Length, exp.Split, exp.SplitPart, exp.Left),
    *(exp.RegexpExtract, exp.RegexpReplace, exp.Replace, exp.Substring, exp.Trim),
)
"""What gives no fraction, so that nothing is rounded when it becomes a whole number."""


class Translator:
    """Translates the SQL of one definition.

    Args:
        origin: the definition's file, for messages.
        reader: makes views of raw files.
    """

    def __init__(self, origin: str, reader: Reader) -> None:
        self._origin, self._reader = origin, reader

    def select(self, sql: str, key: str) -> str:
        """A SELECT with raw files in place of ``{raw}``.

        Raises:
            UserError: names what Spark has no equal of.
        """
        return self._written(self._parsed(sql, key), key)

    def expression(self, sql: str, key: str) -> str:
        """An expression over columns."""
        tree = self._parsed(f"SELECT ({sql}\n) AS value", key)
        return self._written(tree, key).removeprefix("SELECT ").removesuffix(" AS value")

    def _parsed(self, sql: str, key: str) -> exp.Expression:
        try:
            return sqlglot.parse_one(sql.strip().rstrip(";"), read="duckdb")
        except SqlglotError as error:
            raise self._wrong(key, f"sqlglot cannot read this SQL: {error}") from None

    def _written(self, tree: exp.Expression, key: str) -> str:
        self._files(tree, key)
        for node in reversed(list(tree.walk())):  # breadth first: what is inside comes first
            new = self._function(node, key)
            if new is not node:
                node.replace(new)
        for select in list(tree.find_all(exp.Select)):
            self._unnest(select, key)
        try:
            return tree.sql("spark", unsupported_level=ErrorLevel.RAISE)
        except SqlglotError as error:
            raise self._wrong(key, str(error)) from None

    def _files(self, tree: exp.Expression, key: str) -> None:
        """Views in place of table functions and paths."""
        for table in list(tree.find_all(exp.Table)):
            call = table.this
            is_path = isinstance(call, exp.Identifier) and ("/" in call.name)
            if isinstance(call, exp.Identifier) and not is_path:
                continue
            select = table.find_ancestor(exp.Select)
            lines = self._unordered(select) if select is not None else []
            alone = select is not None and not select.args.get("joins")
            if lines and not alone:
                raise self._wrong(key, NO_ORDER)
            table.set("this", exp.to_identifier(self._reader(key, call, bool(lines))))
            for window in lines:  # it counts what WHERE has left
                window.replace(sqlglot.parse_one(f"ROW_NUMBER() OVER (ORDER BY {LINE})"))
            if lines and select is not None:
                self._hide_line(select)
        for window in tree.find_all(exp.Window):
            if isinstance(window.this, exp.RowNumber) and not window.args.get("order"):
                raise self._wrong(key, NO_ORDER)

    @staticmethod
    def _unordered(select: exp.Select) -> list[exp.Window]:
        """``row_number() OVER ()`` of this very SELECT: the order of the raw file."""
        return [
            window
            for window in select.find_all(exp.Window)
            if isinstance(window.this, exp.RowNumber)
            and not window.args.get("order")
            and not window.args.get("partition_by")
            and window.find_ancestor(exp.Select) is select
        ]

    @staticmethod
    def _hide_line(select: exp.Select) -> None:
        """``*`` means the columns of the file, without their place in it."""
        for star in list(select.expressions):
            if isinstance(star, exp.Star):
                star.set("except_", [exp.to_identifier(LINE)])

    def _unnest(self, select: exp.Select, key: str) -> None:
        """Spark has one generator a SELECT: all lists of one are zipped and exploded together."""
        calls = [
            node
            for node in select.find_all(exp.Explode, exp.Anonymous)
            if (isinstance(node, exp.Explode) or node.name.lower() == "generate_subscripts")
            and node.find_ancestor(exp.Select) is select
        ]
        if not calls:
            return
        if select.args.get("group") or not (select.args.get("from_") or select.args.get("from")):
            raise self._wrong(key, "unnest beside GROUP BY or without FROM: use a subquery")
        lists = list(dict.fromkeys(_operand(call).sql("spark") for call in calls))
        for call in calls:
            kind = "value" if isinstance(call, exp.Explode) else "place"
            number = lists.index(_operand(call).sql("spark"))
            call.replace(sqlglot.parse_one(f"{UNNESTED}.{kind}{number}", read="spark"))
        arrays = ", ".join(f"COALESCE({operand}, ARRAY())" for operand in lists)
        fields = ", ".join(  # a place ends with its own list, where another one is longer
            f"'value{n}', z.`{n}`, 'place{n}', IF(i < SIZE({operand}), i + 1, NULL)"
            for n, operand in enumerate(lists)
        )
        zipped = f"TRANSFORM(ARRAYS_ZIP({arrays}), (z, i) -> NAMED_STRUCT({fields}))"
        view = sqlglot.parse_one(
            f"SELECT 1 FROM t LATERAL VIEW EXPLODE({zipped}) one_by_one AS {UNNESTED}", read="spark"
        )
        select.set("laterals", view.args["laterals"])

    def _function(self, node: exp.Expression, key: str) -> exp.Expression:
        """One function or operator as Spark means it."""
        refused = REFUSED.get(type(node))
        if refused is not None and refused(node):
            raise self._wrong(key, f"{node.sql('duckdb')}: has no equal there")
        if isinstance(node, exp.Where) and isinstance(node.this, exp.Paren):
            # Spark reads FROM t WHERE (a) as a table t that is called WHERE.
            return exp.Where(this=exp.and_(exp.true(), node.this.copy()))
        if isinstance(node, exp.Div):  # whole numbers and decimals are divided as DOUBLE
            left = exp.cast(node.this.copy(), "double")
            return exp.Div(this=left, expression=node.expression.copy())
        if isinstance(node, exp.IgnoreNulls) and isinstance(node.this, exp.Anonymous):
            return node.this.copy()
        if isinstance(node, exp.Anonymous):
            return self._anonymous(node, key)
        if isinstance(node, exp.Cast) and node.to.sql("spark") in INTEGERS:
            return _rounding(node)
        if isinstance(node, exp.TimeToUnix):
            return _call("UNIX_MICROS", exp.cast(node.this.copy(), "timestamptz"), divided=1e6)
        if isinstance(node, exp.AnyValue):
            return exp.Anonymous(this="ANY_VALUE", expressions=[node.this.copy(), exp.true()])
        if isinstance(node, exp.RegexpReplace):
            self._check_replace(node, key)
        elif isinstance(node, exp.Func) and type(node).__name__ not in SAME:
            raise self._wrong(key, f"{node.sql('duckdb')}: not known to mean the same in Spark")
        return node

    def _anonymous(self, node: exp.Anonymous, key: str) -> exp.Expression:
        name = node.name.lower()
        if name == "parse_filename" and len(node.expressions) == 1:
            return sqlglot.parse_one(
                f"REGEXP_EXTRACT({node.expressions[0].sql('spark')}, '[^/]*$', 0)", read="spark"
            )
        if name in ("generate_subscripts", "any_value"):  # the second is ours
            return node
        raise self._wrong(
            key, f"function {name}: not known to mean the same in Spark; write it another way"
        )

    def _check_replace(self, node: exp.RegexpReplace, key: str) -> None:
        """DuckDB replaces the first place, Spark all of them; groups are written differently."""
        pattern, new = node.expression, node.args.get("replacement")
        anchored = isinstance(pattern, exp.Literal) and (
            pattern.name.startswith("^") or pattern.name.endswith("$")
        )
        everywhere = "g" in (node.args["modifiers"].name if node.args.get("modifiers") else "")
        plain = isinstance(new, exp.Literal) and not set("\\$") & set(new.name)
        if not (anchored or everywhere) or not plain:
            raise self._wrong(
                key,
                "regexp_replace: Spark replaces every match and writes groups as $1; anchor the "
                "pattern (^ or $) or give the flag 'g', with a plain replacement",
            )

    def _wrong(self, key: str, what: str) -> UserError:
        return UserError(
            f"{self._origin}: key '{key}': cannot run on Spark: {what}; DuckDB runs it "
            "(leave out --engine spark)"
        )


REFUSED: dict[type, Callable[[exp.Expression], bool]] = {
    exp.TableSample: lambda _: True,
    exp.SimilarTo: lambda _: True,
    exp.Glob: lambda _: True,
    exp.Log: lambda node: node.expression is None,  # log10 there, ln here: write one of them
    exp.Distinct: lambda node: node.args.get("on") is not None,
    exp.Limit: lambda node: node.parent is None or not node.parent.args.get("order"),
}
"""What depends on chance or on an order that Spark does not have."""
NO_ORDER = (
    "row_number() OVER () without ORDER BY: rows have an order in the raw files of a single "
    "FROM alone"
)


def _operand(call: exp.Expression) -> exp.Expression:
    """The list of ``unnest(list)`` and of ``generate_subscripts(list, 1)``."""
    return call.this if isinstance(call, exp.Explode) else call.expressions[0]


def _rounding(node: exp.Cast) -> exp.Expression:
    """Fractions become whole numbers by rounding in DuckDB, by cutting in Spark."""
    if isinstance(node.this, NO_FRACTIONS):
        return node
    cast = "TRY_CAST" if isinstance(node, exp.TryCast) else "CAST"
    kind, value = node.to.sql("spark"), node.this.sql("spark")
    number = f"{cast}({value} AS DOUBLE)"
    return sqlglot.parse_one(
        f"CASE WHEN TYPEOF({value}) IN ('double', 'float') THEN {cast}(RINT({number}) AS {kind}) "
        f"WHEN TYPEOF({value}) LIKE 'decimal%' THEN {cast}(ROUND({number}) AS {kind}) "
        f"ELSE {cast}({value} AS {kind}) END",
        read="spark",
    )


def _call(name: str, operand: exp.Expression, divided: float) -> exp.Expression:
    return sqlglot.parse_one(f"{name}({operand.sql('spark')}) / {divided:.1f}D", read="spark")
