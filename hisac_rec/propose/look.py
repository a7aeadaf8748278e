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
from hisac_rec.propose.events import EVENTS, RAW, choose_roles, load_events, of_slate
from hisac_rec.propose.facts import Facts, measure
from hisac_rec.propose.figures import Figures
from hisac_rec.propose.files import RawTable, common_folder, take_in
from hisac_rec.propose.leakage import find_leaks
from hisac_rec.propose.proposal import Log, Negatives, Options, Proposal, sized_codes
from hisac_rec.propose.sides import Side
from hisac_rec.propose.slates import SHOWN, TAKEN, find_slate, unnested
from hisac_rec.propose.splits import choose_split
from hisac_rec.propose.sqltext import quoted
from hisac_rec.propose.writing import as_toml, read_back

LOOKED_EVENTS = 20_000_000
"""Beyond about this many events figures are those of a sample of users."""
HALF_HOUR, MONTH = 1_800, 2_592_000
PER_POSITIVE = 4


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
    log, notes = choose_roles(db, options, table, facts)
    if slate is not None:
        log = of_slate(log, slate)
    items, users, files, more = _sides(db, options, raw, table, facts, log)
    rows = next(iter(facts.values())).rows
    share = min(1.0, LOOKED_EVENTS / rows)
    try:
        load_events(db, log, share)
    except duckdb.Error as error:
        raise UserError(f"{table.title}: the events cannot be read:\n{error}") from None
    split, found = choose_split(db, log, rows, share)
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
