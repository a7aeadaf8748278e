"""What counts as success: a flag, a rating, an event type, or nothing but success."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.preparation.sql import text
from hisac_rec.propose import names
from hisac_rec.propose.choice import Choice, given
from hisac_rec.propose.database import Database
from hisac_rec.propose.event_types import (
    SHOWN,
    WEAK,
    find_type_column,
    folded_type,
    has_success,
    strength,
)
from hisac_rec.propose.facts import YES, Facts
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.sqltext import quoted

ANSWERS = frozenset({"correct", "answer", "answered", "response", "outcome", "grade", "right"})
FOLLOWS_WITHIN = 1800
"""Seconds in which success on the same item counts as the outcome of a view."""


@dataclass(frozen=True)
class Label:
    """The label, and what follows from it for histories and candidates."""

    kind: str
    """flag, rating, type, follows, expression or none."""
    sql: str
    """requests.label, over the columns of ``source.events``."""
    reason: str
    columns: tuple[str, ...] = ()
    """Raw columns behind it."""
    selected: tuple[tuple[str, str], ...] = ()
    """Columns of ``source.events`` that it needs: (name, SQL over the raw table)."""
    type_sql: str | None = None
    """Column ``type`` over the raw table."""
    history_where: str = "true"
    requests_where: str = "true"
    later: str | None = None
    """SQL over ``source.events`` that looks ahead in time, for kind follows."""
    impressions: bool = False
    """Candidates were shown, most of them without success."""
    others: tuple[str, ...] = ()
    """Other columns that could be the label."""
    given: bool = False
    tasks: tuple[tuple[str, str], ...] = ()
    """Further labels: (name, SQL over ``source.events``)."""


def choose_label(
    db: Database,
    table: str,
    raw: RawTable,
    facts: dict[str, Facts],
    option: str | None,
    type_option: str | None,
    positive: list[str] | None,
    threshold: float | None,
    taken: Iterable[str],
    ids: tuple[str, str],
    time: str,
    clock: bool,
) -> Label:
    """Choose the label.

    Args:
        db: the database.
        table: the raw table.
        raw: its files.
        facts: its columns.
        option: ``--label``.
        type_option: ``--type``.
        positive: ``--positive``: event types that are success.
        threshold: ``--threshold``: least rating that is success.
        taken: columns with another role.
        ids: SQL of user and item.
        time: SQL of the time.
        clock: times are seconds.

    Raises:
        UserError: an option names what is not there.
    """
    busy = set(taken)
    kind = find_type_column(raw, facts, type_option, busy, explicit=bool(positive))
    if option is not None:
        choice = given(db, table, raw, "label", option, facts)
        if choice.is_column:
            fact = facts[choice.columns[0]]
            found = _of_column(db, table, fact, threshold, "--label says so")
            if found is None and kind is None and fact.is_text:
                kind, option = fact.name, None
            elif found is None:
                raise UserError(
                    f"{raw.title}: --label {option}: {fact.distinct:,} different values "
                    "are neither yes and no nor a rating; give an SQL expression such as "
                    f"'{choice.sql} > 3'"
                )
            else:
                return _with_type(found, kind, given_by_option=True)
        else:
            return Label(
                "expression", "label", "--label says so", choice.columns,
                selected=(("label", choice.sql),),
                type_sql=None if kind is None else f"{quoted(kind)}::VARCHAR",
                history_where="label > 0" if not _boolean(db, table, choice.sql) else "label",
                given=True,
            )  # fmt: skip
    if kind is not None and (positive or has_success(facts[kind])):
        return _of_types(db, table, raw, facts[kind], positive, ids, time, clock)
    ranked = []
    for name, fact in facts.items():
        if name in busy or name == kind or fact.distinct < 2 or fact.nulls > 0.9 * fact.rows:
            continue
        points = names.score(name, "label") + (0.6 if name.lower().startswith("is_") else 0)
        points -= 2.0 if names.mentions(name, names.BEHAVIOUR | names.NOT_TIME) else 0
        if not (fact.is_flag or fact.is_yes_no):
            points += 0.0 if _rating(fact) else -9.0
            points = (
                max(points, 0.9) if _rating(fact) and names.tokens(name) == ["column"] else points
            )
        ranked.append((points, name))
    ranked.sort(key=lambda one: -one[0])
    best = [(points, name) for points, name in ranked if points >= 0.9]
    if not best:
        return Label("none", "true", "no column says whether an event was a success")
    points, name = best[0]
    said = "the name says so" if points >= 1.5 else "guessed"
    found = _of_column(db, table, facts[name], threshold, said)
    assert found is not None
    others = tuple(other for _, other in best[1:])
    return _with_type(found, kind, others=others)


def _with_type(
    label: Label, kind: str | None, others: tuple[str, ...] = (), given_by_option: bool = False
) -> Label:
    own = label.type_sql if kind is None else f"{quoted(kind)}::VARCHAR"
    return Label(**{**label.__dict__, "type_sql": own, "others": others, "given": given_by_option})


def _boolean(db: Database, table: str, sql: str) -> bool:
    return bool(db.rows(f"DESCRIBE SELECT ({sql}\n) AS v FROM {table}")[0][1] == "BOOLEAN")


def _rating(fact: Facts) -> bool:
    return bool(fact.is_number and 3 <= fact.distinct <= 101 and fact.low is not None
                and fact.low >= 0 and (fact.high or 0) <= 100)  # fmt: skip


def _of_column(
    db: Database, table: str, fact: Facts, threshold: float | None, said: str
) -> Label | None:
    column, name = quoted(fact.name), names.slug(fact.name)
    name = name if name not in ("user", "item", "time", "type", "sequence") else f"{name}_label"
    out = quoted(name)
    where = "true" if not fact.nulls else f"{out} IS NOT NULL"
    if fact.is_yes_no:
        words = ", ".join(text(word) for word in sorted(YES))
        column = f"lower(trim({column})) IN ({words})"
        sql, form = out, "yes or no in words"
    elif fact.is_flag:
        sql, form = (out, "true or false") if fact.kind == "BOOLEAN" else (f"{out} = 1", "0 or 1")
    elif fact.is_number and fact.distinct >= 2 and (_rating(fact) or threshold is not None):
        return _of_rating(db, table, fact, out, threshold, said, where)
    else:
        return None
    raw = f"({column})::INTEGER" if sql == out else column
    rate = float(db.rows(f"SELECT avg({raw}) FROM {table}")[0][0] or 0)
    answer = names.mentions(fact.name, ANSWERS) or rate >= 0.7
    return Label(
        "flag", sql, f"{said}; {form}, true for {rate:.1%}", (fact.name,), ((name, column),),
        type_sql=f"CASE WHEN {raw} = 1 THEN 'yes' ELSE 'no' END" if answer else None,
        history_where="true" if answer else sql if not fact.nulls else f"{where} AND {sql}",
        requests_where=where, impressions=not answer and rate < 0.5,
    )  # fmt: skip


def _of_rating(
    db: Database,
    table: str,
    fact: Facts,
    out: str,
    threshold: float | None,
    said: str,
    where: str,
) -> Label:
    """Success is a rating of at least the value that splits the log most evenly."""
    column = quoted(fact.name)
    counts = db.rows(
        f"SELECT {column}::DOUBLE, count(*) FROM {table} WHERE {column} IS NOT NULL "
        "GROUP BY 1 ORDER BY 1 DESC"
    )
    total, above = sum(n for _, n in counts), 0
    shares: dict[float, float] = {}
    for value, n in counts:
        above += n
        shares[value] = above / total
    if threshold is None:
        threshold = min(
            list(shares)[:-1] or list(shares), key=lambda value: abs(shares[value] - 0.5)
        )
        why = "the threshold that splits the log most evenly"
    else:
        why = "--threshold says so"
    rate = sum(n for value, n in counts if value >= threshold) / total
    sql = f"{out} >= {threshold:g}"
    short = fact.distinct <= 20
    return Label(
        "rating", sql, f"{said}; {fact.low:g} to {fact.high:g} like a rating; at least "
        f"{threshold:g} counts as success: {rate:.1%} ({why})",
        (fact.name,), ((out.strip('"'), column),),
        type_sql=f"'{names.slug(fact.name)} ' || {column}" if short else None,
        history_where=sql, requests_where=where,
    )  # fmt: skip


def _of_types(
    db: Database,
    table: str,
    raw: RawTable,
    fact: Facts,
    positive: list[str] | None,
    ids: tuple[str, str],
    time: str,
    clock: bool,
) -> Label:
    column = quoted(fact.name)
    values = [str(value) for value in fact.values]
    if positive:
        for value in positive:
            if value not in values:
                hint = did_you_mean(value, values)
                raise UserError(f"{raw.title}: --positive {value}: not in column {fact.name}{hint}")
        won, said = list(positive), "--positive says so"
    else:
        best = min(strength(value) for value in values)
        won = sorted(value for value in values if strength(value) == best)
        said = "the strongest kind of event there is"
    lost = sorted(set(values) - set(won))
    in_won = f"type IN ({', '.join(text(value) for value in won)})"
    weakest = [value for value in lost if folded_type(value) in WEAK] or lost
    shown = [value for value in weakest if folded_type(value) in SHOWN]
    history = "true" if not shown else f"type NOT IN ({', '.join(text(v) for v in shown)})"
    raw_won = f"{column}::VARCHAR IN ({', '.join(text(value) for value in won)})"
    raw_weak = f"{column}::VARCHAR IN ({', '.join(text(value) for value in weakest)})"
    type_sql = f"{column}::VARCHAR"
    rate = float(db.rows(f"SELECT avg(({raw_won})::INTEGER) FROM {table}")[0][0] or 0)
    if not lost:
        return Label("none", "true", f"every event of {fact.name} is a success", (fact.name,),
                     type_sql=type_sql)  # fmt: skip
    if clock:
        user, item = ids
        after, before, outcome = db.rows(f"""
            SELECT count(*) FILTER (won AND seen), count(*) FILTER (won),
                avg(follows::INTEGER) FILTER (weak)
            FROM (
                SELECT won, weak,
                    coalesce(bool_or(weak) OVER (w RANGE BETWEEN {FOLLOWS_WITHIN} PRECEDING
                        AND CURRENT ROW), false) AS seen,
                    coalesce(bool_or(won) OVER (w RANGE BETWEEN CURRENT ROW
                        AND {FOLLOWS_WITHIN} FOLLOWING), false) AS follows
                FROM (SELECT {user} AS u, {item} AS i, {time} AS t, {raw_won} AS won,
                    {raw_weak} AS weak FROM {table} WHERE {time} IS NOT NULL)
                WINDOW w AS (PARTITION BY u, i ORDER BY t)
            )""")[0]
        if before and after >= 0.5 * before:
            return Label(
                "follows", "success",
                f"{said} ({', '.join(won)}); {after / before:.0%} of them follow within "
                f"{FOLLOWS_WITHIN // 60} minutes on {', '.join(weakest)} of the same item, so the "
                f"candidates are these and the label is whether success follows: {outcome:.1%}",
                (fact.name,), type_sql=type_sql, history_where=history,
                requests_where=f"type IN ({', '.join(text(value) for value in weakest)})",
                later=f'coalesce(bool_or({in_won}) OVER (PARTITION BY "user", item ORDER BY time\n'
                f"        RANGE BETWEEN CURRENT ROW AND {FOLLOWS_WITHIN} FOLLOWING), false)",
                impressions=True,
            )  # fmt: skip
    return Label(
        "type", in_won, f"{said} ({', '.join(won)} against {', '.join(lost)}): {rate:.1%}",
        (fact.name,), type_sql=type_sql, history_where=history, impressions=rate < 0.5,
    )  # fmt: skip


def label_choice(label: Label) -> Choice:
    """The label as a choice, to be shown beside the others."""
    return Choice("label", label.sql, label.columns, label.reason, label.given, label.others)
