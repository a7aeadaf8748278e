"""Which column of a file of items or users holds the ids of the events."""

from __future__ import annotations

from hisac_rec.propose import names
from hisac_rec.propose.choice import id_sql, named
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.files import RawTable

SAMPLE_ENTITIES = 20_000
"""So many ids of the events are looked for in the file."""


def find_key(
    db: Database,
    side: str,
    table: str,
    raw: RawTable,
    facts: dict[str, Facts],
    events: str,
    event_id: str,
    event_column: str | None,
    option: str | None,
) -> tuple[str, float, str]:
    """The column of a file that holds the ids of the events.

    Args:
        db: the database.
        side: "item" or "user".
        table: the file's table in the database.
        raw: the file, for messages.
        facts: its columns.
        events: the table of events.
        event_id: SQL of the id there.
        event_column: the column behind it.
        option: ``--item-key`` or ``--user-key``.

    Returns:
        The column, the share of the events' ids that are found in it, and why it was chosen.

    Raises:
        UserError: there is none; the option names a column that is not there.
    """
    if option is not None:
        candidates = [named(raw, f"--{side}-key", option, facts)]
    else:
        candidates = [
            name
            for name, fact in facts.items()
            if fact.can_be_id and fact.distinct > max(1, 0.5 * fact.filled)
        ]
    ids = (
        f"(SELECT DISTINCT ({event_id})::VARCHAR AS v FROM {events} "
        f"WHERE {event_id} IS NOT NULL ORDER BY hash(v) LIMIT {SAMPLE_ENTITIES})"
    )
    ranked = []
    for name in candidates:
        keys = f"SELECT ({id_sql(facts[name])})::VARCHAR FROM {table}"
        covered = db.rows(f"SELECT avg((v IN ({keys}))::INTEGER) FROM {ids}")[0][0]
        unique = facts[name].distinct / max(facts[name].filled, 1)
        same = event_column is not None and name.lower() == event_column.lower()
        points = float(covered or 0) + 0.5 * unique + (1.0 if same else 0)
        points += 0.2 * names.score(name, side)
        ranked.append((points, name, float(covered or 0)))
    ranked.sort(key=lambda one: -one[0])
    if not ranked or (ranked[0][2] == 0 and option is None):
        raise raw.no_column(
            f"no column holds the {side}s of the events",
            f"--{side}-key COLUMN, or leave the file out",
        )
    _, name, covered = ranked[0]
    same = event_column is not None and name.lower() == event_column.lower()
    reason = f"{covered:.1%} of the events' {side}s are found there"
    reason += ", and the name is the same" if same else ""
    return name, covered, reason
