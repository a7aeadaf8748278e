"""Further labels beside the main one: other flags of the log become tasks."""

from __future__ import annotations

from dataclasses import replace

from hisac_rec.data.contract import MAIN_TASK
from hisac_rec.propose import names
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.labels import Label
from hisac_rec.propose.sqltext import quoted

MOST = 6
RAREST = 0.001
"""Share of successes (or of the rest) below which a flag is no task."""


def with_tasks(db: Database, table: str, facts: dict[str, Facts], label: Label) -> Label:
    """The label with the other flags that say something of their own.

    Args:
        db: the database.
        table: the raw table.
        facts: its columns.
        label: the main label; of another kind than "flag" it stays as it is.
    """
    if label.kind != "flag":
        return label
    told = [_number(facts[name]) for name in label.columns if facts[name].is_flag]
    tasks: list[tuple[str, str]] = []
    selected = list(label.selected)
    for other in label.others:
        fact = facts[other]
        if not fact.is_flag or fact.nulls or len(tasks) == MOST:
            continue
        value = _number(fact)
        equal = "".join(f", bool_and({value} IS NOT DISTINCT FROM {one})" for one in told)
        rate, *copies = db.rows(f"SELECT avg({value}){equal} FROM {table}")[0]
        if any(copies) or not RAREST <= rate <= 1 - RAREST:
            continue
        column = names.slug(other)
        task = column.removeprefix("is_")
        if task in (MAIN_TASK, *(name for name, _ in tasks)) or column in dict(selected):
            continue
        told.append(value)
        boolean = fact.kind == "BOOLEAN"
        tasks.append((task, quoted(column) if boolean else f"{quoted(column)} = 1"))
        selected.append((column, quoted(other)))
    return replace(label, tasks=tuple(tasks), selected=tuple(selected))


def _number(fact: Facts) -> str:
    return f"{quoted(fact.name)}::INTEGER"
