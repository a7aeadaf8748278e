"""The SELECT of events: which column has which role, and which rows are left out."""

from __future__ import annotations

from dataclasses import replace

from hisac_rec.errors import UserError
from hisac_rec.propose import names
from hisac_rec.propose.choice import given
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.labels import choose_label
from hisac_rec.propose.proposal import Log, Options
from hisac_rec.propose.roles import choose_group, choose_ids
from hisac_rec.propose.slates import Slate
from hisac_rec.propose.sqltext import quoted
from hisac_rec.propose.tasks import with_tasks
from hisac_rec.propose.time_column import choose_time

RAW, EVENTS = "looked.raw_events", "looked.events"
"""Tables: the files as they are, and what the SELECT gives."""


def choose_roles(
    db: Database, options: Options, table: RawTable, facts: dict[str, Facts]
) -> tuple[Log, list[str]]:
    """Choose a column for each role.

    Args:
        db: the database, with the files as table ``RAW``.
        options: what is set.
        table: the files.
        facts: their columns.

    Returns:
        The SELECT in parts, and notes on what is out of the ordinary.

    Raises:
        UserError: no column can take a role, or an option names what is not there.
    """
    notes: list[str] = []
    fixed = [
        given(db, RAW, table, role, value, facts).columns
        for role, value in (
            ("user", options.user),
            ("item", options.item),
            ("label", options.label),
        )
        if value is not None
    ]
    busy = {name for columns in fixed for name in columns}
    free = {
        name: fact for name, fact in facts.items() if name not in busy or options.time is not None
    }
    time, moment = choose_time(
        db, RAW, table, free, options.time, options.time_format, options.time_zone
    )
    conditions = [f"({options.where})"] if options.where else []
    if moment.lenient:
        bad = db.rows(
            f"SELECT count(*) FROM {RAW} WHERE {quoted(time.columns[0])} IS NOT NULL "
            f"AND {moment.lenient} IS NULL"
        )[0][0]
        if bad:
            notes.append(f"{bad:,} rows have a time that cannot be read; they are left out")
            moment = replace(moment, sql=moment.lenient)
            conditions.append(f"{moment.sql} IS NOT NULL")
    if not conditions[1:] and time.columns and facts[time.columns[0]].nulls:
        notes.append(f"{facts[time.columns[0]].nulls:,} rows have no time; they are left out")
        conditions.append(f"{quoted(time.columns[0])} IS NOT NULL")
    safe = replace(moment, sql=f"({moment.lenient or moment.sql})")
    taken = [*time.columns, *fixed[-1]] if options.label is not None else [*time.columns]
    if options.group is not None:
        taken += given(db, RAW, table, "group", options.group, facts).columns
    ids = {"user": options.user, "item": options.item}
    order = safe.sql if time.columns else "0"
    user, item = choose_ids(db, RAW, table, facts, ids, order, taken)
    for choice in (user, item):
        if any(facts[name].nulls for name in choice.columns) or not choice.columns:
            conditions.append(f"{choice.sql} IS NOT NULL")
    taken = [*time.columns, *user.columns, *item.columns]
    group = (
        choose_group(db, RAW, facts, taken, user.sql)
        if options.group is None
        else given(db, RAW, table, "group", options.group, facts)
    )
    label = choose_label(
        db, RAW, table, facts, options.label, options.type, list(options.positive),
        options.threshold, [*taken, *(group.columns if group else ())],
        (user.sql, item.sql), order, moment.clock,
    )  # fmt: skip
    label = with_tasks(db, RAW, facts, label)
    if label.kind == "none":
        for name, fact in facts.items():
            negative = fact.is_number and fact.low is not None and fact.low < 0
            if negative and names.score(name, "quantity") >= 2:
                returns = db.rows(f"SELECT count(*) FROM {RAW} WHERE {quoted(name)} <= 0")[0][0]
                notes.append(
                    f"{returns:,} rows with {name} <= 0 (returns, corrections) are left out"
                )
                conditions.append(f"{quoted(name)} > 0")
    return Log(user, item, time, moment, label, group, table, tuple(conditions)), notes


def of_slate(log: Log, slate: Slate) -> Log:
    """Say that item and label came from lists, and not from options."""
    item = replace(log.item, reason=f"what {slate.shown} lists", given=False)
    rate = log.label.reason.rpartition("; ")[2]
    label = replace(log.label, reason=f"it is in {slate.taken}; {rate}", given=False)
    return replace(log, item=item, label=label)


def load_events(db: Database, log: Log, share: float) -> None:
    """The events as ``prepare`` will see them; of a share of the users where there are many.

    Raises:
        UserError: no row is left.
    """
    part = round(1 / share)
    where = f' WHERE hash("user"::VARCHAR) % {part} = 0' if part > 1 else ""
    db.rows(f"CREATE TABLE {EVENTS} AS SELECT * FROM (\n{log.select(RAW)}\n){where}")
    if not db.rows(f"SELECT 1 FROM {EVENTS} LIMIT 1"):
        raise UserError(f"{log.raw.title}: no row has a user, an item and a time")
