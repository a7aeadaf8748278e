"""Which ids a model looks up, and what each key of the batch is called.

The model file says what enters (``InputConfig``); together with the data set's manifest
and codebook that gives the :class:`InputSpec`: the keys of the batch and the rows of the
table behind each. Loader and ranker are both built from it, so they cannot disagree.

Keys: ``user``, ``user.<feature>``, and for both ``history`` and ``candidate``
``.item``, ``.<feature>``, ``.sid<l>`` (code of level l) and ``.prefix<l>`` (the first l
codes as one id). Tables are shared: ``history.item`` and ``candidate.item`` read ``item``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hisac_rec.config import Strict
from hisac_rec.data.contract import Manifest
from hisac_rec.data.tasks import MAIN, Task
from hisac_rec.data.vocabulary import VocabularyConfig
from hisac_rec.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from hisac_rec.data.bags import Grouping

Side = Literal["user", "history", "candidate"]
MAX_PREFIX_ROWS = 2**31 - 1


class InputConfig(Strict):
    """``[inputs]`` of a model file: which ids are looked up in trained tables."""

    user: list[str] = ["id", "*"]
    """User side: "id" and feature names; "*" stands for all features of the data set."""
    candidate: list[str] = ["id", "*", "sid", "prefix"]
    """Candidate side: "id", item features ("*": all), "sid" (one table per level),
    "prefix" (one table per level from the second on, a row per path of codes)."""
    history: list[str] = ["id", "sid"]
    """History side, per event: the same names. Each costs one lookup an event."""
    max_history: int | None = Field(default=None, gt=0)
    """Only this many newest events of a request's history are used; unset: all."""
    out_of_range: Literal["error", "unknown"] = "error"
    """What an id beyond its table is: an error that names file and row, or the unknown id."""


@dataclass(frozen=True)
class Lookup:
    """One key of the batch: ``table`` is read at the ids that ``column`` of ``side`` gives."""

    key: str
    table: str
    ids: int
    """How many ids there are; the rows of the table where its vocabulary is dense."""
    side: Side
    column: str
    multi: bool = False
    """The column holds lists."""
    vocabulary: VocabularyConfig | None = None
    """How ids become rows; None: they are the rows."""

    @property
    def rows(self) -> int:
        """Rows of the table."""
        chosen = self.vocabulary and self.vocabulary.rows
        return chosen or self.ids

    @property
    def several(self) -> bool:
        """A value is the mean of several rows, or none."""
        return self.multi or (self.vocabulary is not None and self.vocabulary.hashes > 1)

    @property
    def managed(self) -> bool:
        """The batch holds keys, which the table's managed collision module maps to rows."""
        return self.vocabulary is not None and self.vocabulary.kind == "managed"


@dataclass(frozen=True)
class InputSpec:
    """Everything the loader must put into a batch and the ranker may take from it."""

    lookups: tuple[Lookup, ...]
    code_counts: tuple[int, ...]
    """Codes per level; empty where the data set has no semantic ids."""
    vector_sides: tuple[Side, ...]
    """Sides whose frozen semantic vectors the history method reads."""
    vector_dim: int
    item_features: tuple[Lookup, ...]
    """Single-valued item features whose raw ids the history method reads, of both sides."""
    items: int
    """Rows of the item table."""
    coded: int
    """Rows of codes and semantic vectors: as many, times the views of the semantic ids."""
    event_types: int
    max_history: int | None
    out_of_range: Literal["error", "unknown"]
    grouping: Grouping | None = None
    """How events are summed where the rows of their tables are; None: they are sent one by one."""
    singles: int = 0
    """Newest events of a request that are sent one by one all the same."""
    pool_min_rows: int = 1
    """Tables of fewer rows are read row by row whatever ``grouping`` says."""
    tasks: tuple[Task, ...] = (MAIN,)
    """What is learned, the model's main task first."""

    def of_side(self, side: Side) -> tuple[Lookup, ...]:
        """The lookups of one side, in order."""
        return tuple(lookup for lookup in self.lookups if lookup.side == side)

    def tables(self) -> dict[str, list[Lookup]]:
        """Table name -> the lookups that read it."""
        grouped: dict[str, list[Lookup]] = {}
        for lookup in self.lookups:
            grouped.setdefault(lookup.table, []).append(lookup)
        return grouped

    def pooled(self) -> frozenset[str]:
        """Names of the tables whose rows are summed where they are: large ones that events read."""
        if self.grouping is None:
            return frozenset()
        read = self.of_side("history")
        return frozenset(lookup.table for lookup in read if lookup.rows >= self.pool_min_rows)

    def managed(self) -> frozenset[str]:
        """Names of the tables whose rows a managed collision module gives out."""
        return frozenset(lookup.table for lookup in self.lookups if lookup.managed)


def build_input_spec(
    config: InputConfig,
    manifest: Manifest,
    code_counts: tuple[int, ...],
    *,
    vector_sides: tuple[Side, ...] = (),
    vector_dim: int = 0,
    item_features: tuple[str, ...] = (),
    grouping: Grouping | None = None,
    singles: int = 0,
    pool_min_rows: int = 1,
    tasks: tuple[Task, ...] = (MAIN,),
    vocabularies: Mapping[str, VocabularyConfig] | None = None,
    views: int = 1,
) -> InputSpec:
    """Resolve what the model file asks for against what the data set has.

    Args:
        config: ``[inputs]`` of the model file.
        manifest: of the prepared data set.
        code_counts: codes per level of the codebook; empty without semantic ids.
        vector_sides: sides whose semantic vectors the history method reads.
        vector_dim: width of those vectors.
        item_features: single-valued item features whose raw ids the method reads.
        grouping: how events are summed where their rows are; None: they are not.
        singles: newest events that are looked up one by one all the same.
        pool_min_rows: tables of fewer rows are read row by row.
        tasks: what is learned.
        vocabularies: of tables whose ids are not their rows.
        views: of the semantic ids.

    Raises:
        UserError: a feature does not exist, semantic ids are asked for and absent, or a
            vocabulary is for no table or cannot be had for its table.
    """
    lookups: list[Lookup] = []
    users = {feature.name: feature for feature in manifest.user_features}
    for name in _expand(config.user, list(users), "inputs.user", ("id",)):
        if name == "id":
            lookups.append(Lookup("user", "user", manifest.users, "user", "user"))
        else:
            rows = users[name].rows
            lookups.append(Lookup(f"user.{name}", f"user_{name}", rows, "user", name))
    sides: tuple[tuple[Side, list[str]], ...] = (
        ("candidate", config.candidate),
        ("history", config.history),
    )
    for side, wanted in sides:
        lookups += _item_side(side, wanted, manifest, code_counts)
    lookups = _with_vocabularies(lookups, vocabularies or {})
    spec = InputSpec(
        lookups=tuple(lookups),
        code_counts=code_counts,
        vector_sides=vector_sides,
        vector_dim=vector_dim,
        item_features=_single_valued(item_features, manifest),
        items=manifest.items,
        coded=manifest.items * views,
        event_types=max(1, len(manifest.event_types)),
        max_history=config.max_history,
        out_of_range=config.out_of_range,
        grouping=grouping,
        singles=singles,
        pool_min_rows=pool_min_rows,
        tasks=tasks,
    )
    for table in sorted(spec.managed() & spec.pooled()):
        rows = spec.tables()[table][0].rows
        raise UserError(
            f"tables.pool = true: table '{table}' has a managed vocabulary, and its rows can only "
            f"be sent one by one; leave tables.pool out, set tables.pool_min_rows above {rows}, or "
            f"set tables.vocabulary.{table}.kind = 'hashed'"
        )
    return spec


def _with_vocabularies(
    lookups: list[Lookup], vocabularies: Mapping[str, VocabularyConfig]
) -> list[Lookup]:
    tables = {lookup.table for lookup in lookups}
    for name in vocabularies:
        if name not in tables:
            raise UserError(
                f"tables.vocabulary: the model has no table '{name}'{did_you_mean(name, tables)}; "
                f"it has: {', '.join(sorted(tables))}"
            )
    chosen = {name: one for name, one in vocabularies.items() if one.kind != "dense"}
    return [replace(lookup, vocabulary=chosen.get(lookup.table)) for lookup in lookups]


def _item_side(
    side: Side, wanted: list[str], manifest: Manifest, code_counts: tuple[int, ...]
) -> list[Lookup]:
    features = {feature.name: feature for feature in manifest.item_features}
    names = _expand(wanted, list(features), f"inputs.{side}", ("id", "sid", "prefix"))
    lookups: list[Lookup] = []
    for name in names:
        if name == "id":
            lookups.append(Lookup(f"{side}.item", "item", manifest.items, side, "item"))
        elif name in ("sid", "prefix"):
            if not code_counts:
                raise UserError(
                    f"inputs.{side} asks for '{name}', but the data set has no semantic ids; "
                    "run 'hisac-rec semantic-ids' for it first, or leave it out"
                )
            lookups += _code_lookups(side, name, code_counts)
        else:
            feature = features[name]
            lookups.append(Lookup(f"{side}.{name}", name, feature.rows, side, name, feature.multi))
    return lookups


def _single_valued(names: tuple[str, ...], manifest: Manifest) -> tuple[Lookup, ...]:
    single = {feature.name: feature for feature in manifest.item_features if not feature.multi}
    for name in names:
        if name not in single:
            raise UserError(
                f"the history method reads the item feature '{name}', which the data set does "
                f"not have as a single-valued one{did_you_mean(name, single)}; it has: "
                f"{', '.join(single) or 'none'}"
            )
    return tuple(Lookup(name, name, single[name].rows, "candidate", name) for name in names)


def _code_lookups(side: Side, kind: str, code_counts: tuple[int, ...]) -> list[Lookup]:
    first = 1 if kind == "sid" else 2
    lookups = []
    for level in range(first, len(code_counts) + 1):
        name = f"{kind}{level}"
        # One row more than there are codes: for items that have no place in the tree.
        rows = 1 + (code_counts[level - 1] if kind == "sid" else prod(code_counts[:level]))
        if rows > MAX_PREFIX_ROWS:
            raise UserError(
                f"inputs.{side}: table {name} would need {rows:,} rows; leave 'prefix' out or "
                "use a codebook with fewer codes or levels"
            )
        lookups.append(Lookup(f"{side}.{name}", name, rows, side, name))
    return lookups


def _expand(
    wanted: list[str], features: list[str], key: str, special: tuple[str, ...]
) -> list[str]:
    """Replace "*" by the features not named already; check that the rest exist."""
    names: list[str] = []
    for name in wanted:
        if name == "*":
            names += [f for f in features if f not in wanted and f not in names]
        elif name in special or name in features:
            names.append(name)
        else:
            raise UserError(
                f"{key}: the data set has no feature '{name}'"
                f"{did_you_mean(name, [*special, *features, '*'])}"
            )
    return names
