"""What a person should know about the log before training on it, each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.figures import Figures
from hisac_rec.propose.leakage import Leak, known_afterwards
from hisac_rec.propose.moments import YEAR_1990, written
from hisac_rec.propose.proposal import Proposal
from hisac_rec.propose.sides import Side

RARE, COMMON = 0.01, 0.95
DAY = 86_400
DISTINCT_ROWS = 10_000_000
"""About as many rows are looked at for repeated ones."""


@dataclass(frozen=True)
class Concern:
    """One warning."""

    code: str
    """A short name, the same in every version."""
    text: str
    """What was found."""
    advice: str
    """What to do."""

    @property
    def line(self) -> str:
        return f"{self.text} -> {self.advice}"


def find_concerns(
    db: Database,
    table: str,
    facts: dict[str, Facts],
    proposal: Proposal,
    found: Figures,
    leaks: list[Leak],
) -> list[Concern]:
    """All warnings about a log.

    Args:
        db: the database.
        table: the raw events.
        facts: their columns.
        proposal: what was chosen.
        found: figures of the events.
        leaks: columns that give the label away.
    """
    return [
        *_of_guesses(proposal),
        *_of_label(proposal, found),
        *_of_leakage(facts, proposal, leaks),
        *_of_rows(db, table, facts, proposal, found),
        *_of_time(db, proposal, found),
        *_of_users(proposal, found),
        *_of_side(proposal.items),
        *_of_side(proposal.users),
    ]


def _of_guesses(proposal: Proposal) -> Iterator[Concern]:
    for choice in (proposal.log.user, proposal.log.item):
        if choice.reason.startswith("guessed"):
            other = f" ({', '.join(choice.rivals)} would do, too)" if choice.rivals else ""
            yield Concern(
                "guessed",
                f"the {choice.role} is a guess from content alone: {choice.columns[0]}{other}",
                f"say --{choice.role} COLUMN to settle it",
            )


def _of_label(proposal: Proposal, found: Figures) -> Iterator[Concern]:
    label = proposal.log.label
    if label.kind == "none":
        yield Concern(
            "positives-alone",
            f"{label.reason}: non-events are drawn among popular items ([requests.negatives])",
            "name the column with --label if there is one, or give what was shown in the SELECT; "
            "AUC over drawn non-events compares models, but is not that of a real page",
        )
        return
    rate = found.rate or 0.0
    if rate in (0.0, 1.0):
        yield Concern(
            "label-constant", f"the label is {rate:.0f} for every candidate",
            "choose another --label, --positive or --threshold: there is nothing to tell apart",
        )  # fmt: skip
    elif rate < RARE:
        yield Concern(
            "label-rare", f"{rate:.3%} of the candidates are successes",
            "train on all of them and judge by AUC, not by accuracy; if most negatives were "
            "sampled away elsewhere, probabilities need calibration",
        )  # fmt: skip
    elif rate > COMMON:
        yield Concern(
            "label-common", f"{rate:.1%} of the candidates are successes",
            "see whether failures are logged at all; another --label or --threshold may say more",
        )  # fmt: skip


def _of_leakage(
    facts: dict[str, Facts], proposal: Proposal, leaks: list[Leak]
) -> Iterator[Concern]:
    equal = [leak.column for leak in leaks if leak.equal]
    telling = [leak for leak in leaks if not leak.equal]
    if equal:
        yield Concern(
            "label-copied", f"the label in other words: {', '.join(equal)}",
            "keep these out of features and of history.where",
        )  # fmt: skip
    if telling:
        listed = ", ".join(f"{leak.column} (AUC {leak.auc:.3f})" for leak in telling)
        yield Concern(
            "label-leak", f"these alone tell the label: {listed}",
            "they are known after the event or made from it: keep them out of the features",
        )  # fmt: skip
    told = {leak.column for leak in leaks}
    afterwards = [name for name in known_afterwards(facts, proposal.log) if name not in told]
    if afterwards and proposal.log.label.kind != "none":
        yield Concern(
            "known-afterwards",
            f"known only once the event is over, by their names: {', '.join(afterwards)}",
            "they are not in the definition; do not add them as features",
        )


def _of_rows(
    db: Database, table: str, facts: dict[str, Facts], proposal: Proposal, found: Figures
) -> Iterator[Concern]:
    log = proposal.log
    for choice in (log.user, log.item):
        nulls = sum(facts[name].nulls for name in choice.columns if name in facts)
        if nulls:
            yield Concern(
                f"null-{choice.role}s",
                f"{nulls:,} of {found.rows_read:,} rows have no {choice.role}",
                "they are left out (WHERE in the SELECT)",
            )
    # Repeated rows are of one user: a sample of users has its share of them.
    part = max(1, found.rows_read // DISTINCT_ROWS)
    within = f"hash(({log.user.sql})::VARCHAR) % {part} = 0" if part > 1 else "true"
    sampled = f" (of one user in {part})" if part > 1 else ""
    whole = db.rows(
        f"SELECT count(*) - count(DISTINCT h) FROM (SELECT hash(t) AS h FROM {table} t "
        f"WHERE {within})"
    )[0][0]
    if whole > 0:
        yield Concern(
            "duplicate-rows", f"{whole:,} rows{sampled} repeat another one in every column",
            "if they are logged twice, say SELECT DISTINCT in the definition",
        )  # fmt: skip
    label = log.label
    same = "" if label.type_sql is None else f", ({label.type_sql})"
    apart, rows = (
        db.rows(f"""
        SELECT count(DISTINCT hash({log.user.sql}, {log.item.sql}, {log.moment.sql}{same})),
            count(*) FROM (SELECT DISTINCT * FROM {table} t
            WHERE {" AND ".join((*log.conditions, within))})""")[0]
        if log.time.columns
        else (0, 0)
    )
    if rows - apart > 0:
        yield Concern(
            "duplicate-events",
            f"{rows - apart:,} further rows{sampled} have user, item and time of another one"
            f"{' and its type' if same else ''}",
            "if one happening is logged in several rows, GROUP BY these in the definition",
        )


def _of_time(db: Database, proposal: Proposal, found: Figures) -> Iterator[Concern]:
    moment = proposal.log.moment
    for doubt in moment.doubts:
        yield Concern(
            "time-doubtful",
            f"{proposal.log.time.columns[0]}: {doubt}",
            "look at the file and see that the first and last moment are right",
        )
    if not moment.clock:
        if proposal.log.time.columns or proposal.log.time.sql.startswith("row_number"):
            yield Concern(
                "no-clock", f"the time is {moment.form}",
                "right if only the order within a user is known; else name the time with --time",
            )  # fmt: skip
        return
    if moment.naive:
        yield Concern(
            "time-zone", "times are written without a time zone and are taken for UTC",
            "where they are local, say --time-zone Europe/Berlin (with an area, for summer time)",
        )  # fmt: skip
    if moment.by_day:
        yield Concern(
            "days", "times are days: events of one day do not see each other",
            "use a finer column with --time if there is one",
        )  # fmt: skip
    else:
        days, peak, share = db.rows(f"""
            SELECT sum(days), arg_max(c, n), max(n) / sum(n) FROM (
                SELECT t % {DAY} AS c, count(*) AS n, count(DISTINCT t // {DAY}) AS days
                FROM looked.cut GROUP BY 1)""")[0]
        if days >= 10 and share > 0.2 and found.events >= 100:
            zone = (
                ""
                if peak == 0
                else f", which is midnight {(-peak / 3600 + 12) % 24 - 12:+g} hours from UTC"
            )
            yield Concern(
                "midnight",
                f"{share:.0%} of the events are at {peak // 3600:02d}:{peak // 60 % 60:02d} UTC"
                f"{zone}: dates without a time of day",
                "their order within a day is unknown: events of one moment do not see each other",
            )
    now = int(datetime.now(UTC).timestamp()) + DAY
    early, late = db.rows(
        f"SELECT count(*) FILTER (t < {YEAR_1990}), count(*) FILTER (t > {now}) FROM looked.cut"
    )[0]
    if early:
        yield Concern(
            "before-1990", f"{early:,} events are before 1990, the first {written(found.first)}",
            "often a 0 in place of an unknown time: leave them out with --where",
        )  # fmt: skip
    if late:
        yield Concern(
            "future", f"{late:,} events lie in the future, the last {written(found.last)}",
            "a wrong unit or clock: leave them out with --where",
        )  # fmt: skip


def _of_users(proposal: Proposal, found: Figures) -> Iterator[Concern]:
    median, _, most = found.per_user
    if found.single_users > 0.8:
        yield Concern(
            "single-users", f"{found.single_users:.0%} of the users have one event",
            "is this column the user, not the session or the row? name it with --user",
        )  # fmt: skip
    elif median < 3:
        yield Concern(
            "short", f"half of the users have at most {median} events",
            "a history method has little to read here; compare with models/no_history.toml",
        )  # fmt: skip
    if found.single_items > 0.8:
        yield Concern(
            "single-items", f"{found.single_items:.0%} of the items have one event",
            "is this column the item, not a row or request? name it with --item",
        )  # fmt: skip
    name, events = found.busiest
    if found.users >= 10 and events > 0.05 * found.events and events > 20 * max(median, 1):
        yield Concern(
            "one-user", f"user {name} has {events / found.events:.0%} of all events ({events:,})",
            "a robot, a shared account or a stand-in for nobody: leave it out with --where",
        )  # fmt: skip
    elif most > 20_000:
        yield Concern(
            "long", f"the longest user has {most:,} events",
            "cap what is stored with history.max_length if memory of the loader matters",
        )  # fmt: skip
    if found.ties > 0.3 and proposal.group != "request" and not proposal.log.moment.by_day:
        yield Concern(
            "ties", f"{found.ties:.0%} of the events share their user and time with another one",
            "they do not see each other; where an order is known, make it part of the time",
        )  # fmt: skip
    test = found.splits["test"]
    if test.new_users > 0.5 and found.single_users <= 0.8:
        yield Concern(
            "new-users",
            f"{test.new_users:.0%} of the test candidates are of users new since training",
            "set [split] by = \"user_fraction\" to judge what histories are worth",
        )  # fmt: skip
    if test.new_items > 0.5 and found.single_items <= 0.8:
        yield Concern(
            "new-items",
            f"{test.new_items:.0%} of the test candidates are items new since training",
            "give text or content (--items): codes from it are all that is known of them",
        )  # fmt: skip


def _of_side(side: Side | None) -> Iterator[Concern]:
    if side is None:
        return
    if side.duplicates:
        yield Concern(
            f"{side.side}-rows-repeated",
            f"{side.duplicates:,} rows of the {side.side}s repeat an id",
            "the first in order is taken (QUALIFY in the SELECT); mend the file if it is wrong",
        )
    if side.coverage < 0.9:
        yield Concern(
            f"{side.side}s-missing",
            f"{1 - side.coverage:.0%} of the events' {side.side}s have no row in their file",
            "see that both files write ids alike (leading zeros, prefixes)",
        )
    ids = [name for name, why in side.dropped if why.endswith("nothing to learn from")]
    if ids and not side.of_events:
        yield Concern(
            f"{side.side}-ids", f"nearly a value a row: {', '.join(ids)}",
            "they are left out; an embedding row that one entity uses learns nothing",
        )  # fmt: skip
    sums = [name for name, why in side.dropped if "leakage" in why]
    if sums:
        listed = ", ".join(sums[:6]) + (f" and {len(sums) - 6} more" if len(sums) > 6 else "")
        yield Concern(
            f"{side.side}-sums", f"columns that sum up behaviour: {listed}",
            "they are left out: add one only if it is of the time before training ends",
        )  # fmt: skip
