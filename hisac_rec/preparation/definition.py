"""The data-set definition: one TOML file says how an event log becomes a data set.

A definition holds either ``[source]`` (SELECT statements over raw files, run by DuckDB) or
``[synthetic]`` (parameters of the generator); see ``docs/data-contract.md`` for both with
examples. In every SQL text ``{raw}`` stands for the folder of raw files.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from hisac_rec.config import Strict
from hisac_rec.data.contract import MAIN_TASK, Split
from hisac_rec.data.votes import Votes
from hisac_rec.preparation.synthetic_config import SyntheticConfig
from hisac_rec.semantic.config import SemanticIdConfig

TASK_NAME = r"^[a-z][a-z0-9_]*$"


class NamedTable(Strict):
    """A table that the SELECTs of ``[source]`` can read by its name."""

    select: str
    """The SELECT that makes it."""
    optional_file: str | None = None
    """File under the raw folder, or a glob pattern, without which ``otherwise`` is run instead."""
    otherwise: str | None = None
    """The SELECT for users who lack ``optional_file``: the same columns, maybe no rows."""

    @model_validator(mode="after")
    def _both_or_none(self) -> NamedTable:
        if (self.optional_file is None) != (self.otherwise is None):
            raise ValueError("optional_file and otherwise belong together: set both or neither")
        return self


class SourceConfig(Strict):
    """Where events, items and users come from: SQL over raw files."""

    files: list[str] = Field(min_length=1)
    """Files that must exist under the raw folder; glob patterns are allowed."""
    where_to_get: str = ""
    """Where a person gets the raw files; shown when they are missing."""
    tables: dict[str, NamedTable] = {}
    """Tables made first, in this order, for the SELECTs below to read by name."""
    events: str
    """SELECT with columns ``user``, ``item``, ``time`` (integer), optional ``type`` (the kind
    of event), optional ``sequence`` (integer: order of events of equal time), and any value
    columns that [history], [requests] and [split] mention."""
    items: str | None = None
    """SELECT with column ``item``, optional ``text``, optional ``content`` (a list of floats:
    the content embedding), and the side features: scalars, or lists of text."""
    users: str | None = None
    """SELECT with column ``user`` and the user features (scalars)."""


class FeaturesConfig(Strict):
    """Which columns of ``items`` and ``users`` become categorical features."""

    item: list[str] | None = None
    """Item features; None: every column but item, text and content."""
    user: list[str] | None = None
    """User features; None: every column but user."""
    min_count: dict[str, int] = {}
    """Feature -> values carried by fewer items (users) than this become unknown (id 0)."""


class HistoryConfig(Strict):
    """Which events enter a user's history."""

    where: str = "true"
    """SQL condition over the columns of ``source.events``."""
    max_length: int | None = Field(default=None, ge=1)
    """Store only events that some request sees among its newest ``max_length``; None: all."""
    min_events: int = Field(default=0, ge=0)
    """An event can be a candidate only when its user's history holds at least this many
    events before it; of those, where ``votes`` are given, that vote for something."""
    votes: Votes | None = None
    """Event type, or a pattern of several ("rating [0-3]*") -> how much an event of it votes for
    the interest of its item, in methods that vote (HiSAC). Types that are not named vote 1; 0:
    read, without a vote; below 0: it counts against (a dislike, a skip, a return).
    ``history.votes`` of a model file overrides it."""


class NegativesConfig(Strict):
    """Non-events for a log of positives alone, drawn by the data set's own rule."""

    per_positive: int = Field(ge=1)
    """Items added to a request, label 0, for each of its candidates with a label above 0."""
    by: Literal["popularity", "uniform"] = "popularity"
    """Among the items that were positive for anybody before the request: "popularity", in
    proportion to how often; "uniform", each alike."""
    window: int | None = Field(default=None, ge=1)
    """With by = "popularity": count only this long before the request, in the unit of ``time``,
    so that goods out of season are not offered; None: all that is earlier."""
    consumed: bool = True
    """Items of the history that the request sees may be drawn. False: they never are, and where
    people buy again a model learns that what was consumed is positive."""
    first_events: Literal["keep", "drop"] = "keep"
    """Positives whose item was positive for nobody before the request (within ``window``, where
    there is one). No draw can be such an item, so counts of events tell these positives apart:
    "keep" them all the same, or "drop": they are no candidates, and enter histories as before."""
    seed: int = Field(default=0, ge=0)
    """Every draw follows from it and from the request's user, time and first candidate."""

    @model_validator(mode="after")
    def _window_counts(self) -> NegativesConfig:
        if self.window is not None and self.by == "uniform":
            raise ValueError("window needs by = 'popularity': it says which events count")
        return self


class RequestsConfig(Strict):
    """Which events are candidates, what their label is, which of them share a request."""

    where: str = "true"
    """SQL condition over the columns of ``source.events``: this event is a candidate."""
    label: str
    """SQL expression over the columns of ``source.events``: boolean, or a number in [0, 1]."""
    task: str | None = Field(default=None, pattern=TASK_NAME)
    """What ``label`` is about ("click"): the name of the main task. Unset: "label"."""
    tasks: dict[str, str] | None = None
    """Further tasks: name -> SQL expression like ``label``. NULL: the task does not apply to this
    candidate, which then has no part in its loss and metrics (did a click that never was last?).
    Models learn those that ``tasks.train`` of the model file names."""
    group: str = "event"
    """"event": requests are made of consecutive candidates, see ``group_events``; otherwise
    an SQL expression: a user's candidates of equal value (page view, session) are one
    request."""
    group_events: int = Field(default=1, ge=1)
    """With group = "event": that many consecutive candidates of a user share one request,
    whose history ends before the first of them. 1 is exact."""
    train_group_events: int | None = Field(default=None, ge=1)
    """``group_events`` for training alone (valid and test stay as they are); None: the same.
    Above 1, training computes one history for several candidates, at a slightly older one."""
    valid_group_events: int | None = Field(default=None, ge=1)
    """``group_events`` for validation alone, which chooses checkpoints and settings; None: the
    same. The test split is never grouped by it."""
    negatives: NegativesConfig | None = None
    """Draw non-events; None: the log holds its own."""

    def of_split(self, split: Split) -> int:
        """Consecutive candidates that share a request in this split."""
        own = {"train": self.train_group_events, "valid": self.valid_group_events}
        return own.get(split) or self.group_events

    @model_validator(mode="after")
    def _names_of_tasks(self) -> RequestsConfig:
        for name in self.tasks or {}:
            if not re.fullmatch(TASK_NAME, name):
                raise ValueError(
                    f"tasks.{name}: expected a name of lower-case letters, digits and '_' that "
                    "starts with a letter"
                )
            if name == (self.task or MAIN_TASK):
                raise ValueError(
                    f"tasks.{name}: is the name of the main task (requests.task); every task "
                    "needs a name of its own"
                )
        return self

    @model_validator(mode="after")
    def _one_way_of_grouping(self) -> RequestsConfig:
        grouped = self.train_group_events or self.valid_group_events
        if self.group != "event" and (self.group_events > 1 or grouped):
            raise ValueError(
                "group_events, train_group_events and valid_group_events need group = 'event': "
                "an SQL group says by itself which candidates belong together"
            )
        return self


class SplitConfig(Strict):
    """How the events are cut into train, valid and test."""

    by: Literal["user_fraction", "time", "column"] = "user_fraction"
    """"user_fraction": by rank within each user; "time": by two moments common to all;
    "column": as the publisher says, event by event."""
    train: float = Field(default=0.8, gt=0, lt=1)
    """user_fraction: this share of each user's events, the oldest, is train."""
    valid: float = Field(default=0.1, gt=0, lt=1)
    """user_fraction: the next share is valid; the rest is test."""
    valid_from: int | None = None
    """time: first moment of valid, in the unit of ``time``."""
    test_from: int | None = None
    """time: first moment of test."""
    column: str | None = None
    """column: SQL expression over the columns of ``source.events`` that is 'train', 'valid' or
    'test' for every event, history events too: a request never sees an event of a later split."""
    cold_items: float | None = Field(default=None, gt=0, lt=1)
    """Keep this share of the items, drawn at random, out of the training period altogether: no
    event of theirs enters a history or a request of training. They come in with the validation
    period, as items do that are new to a catalogue; see the slice "unseen" of a report."""

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.by == "user_fraction" and self.train + self.valid >= 1:
            raise ValueError(f"train + valid = {self.train + self.valid:g} leaves nothing for test")
        if self.by == "time":
            if self.valid_from is None or self.test_from is None:
                raise ValueError("by = 'time' needs valid_from and test_from")
            if self.valid_from >= self.test_from:
                raise ValueError("valid_from must be before test_from")
        if self.by == "column" and self.column is None:
            raise ValueError("by = 'column' needs column")
        if self.by != "column" and self.column is not None:
            raise ValueError("column needs by = 'column'")
        return self


class DatasetDefinition(Strict):
    """A whole definition file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the data set: lower-case letters, digits, '-' and '_'."""
    description: str = ""
    """What it is, for people."""
    clock: bool = True
    """True: times are seconds and comparable across users; False: only their order within a
    user means something."""
    source: SourceConfig | None = None
    """Raw files and SQL; this or ``synthetic``."""
    synthetic: SyntheticConfig | None = None
    """Generator parameters; this or ``source``."""
    features: FeaturesConfig = FeaturesConfig()
    """Side features of ``source``."""
    history: HistoryConfig = HistoryConfig()
    """Which events of ``source`` are history."""
    requests: RequestsConfig | None = None
    """Which events of ``source`` are candidates; required with ``source``."""
    split: SplitConfig = SplitConfig()
    """How time cuts the events of ``source``."""
    semantic_ids: SemanticIdConfig = SemanticIdConfig()
    """Defaults of ``hisac-rec semantic-ids`` for this data set."""

    @model_validator(mode="after")
    def _one_source(self) -> DatasetDefinition:
        if (self.source is None) == (self.synthetic is None):
            raise ValueError("expected exactly one of the tables [source] and [synthetic]")
        if self.source is not None and self.requests is None:
            raise ValueError("[source] needs a [requests] table with at least 'label'")
        given = {"features", "history", "requests", "split"} & self.model_fields_set
        if self.synthetic is not None and given:
            raise ValueError(
                f"[synthetic] makes its own {', '.join(sorted(given))}: remove these tables"
            )
        if self.synthetic is not None and not self.clock:
            raise ValueError("[synthetic] has a clock: remove 'clock = false'")
        negatives = self.requests.negatives if self.requests is not None else None
        if negatives is not None and negatives.window is not None and not self.clock:
            raise ValueError("requests.negatives.window needs 'clock = true': times of all users")
        if negatives is not None and negatives.first_events == "drop" and not self.clock:
            raise ValueError(
                "requests.negatives.first_events = 'drop' needs 'clock = true': without one, draws "
                "come from the whole split, and no positive is beyond them"
            )
        return self
