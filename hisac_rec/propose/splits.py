"""Where a log is cut into train, valid and test."""

from __future__ import annotations

from hisac_rec.errors import UserError
from hisac_rec.propose.database import Database
from hisac_rec.propose.events import EVENTS
from hisac_rec.propose.figures import Figures, add_split, figures
from hisac_rec.propose.proposal import Log, Split

SEEN_ENOUGH = 0.3
"""Share of test candidates by users known from training below which time is no good split."""


def choose_split(db: Database, log: Log, rows: int, share: float) -> tuple[Split, Figures]:
    """By time where users come back, else by each user's own order.

    Raises:
        UserError: either leaves a split without candidates.
    """
    where, label = log.label.requests_where, log.label.sql
    why = "each user's events by rank: 80 % train, 10 % valid, 10 % test"
    moments = _moments(db, where) if log.moment.clock else None
    by_time = found_by_time = None
    if moments is not None:
        by_time = Split("time", "by time, at the 80 and 90 % quantiles of the candidates", *moments)
        add_split(db, EVENTS, by_time, where, label)
        found_by_time = figures(db, rows, share)
        new_users = found_by_time.splits["test"].new_users
        if not found_by_time.whole:
            by_time = None
        elif 1 - new_users >= SEEN_ENOUGH:
            return by_time, found_by_time
        else:
            why += (
                f" (cut by time, {new_users:.0%} of the test candidates would be of users whom "
                "training never saw)"
            )
    by_rank = Split("user_fraction", why)
    add_split(db, EVENTS, by_rank, where, label)
    found = figures(db, rows, share)
    if found.whole:
        return by_rank, found
    if by_time is None or found_by_time is None:
        counts = ", ".join(f"{name} {one.candidates:,}" for name, one in found.splits.items())
        raise UserError(
            f"{log.raw.title}: too few candidates to split ({found.users:,} users, "
            f"{found.events:,} events; by rank: {counts}): give more events, or see that "
            "--user, --time and --where are right"
        )
    add_split(db, EVENTS, by_time, where, label)
    return by_time, found_by_time


def _moments(db: Database, where: str) -> tuple[int, int] | None:
    """Where valid and test begin; None where time cannot tell them apart."""
    low, high, first, last = db.rows(
        f"SELECT quantile_disc(time, 0.8), quantile_disc(time, 0.9), min(time), max(time) "
        f"FROM {EVENTS} WHERE ({where}\n)"
    )[0]
    if low is None:
        return None
    low, high = _rounded(low, high, first, last)
    return (low, high) if first < low < high <= last else None


def _rounded(low: int, high: int, first: int, last: int) -> tuple[int, int]:
    """Both moments at a full day or hour (UTC) where the log is long enough for it."""
    for unit, needed in ((86_400, 60), (3_600, 60)):
        if last - first >= needed * unit:
            near = [round(value / unit) * unit for value in (low, high)]
            if first < near[0] < near[1] <= last:
                return near[0], near[1]
    return low, high
