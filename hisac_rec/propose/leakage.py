"""Columns that give the label away: each alone against the label, on a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from hisac_rec.propose import names
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.proposal import Log
from hisac_rec.propose.sqltext import quoted

SAMPLE = 200_000
TELLING = 0.95
"""AUC from which one column alone is taken for the label in disguise."""
CATEGORIES = 50


@dataclass(frozen=True)
class Leak:
    """A column that knows too much."""

    column: str
    auc: float
    equal: bool
    """It takes one value for successes and another for the rest."""


def find_leaks(db: Database, table: str, facts: dict[str, Facts], log: Log) -> list[Leak]:
    """Try each column of the events that has no other role.

    Labels that look ahead (``Log.label.later``) are on other rows, and logs of successes
    alone have nothing to tell apart: for both there is nothing to find.
    """
    label = log.label
    if label.later is not None or label.kind == "none":
        return []
    busy = {*label.columns, *log.user.columns, *log.item.columns, *log.time.columns}
    busy |= set(log.group.columns) if log.group is not None else set()
    tried = [
        fact
        for name, fact in facts.items()
        if name not in busy and fact.distinct > 0 and not fact.is_list
        and (not fact.is_text or fact.distinct <= CATEGORIES or fact.nulls)
    ]  # fmt: skip
    if not tried:
        return []
    values = [f"{_as_number(fact)} AS x{at}" for at, fact in enumerate(tried)]
    inner = [
        f"{sql} AS {quoted(name)}"
        for name, sql in log.columns().items()
        if name not in ("user", "item", "time")
    ]
    where = " AND ".join((*log.conditions, "true"))
    rows = db.arrow(f"""
        SELECT ({label.sql}\n)::DOUBLE AS y, COLUMNS('^x\\d+$') FROM (
            SELECT {", ".join([*inner, *values])} FROM {table} WHERE {where}
        ) WHERE ({label.requests_where}\n) ORDER BY hash(y, x0) LIMIT {SAMPLE}""")
    success = rows["y"].to_numpy() > 0.5
    if success.all() or not success.any():
        return []
    found = []
    for at, fact in enumerate(tried):
        x = rows[f"x{at}"].to_numpy().astype(np.float64)
        auc = _auc(success, x, categories=fact.is_text or fact.distinct <= CATEGORIES)
        if auc >= TELLING:
            found.append(Leak(fact.name, auc, auc >= 1 - 1e-12))
    return found


def _as_number(fact: Facts) -> str:
    column = quoted(fact.name)
    if fact.is_moment:
        return f"epoch({column})"
    if fact.is_number or fact.kind == "BOOLEAN":
        return f"{column}::DOUBLE"
    if fact.distinct <= CATEGORIES:
        return f"(hash({column}::VARCHAR) >> 12)::DOUBLE"
    return f"({column} IS NOT NULL)::INTEGER::DOUBLE"


def _auc(success: np.ndarray, x: np.ndarray, *, categories: bool) -> float:
    """How well the column alone orders successes: by value, by category, or by being there."""
    there = np.isfinite(x)
    best = 0.0
    if 0 < there.sum() < len(x):
        auc = roc_auc_score(success, there)
        best = max(auc, 1 - auc)
    if categories:
        _, code = np.unique(np.where(there, x, -np.inf), return_inverse=True)
        mean = np.bincount(code, success) / np.bincount(code)
        return float(max(best, roc_auc_score(success, mean[code])))
    y = success[there]
    if y.all() or not y.any():
        return float(best)
    auc = roc_auc_score(y, x[there])
    filled = np.where(there, x, np.nanmin(x) - 1)
    whole = roc_auc_score(success, filled)
    return float(max(best, min(max(auc, 1 - auc), max(whole, 1 - whole))))


def known_afterwards(facts: dict[str, Facts], log: Log) -> list[str]:
    """Columns whose names say that they are known only once the event is over."""
    busy = {*log.label.columns, *log.label.others, *log.time.columns}
    return [
        name
        for name, fact in facts.items()
        if name not in busy and (fact.is_number or fact.kind == "BOOLEAN")
        and names.mentions(name, names.AFTER)
    ]  # fmt: skip
