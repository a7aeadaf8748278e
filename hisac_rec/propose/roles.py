"""Which column is the user, the item, the request: by name and by content."""

from __future__ import annotations

from collections.abc import Iterable

from hisac_rec.errors import UserError
from hisac_rec.propose import names
from hisac_rec.propose.choice import CLEAR, NEAR, Choice, given, id_sql
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.sqltext import quoted


def choose_ids(
    db: Database,
    table: str,
    raw: RawTable,
    facts: dict[str, Facts],
    options: dict[str, str | None],
    time: str,
    taken: Iterable[str],
) -> tuple[Choice, Choice]:
    """The columns of user and item.

    Args:
        db: the database.
        table: the raw table.
        raw: its files, for messages.
        facts: its columns.
        options: "user" and "item" where the command line sets them.
        time: SQL of the time.
        taken: columns with another role already.

    Raises:
        UserError: there are no two columns that can be ids.
    """
    chosen: dict[str, Choice] = {}
    busy = set(taken)
    for role in ("user", "item"):
        option = options[role]
        if option is not None:
            choice = given(db, table, raw, role, option, facts)
            if choice.is_column:
                choice = _checked(raw, choice, facts[choice.columns[0]])
            chosen[role] = choice
            busy.update(choice.columns)
    wanted = [role for role in ("user", "item") if role not in chosen]
    free = {name: fact for name, fact in facts.items() if name not in busy and fact.can_be_id}
    for role in wanted:
        ranked = sorted(
            ((names.score(name, role) - _unfit(fact), name) for name, fact in free.items()),
            key=lambda one: -one[0],
        )
        if ranked and ranked[0][0] >= CLEAR:
            points, name = ranked[0]
            rivals = tuple(other for score, other in ranked[1:] if points - score < NEAR)
            reason = f"the name says so; {facts[name].distinct:,} different values"
            chosen[role] = Choice(role, id_sql(facts[name]), (name,), reason, rivals=rivals)
            del free[name]
    missing = [role for role in wanted if role not in chosen]
    if missing:
        chosen.update(_by_content(db, table, raw, free, missing, time))
    return chosen["user"], chosen["item"]


def _checked(raw: RawTable, choice: Choice, fact: Facts) -> Choice:
    if fact.is_number and not fact.whole:
        raise UserError(f"{raw.title}: --{choice.role} {fact.name}: has fractions, so it is no id")
    if fact.is_list or fact.is_moment or not fact.distinct:
        raise UserError(
            f"{raw.title}: --{choice.role} {fact.name}: {fact.kind} with {fact.distinct:,} "
            "different values cannot be an id; whole numbers or text can"
        )
    return Choice(choice.role, id_sql(fact), choice.columns, choice.reason, given=True)


def _unfit(fact: Facts) -> float:
    """Points off an id's score for what its content says against it."""
    off = 1.5 * fact.nulls / fact.rows
    off += 1.5 if fact.distinct < 2 else 0
    off += 1.0 if fact.distinct >= 0.95 * fact.filled and fact.filled > 20 else 0
    return off + (1.0 if fact.is_flag else 0)


def _by_content(
    db: Database, table: str, raw: RawTable, free: dict[str, Facts], missing: list[str], time: str
) -> dict[str, Choice]:
    """Roles whose column no name tells: ids repeat, and users come in bursts."""
    likely = sorted(
        (
            fact
            for fact in free.values()
            if fact.distinct >= max(3, min(20, fact.rows // 20)) and fact.distinct < 0.9 * fact.rows
        ),
        key=lambda fact: -fact.distinct,
    )[:4]
    if len(likely) < len(missing):
        first = missing[0]
        raise raw.no_column(
            f"no column looks like the {' or the '.join(missing)}",
            " and ".join(f"--{role} COLUMN" for role in missing)
            + f" (--{first} takes an SQL expression, too)",
        )
    gaps = {fact.name: _median_gap(db, table, fact, time) for fact in likely}
    order = sorted(likely, key=lambda fact: (gaps[fact.name], -fact.distinct))
    found: dict[str, Choice] = {}
    if "user" in missing:
        fact = order[0]
        reason = (
            f"guessed: whole numbers or text that repeat, {fact.distinct:,} different, and events "
            f"of one value follow each other closest (median {gaps[fact.name]:,.0f})"
        )
        others = tuple(other.name for other in order[1:])
        found["user"] = Choice("user", id_sql(fact), (fact.name,), reason, rivals=others)
        likely.remove(fact)
    if "item" in missing:
        fact = likely[0]
        reason = f"guessed: the most different values of what is left ({fact.distinct:,})"
        others = tuple(other.name for other in likely[1:])
        found["item"] = Choice("item", id_sql(fact), (fact.name,), reason, rivals=others)
    return found


def _median_gap(db: Database, table: str, fact: Facts, time: str) -> float:
    """Median time between consecutive events of one value, over a sample of values."""
    column = quoted(fact.name)
    part = max(1, fact.distinct // 500)
    gap = db.rows(f"""
        SELECT median(gap) FROM (
            SELECT t - lag(t) OVER (PARTITION BY v ORDER BY t) AS gap FROM (
                SELECT {column} AS v, {time} AS t FROM {table}
                WHERE hash({column}::VARCHAR) % {part} = 0
            )
        )""")[0][0]
    return float("inf") if gap is None else float(gap)


def choose_group(
    db: Database,
    table: str,
    facts: dict[str, Facts],
    taken: Iterable[str],
    user: str,
) -> Choice | None:
    """A column whose equal values within a user make one request: session, basket, page view."""
    busy = set(taken)
    ranked = sorted(
        (
            (names.score(name, "group"), name)
            for name, fact in facts.items()
            if name not in busy and fact.can_be_id and not fact.is_flag and fact.distinct > 1
        ),
        key=lambda one: (-one[0], -facts[one[1]].distinct),
    )
    for points, name in ranked:
        if points < CLEAR:
            return None
        column = quoted(name)
        groups, mixed = db.rows(f"""
            SELECT count(*), count(*) FILTER (users > 1) FROM (
                SELECT count(DISTINCT {user}) AS users FROM {table}
                WHERE {column} IS NOT NULL AND {user} IS NOT NULL GROUP BY {column}
            )""")[0]
        filled = facts[name].filled
        if (
            groups
            and mixed <= 0.05 * groups
            and filled / groups >= 1.2
            and filled >= 0.9 * facts[name].rows
        ):
            reason = f"the name says so; {filled / groups:.1f} events each, nearly all of one user"
            return Choice("group", column, (name,), reason)
    return None
