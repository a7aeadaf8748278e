"""Which column holds the time of an event, or the order of events."""

from __future__ import annotations

from hisac_rec.errors import UserError
from hisac_rec.propose import names
from hisac_rec.propose.choice import NEAR, Choice, given, id_sql
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.moments import Moment, recognise
from hisac_rec.propose.sqltext import quoted


def choose_time(
    db: Database,
    table: str,
    raw: RawTable,
    facts: dict[str, Facts],
    option: str | None,
    form: str | None,
    zone: str | None,
) -> tuple[Choice, Moment]:
    """The column of the events' time.

    Raises:
        UserError: no column can be one, or the option's is none.
    """
    if option is not None:
        if option.lower() == "lines":
            sql = "row_number() OVER ()"
            moment = Moment(sql, "the order of the lines in the file", clock=False)
            return Choice("time", sql, (), "--time lines says so", given=True), moment
        choice = given(db, table, raw, "time", option, facts)
        if choice.is_column:
            fact = facts[choice.columns[0]]
            known = recognise(db, table, fact, choice.sql, zone, form)
            if known is None and fact.is_number and fact.whole:
                known = Moment(id_sql(fact), "an order", clock=False)
            if known is None:
                raise UserError(
                    f"{raw.title}: --time {option}: {fact.kind} values such as "
                    f"{', '.join(map(repr, fact.values[:3])) or fact.low} are not understood as "
                    "times; give --time-format, or an SQL expression that gives seconds"
                )
            return choice, known
        kind = db.rows(f"DESCRIBE SELECT ({option}\n) AS v FROM {table}")[0][1]
        wrapped = f"({option})"
        moment_sql = (
            f"floor(epoch({wrapped}))::BIGINT"
            if kind.startswith(("TIMESTAMP", "DATE"))
            else f"floor({wrapped})::BIGINT"
        )
        low = db.rows(f"SELECT min({moment_sql}) FROM {table}")[0][0]
        return choice, Moment(moment_sql, "an expression", clock=low is not None and low > 10**8)
    scored: list[tuple[float, str, Moment]] = []
    for name, fact in facts.items():
        if not fact.filled or fact.distinct < 2:
            continue
        found = recognise(db, table, fact, quoted(name), zone, form)
        if found is None:
            continue
        points = names.score(name, "time") + (1.0 if fact.is_moment or fact.is_text else 0.5)
        points -= 2.5 if names.mentions(name, names.NOT_TIME) else 0
        points -= 1.0 if found.by_day else 0
        points -= 3.0 * fact.nulls / fact.rows
        points += min(1.0, fact.distinct / fact.rows)
        scored.append((points, name, found))
    if not scored:
        return _order(raw, facts)
    scored.sort(key=lambda one: -one[0])
    _, name, moment = scored[0]
    rivals = tuple(other for points, other, _ in scored[1:] if scored[0][0] - points < NEAR)
    reason = f"{moment.form}{' and the name says so' if names.score(name, 'time') else ''}"
    return Choice("time", moment.sql, (name,), reason, rivals=rivals), moment


def _order(raw: RawTable, facts: dict[str, Facts]) -> tuple[Choice, Moment]:
    """No clock: a column that orders the events, if its name says so."""
    ordered = [
        (names.score(name, "time"), name)
        for name, fact in facts.items()
        if fact.is_number
        and fact.whole
        and fact.distinct > 2
        and not names.mentions(name, names.NOT_TIME)
    ]
    best = max(ordered, default=(0.0, ""))
    if best[0] < 1.0:
        raise raw.no_column(
            "no column holds times or an order of events",
            "--time COLUMN (or an SQL expression that gives seconds), or --time lines where the "
            "lines are in the order in which things happened",
        )
    name = best[1]
    moment = Moment(id_sql(facts[name]), "whole numbers that are no clock: an order", clock=False)
    return Choice("time", moment.sql, (name,), moment.form), moment
