"""A whole proposal: what was chosen for every part of a definition, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hisac_rec.propose.choice import Choice
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.labels import Label
from hisac_rec.propose.moments import Moment
from hisac_rec.propose.sides import Side, select
from hisac_rec.propose.sqltext import aliased, indented, wrapped


@dataclass(frozen=True)
class Options:
    """What the command line sets by itself; None: found out."""

    events: tuple[Path, ...]
    items: Path | None = None
    users: Path | None = None
    name: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    time_format: str | None = None
    time_zone: str | None = None
    label: str | None = None
    threshold: float | None = None
    type: str | None = None
    positive: tuple[str, ...] = ()
    group: str | None = None
    item_key: str | None = None
    user_key: str | None = None
    where: str | None = None
    drop: tuple[str, ...] = ()
    delimiter: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class Split:
    """``[split]``."""

    by: str
    reason: str
    valid_from: int = 0
    test_from: int = 0


@dataclass(frozen=True)
class Negatives:
    """``[requests.negatives]``, for a log of successes alone."""

    per_positive: int
    window: int | None


@dataclass(frozen=True)
class Log:
    """The SELECT of ``source.events``, in parts."""

    user: Choice
    item: Choice
    time: Choice
    moment: Moment
    label: Label
    group: Choice | None
    raw: RawTable
    conditions: tuple[str, ...] = ()
    """WHERE, joined by AND."""

    def columns(self) -> dict[str, str]:
        """Column of the SELECT -> SQL over the raw table."""
        found = {"user": self.user.sql, "item": self.item.sql, "time": self.moment.sql}
        if self.label.type_sql is not None:
            found["type"] = self.label.type_sql
        found.update(self.label.selected)
        if self.group is not None and self.group.columns:
            found.setdefault("request", self.group.sql)
        return found

    def select(self, source: str | None = None) -> str:
        """The SELECT as the definition has it, or over another ``source``."""
        pieces = [aliased(sql, name) for name, sql in self.columns().items()]
        inner = f"SELECT {wrapped(pieces)}\nFROM {source or self.raw.relation}"
        if self.conditions:
            inner += "\nWHERE " + "\n    AND ".join(self.conditions)
        if self.label.later is None:
            return indented(inner)
        return indented(
            f"SELECT *,\n    {self.label.later} AS success\nFROM (\n{indented(inner)}\n)"
        )


@dataclass(frozen=True)
class Proposal:
    """Everything that a definition says."""

    name: str
    raw: Path
    log: Log
    items: Side | None
    users: Side | None
    split: Split
    group: str
    group_reason: str
    negatives: Negatives | None
    min_events: int
    semantic_source: str
    codes: tuple[int, int]
    files: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    """What was out of the ordinary while reading."""
    unused: tuple[str, ...] = ()
    """Columns of the events without a use."""

    def definition(self) -> dict[str, Any]:
        """As the keys of :class:`DatasetDefinition`."""
        source: dict[str, Any] = {"files": list(self.files), "events": self.log.select()}
        min_count: dict[str, int] = {}
        for side, key in ((self.items, "items"), (self.users, "users")):
            if side is not None and side.useful:
                source[key] = select(side)
                min_count |= {f.name: f.min_count for f in side.features if f.min_count > 1}
        label = self.log.label
        history: dict[str, Any] = {}
        if label.history_where != "true":
            history["where"] = label.history_where
        if self.min_events:
            history["min_events"] = self.min_events
        requests: dict[str, Any] = {}
        if label.requests_where != "true":
            requests["where"] = label.requests_where
        requests["label"] = label.sql
        if self.group != "event":
            requests["group"] = self.group
        if label.tasks:
            requests["tasks"] = dict(label.tasks)
        if self.negatives is not None:
            drawn: dict[str, Any] = {
                "per_positive": self.negatives.per_positive,
                "by": "popularity",
            }
            if self.negatives.window is not None:
                drawn["window"] = self.negatives.window
            requests["negatives"] = drawn
        split: dict[str, Any] = {"by": self.split.by}
        if self.split.by == "time":
            split |= {"valid_from": self.split.valid_from, "test_from": self.split.test_from}
        else:
            split |= {"train": 0.8, "valid": 0.1}
        made: dict[str, Any] = {
            "name": self.name,
            "description": self.description(),
            "clock": self.log.moment.clock,
            "source": source,
            "history": history,
            "requests": requests,
            "split": split,
            "semantic_ids": {"source": self.semantic_source, "codes": list(self.codes)},
        }
        if min_count:
            made["features"] = {"min_count": min_count}
        return made

    @property
    def group_name(self) -> str:
        """What a request is made by, as the raw files call it."""
        group = self.log.group
        if group is None:
            return self.group
        return ", ".join(group.columns) or group.sql

    def description(self) -> str:
        """One line, for people."""
        by = "time" if self.split.by == "time" else "the order of each user's events"
        label = self.log.label
        what = "log of successes alone" if label.kind == "none" else f"label {label.sql}"
        return f"{self.log.raw.names[0]}: {what}, split by {by}"


def sized_codes(items: int) -> tuple[int, int]:
    """Codes of two levels: about half as many paths as items, wider below."""
    bits = max(2, math.floor(math.log2(max(items, 2)) - 0.85))
    top = min(9, bits // 2)
    return 2**top, 2 ** min(9, max(1, bits - bits // 2))
