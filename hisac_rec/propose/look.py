"""The whole way from files to a proposal that ``prepare`` accepts."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from hisac_rec.data.contract import Manifest
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.propose import names, sides
from hisac_rec.propose.check import prepare_sample
from hisac_rec.propose.concerns import Concern, find_concerns
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts, measure
from hisac_rec.propose.figures import Figures, add_split, figures
from hisac_rec.propose.files import RawTable, common_folder, take_in
from hisac_rec.propose.labels import choose_label
from hisac_rec.propose.leakage import find_leaks
from hisac_rec.propose.proposal import Log, Negatives, Options, Proposal, Split, sized_codes
from hisac_rec.propose.roles import choose_group, choose_ids, choose_time, given
from hisac_rec.propose.sides import Side
from hisac_rec.propose.slates import SHOWN, TAKEN, Slate, find_slate, unnested
from hisac_rec.propose.sqltext import quoted
from hisac_rec.propose.tasks import with_tasks
from hisac_rec.propose.writing import as_toml, read_back

RAW, EVENTS = "looked.raw_events", "looked.events"
LOOKED_EVENTS = 20_000_000
"""Beyond about this many events figures are those of a sample of users."""
HALF_HOUR, MONTH = 1_800, 2_592_000
PER_POSITIVE = 4
SEEN_ENOUGH = 0.3
"""Share of test candidates by users known from training below which time is no good split."""


@dataclass(frozen=True)
class Looked:
    """What the command shows and writes."""

    proposal: Proposal
    facts: dict[str, Facts]
    figures: Figures
    concerns: list[Concern]
    text: str
    """The definition file."""
    definition: DatasetDefinition
    manifest: Manifest
    """Of the sample that was prepared."""
    one_in: int
    """Users of the sample: one of so many."""


def propose(
    options: Options,
    out: Path,
    scratch: Path,
    *,
    memory_limit: str = "4GB",
    threads: int | None = None,
) -> Looked:
    """Look at raw files and propose a definition.

    Args:
        options: the files and what is set for them.
        out: where the definition will be written, for its name.
        scratch: folder for the database and the prepared sample.
        memory_limit: of DuckDB.
        threads: of DuckDB; None: one per core.

    Raises:
        UserError: files cannot be read, no column can take a role, an option names what is
            not there, or the definition does not prepare.
    """
    extra = [path for path in (options.items, options.users) if path is not None]
    raw = common_folder([*options.events, *extra])
    (scratch / "look").mkdir()
    try:
        with Database(scratch / "look", memory_limit, threads) as db:
            return _propose(db, options, out, raw, scratch, memory_limit, threads)
    except duckdb.Error as error:
        raise UserError(
            f"{options.events[0]}: DuckDB cannot go on with these files and options:\n{error}"
        ) from None


def _propose(
    db: Database,
    options: Options,
    out: Path,
    raw: Path,
    scratch: Path,
    memory_limit: str,
    threads: int | None,
) -> Looked:
    table = take_in(
        db,
        RAW,
        options.events,
        raw,
        where=options.where,
        delimiter=options.delimiter,
        encoding=options.encoding,
    )
    slate = find_slate(db, RAW) if options.item is None and options.label is None else None
    if slate is not None:
        table = unnested(db, RAW, table, slate)
        options = replace(options, item=SHOWN, label=TAKEN)
    facts = measure(db, RAW)
    log, notes = _log(db, options, table, facts)
    if slate is not None:
        log = _of_slate(log, slate)
    items, users, files, more = _sides(db, options, raw, table, facts, log)
    rows = next(iter(facts.values())).rows
    share = min(1.0, LOOKED_EVENTS / rows)
    try:
        _load_events(db, log, share)
    except duckdb.Error as error:
        raise UserError(f"{table.title}: the events cannot be read:\n{error}") from None
    split, found = _split(db, log, rows, share)
    group, group_reason = _group(db, log)
    proposal = Proposal(
        name=_name(options, out),
        raw=raw,
        log=log,
        items=items,
        users=users,
        split=split,
        group=group,
        group_reason=group_reason,
        negatives=_negatives(log, found),
        min_events=_min_events(db, log, found),
        semantic_source=_meaning(items),
        codes=sized_codes(found.items),
        files=tuple(files),
        notes=(*table.notes, *more, *notes),
        unused=_unused(facts, log, items, users),
    )
    leaks = find_leaks(db, RAW, facts, log)
    concerns = find_concerns(db, RAW, facts, proposal, found, leaks)
    text = as_toml(proposal, [concern.line for concern in concerns], prepare_command(proposal, out))
    definition = read_back(text, str(out))
    manifest, one_in = prepare_sample(
        definition, raw, scratch, str(out), found.events, memory_limit, threads
    )
    return Looked(proposal, facts, found, concerns, text, definition, manifest, one_in)


def prepare_command(proposal: Proposal, out: Path) -> str:
    """How the data set is prepared."""
    raw = os.path.relpath(proposal.raw) if proposal.raw.is_relative_to(Path.cwd()) else proposal.raw
    return f"hisac-rec prepare {out} --raw {raw} --out data/{proposal.name}"


def _log(
    db: Database, options: Options, table: RawTable, facts: dict[str, Facts]
) -> tuple[Log, list[str]]:
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


def _of_slate(log: Log, slate: Slate) -> Log:
    """Say that item and label came from lists, and not from options."""
    item = replace(log.item, reason=f"what {slate.shown} lists", given=False)
    rate = log.label.reason.rpartition("; ")[2]
    label = replace(log.label, reason=f"it is in {slate.taken}; {rate}", given=False)
    return replace(log, item=item, label=label)


def _sides(
    db: Database,
    options: Options,
    raw: Path,
    table: RawTable,
    facts: dict[str, Facts],
    log: Log,
) -> tuple[Side | None, Side | None, list[str], list[str]]:
    """Items and users, the files that the definition needs, and notes."""
    files, notes = list(table.names), list[str]()
    found: dict[str, Side] = {}
    taken = {*log.user.columns, *log.item.columns, *log.time.columns, *log.label.columns}
    taken |= {*log.label.others, *(log.group.columns if log.group else ())}
    for side, path, key in (
        ("item", options.items, options.item_key),
        ("user", options.users, options.user_key),
    ):
        choice = log.item if side == "item" else log.user
        if path is not None:
            name = f"looked.raw_{side}s"
            of_file = take_in(db, name, [path], raw)
            column = choice.columns[0] if len(choice.columns) == 1 else None
            found[side] = sides.from_file(
                db, side, name, of_file, RAW, choice.sql, column, key, options.drop
            )
            files += [one for one in of_file.names if one not in files]
            notes += of_file.notes
        elif len(choice.columns) == 1:
            time = _in_order(log, facts)
            free = [name for name in facts if name not in taken]
            found[side] = sides.from_events(
                db, side, RAW, table, facts, choice.sql, time, free, options.drop
            )
            taken |= _used(facts, found[side])
    items, users = found.get("item"), found.get("user")
    return items, users, files, notes


def _in_order(log: Log, facts: dict[str, Facts]) -> str:
    """SQL by which events are in order of time: the column itself where that will do."""
    if not log.time.columns:
        return "0"
    fact = facts.get(log.time.columns[0])
    plain = log.moment.form != "an expression" and not log.moment.doubts
    if plain and fact is not None and (fact.is_moment or fact.is_number):
        return quoted(fact.name)
    return log.moment.sql


def _used(facts: dict[str, Facts], side: Side) -> set[str]:
    """Columns of the events that describe an item (a user)."""
    return {name for name in facts if f"arg_min({quoted(name)}, " in side.source}


def _load_events(db: Database, log: Log, share: float) -> None:
    """The events as ``prepare`` will see them; of a share of the users where there are many."""
    part = round(1 / share)
    where = f' WHERE hash("user"::VARCHAR) % {part} = 0' if part > 1 else ""
    db.rows(f"CREATE TABLE {EVENTS} AS SELECT * FROM (\n{log.select(RAW)}\n){where}")
    if not db.rows(f"SELECT 1 FROM {EVENTS} LIMIT 1"):
        raise UserError(f"{log.raw.title}: no row has a user, an item and a time")


def _split(db: Database, log: Log, rows: int, share: float) -> tuple[Split, Figures]:
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


def _group(db: Database, log: Log) -> tuple[str, str]:
    """``requests.group`` and why."""
    if log.group is not None:
        sql = "request" if log.group.columns else log.group.sql
        return sql, log.group.reason
    if log.moment.clock and log.label.impressions and not log.moment.by_day:
        mean = db.rows(
            f'SELECT count(*) / count(DISTINCT ("user", time // {HALF_HOUR})) FROM {EVENTS}'
        )[0][0]
        if mean >= 1.5:
            return f"time // {HALF_HOUR}", (
                f"candidates of one half hour share a request ({mean:.1f} on average): they were "
                "shown, and no column says which together"
            )
    return "event", "every candidate is a request of its own, with the history up to it"


def _min_events(db: Database, log: Log, found: Figures) -> int:
    """Candidates need a few events before them where users have many."""
    if found.per_user[0] < 20:
        return 0
    median = db.rows(
        "SELECT quantile_disc(n, 0.5) FROM "
        f"(SELECT count(*) FILTER ({log.label.history_where}\n) AS n "
        f'FROM {EVENTS} GROUP BY "user")'
    )[0][0]
    return 5 if median >= 20 else 0


def _negatives(log: Log, found: Figures) -> Negatives | None:
    """Non-events for a log of successes alone: popular items, of the last month in a long log."""
    if log.label.kind != "none":
        return None
    long = log.moment.clock and found.last - found.first >= 4 * MONTH
    return Negatives(PER_POSITIVE, MONTH if long else None)


def _meaning(items: Side | None) -> str:
    if items is not None and items.content is not None:
        return "content"
    return "text+collaborative" if items is not None and items.text is not None else "collaborative"


def _unused(
    facts: dict[str, Facts], log: Log, items: Side | None, users: Side | None
) -> tuple[str, ...]:
    used = {*log.user.columns, *log.item.columns, *log.time.columns, *log.label.columns}
    used |= set(log.group.columns) if log.group else set()
    for side in (items, users):
        if side is not None and side.of_events:
            used |= _used(facts, side)
    used |= {name for name in facts if quoted(name) in dict(log.label.selected).values()}
    by_type = log.label.type_sql or ""
    return tuple(name for name in facts if name not in used and quoted(name) not in by_type)


def _name(options: Options, out: Path) -> str:
    return options.name or names.slug(out.stem)
