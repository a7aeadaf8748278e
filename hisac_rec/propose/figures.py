"""Figures of the events that a definition gives: what a person checks before anything else."""

from __future__ import annotations

from dataclasses import dataclass

from hisac_rec.data.contract import SPLITS
from hisac_rec.propose.database import Database
from hisac_rec.propose.proposal import Split


@dataclass(frozen=True)
class OfSplit:
    """Candidates of one split."""

    candidates: int
    rate: float | None
    """Mean label."""
    new_users: float
    """Share of the candidates whose user has no event in the training period."""
    new_items: float
    """Share of the candidates whose item has no event in the training period."""


@dataclass(frozen=True)
class Figures:
    """Of all events, or of the sample that is looked at."""

    rows_read: int
    events: int
    share: float
    """Share of the users that is looked at; 1: all."""
    users: int
    items: int
    first: int
    last: int
    per_user: tuple[int, int, int]
    """Events per user: median, 95 %, most."""
    per_item: tuple[int, int, int]
    rate: float | None
    """Mean label of all candidates."""
    splits: dict[str, OfSplit]
    single_users: float
    """Share of users with one event."""
    single_items: float
    busiest: tuple[str, int]
    """The user with the most events, and how many."""
    ties: float
    """Share of events that share user and time with another one."""

    @property
    def whole(self) -> bool:
        """Every split has candidates."""
        return all(one.candidates for one in self.splits.values())


def add_split(db: Database, events: str, split: Split, where: str, label: str) -> None:
    """Add to the events which split they are in, whether candidates, and their label."""
    if split.by == "time":
        part = f"(time >= {split.valid_from})::INTEGER + (time >= {split.test_from})::INTEGER"
    else:
        part = "(k >= 0.8 * n)::INTEGER + (k >= 0.9 * n)::INTEGER"
    db.rows(f"""
        CREATE OR REPLACE TABLE looked.cut AS
        SELECT "user"::VARCHAR AS u, item::VARCHAR AS i, time AS t, ({part}) AS part,
            coalesce(({where}\n), false) AS candidate, ({label}\n)::DOUBLE AS label
        FROM (
            SELECT *, row_number() OVER (PARTITION BY "user" ORDER BY time) - 1 AS k,
                count(*) OVER (PARTITION BY "user") AS n
            FROM {events}
        )""")


def figures(db: Database, rows_read: int, share: float) -> Figures:
    """Measure the table that :func:`add_split` made."""
    events, users, items, first, last = db.rows(
        "SELECT count(*), count(DISTINCT u), count(DISTINCT i), min(t), max(t) FROM looked.cut"
    )[0]
    sizes = {}
    for name in ("u", "i"):
        sizes[name] = db.rows(
            "SELECT quantile_disc(n, 0.5), quantile_disc(n, 0.95), max(n), avg((n = 1)::INTEGER), "
            f"arg_max({name}, (n, {name})) "
            f"FROM (SELECT {name}, count(*) AS n FROM looked.cut GROUP BY 1)"
        )[0]
    splits = {}
    for index, split in enumerate(SPLITS):
        n, rate, new_users, new_items = db.rows(f"""
            SELECT count(*), avg(label),
                avg((u NOT IN (SELECT u FROM looked.cut WHERE part = 0))::INTEGER),
                avg((i NOT IN (SELECT i FROM looked.cut WHERE part = 0))::INTEGER)
            FROM looked.cut WHERE candidate AND part = {index}""")[0]
        splits[split] = OfSplit(n, rate, float(new_users or 0), float(new_items or 0))
    ties = db.rows(
        "SELECT coalesce(sum(n) FILTER (n > 1), 0) / sum(n) FROM "
        "(SELECT count(*) AS n FROM looked.cut GROUP BY u, t)"
    )[0][0]
    rate = db.rows("SELECT avg(label) FROM looked.cut WHERE candidate")[0][0]
    return Figures(
        rows_read, events, share, users, items, first, last,
        tuple(sizes["u"][:3]), tuple(sizes["i"][:3]), rate, splits,  # type: ignore[arg-type]
        float(sizes["u"][3]), float(sizes["i"][3]), (sizes["u"][4], sizes["u"][2]), float(ties),
    )  # fmt: skip
