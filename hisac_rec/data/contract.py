"""The prepared data set: what is on disk between ``prepare`` and everything after it.

One folder, all of it Parquet and JSON, written once and read by anything::

    manifest.json          what this is: counts, features, splits, fingerprint (Manifest)
    stats.json             length quantiles and pooling factors, for the planner (Stats)
    items.parquet          row i is item i; row 0 is the unknown item
    vocab/<feature>.parquet   id -> raw value, id 0 is unknown
    semantic_ids.parquet   item -> codes and the vector they quantise (after semantic-ids)
    codebook.parquet       level, code -> code word
    semantic_ids.json      quality report of the codebook; .html: the same for people
    featuriser.npz         what places further items in the same space
    train|valid|test/part-*.parquet   one row per user (SPLIT_SCHEMA)

Ids are dense int32 from 1; id 0 of every vocabulary is "unknown" and owns a table row.
Legend: U users (rows), L history events of a user, R requests of a user, N candidates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer

from hisac_rec.config import Strict
from hisac_rec.data.parquet import DAMAGED, READING
from hisac_rec.errors import UserError

M = TypeVar("M", bound=Strict)

CONTRACT_VERSION = 1
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
MAIN_TASK = "label"
"""Name of the main task where the definition gives none."""

REQUEST_TYPE = pa.struct(
    [
        ("time", pa.int64()),
        ("history_end", pa.int32()),  # the request may see history[0:history_end]
        ("items", pa.list_(pa.int32())),  # [N]
        ("labels", pa.list_(pa.float32())),  # [N]
    ]
)
ORACLE_FIELD = "probabilities"
"""Optional fifth field of a request, list<float32> [N]: the true click probability of
each candidate, known for synthetic data alone. No model ever reads it."""


def task_field(task: str) -> str:
    """Field of a request with the labels of a further task: list<float32> [N], null where the
    task does not apply to the candidate.
    """
    return f"labels_{task}"


def split_schema(
    user_features: list[str], *, oracle: bool = False, tasks: Sequence[str] = ()
) -> pa.Schema:
    """Schema of the ``train|valid|test`` files: one row per user.

    ``history_*`` hold L events, oldest first; ``requests`` holds R requests ordered by
    time. A request's ``history_end`` <= L counts the events strictly before it.

    Args:
        user_features: names.
        oracle: requests carry the true probability.
        tasks: names of the further tasks; each is a field of a request.
    """
    request = REQUEST_TYPE
    if oracle:
        request = pa.struct([*request, pa.field(ORACLE_FIELD, pa.list_(pa.float32()))])
    labels = [pa.field(task_field(task), pa.list_(pa.float32())) for task in tasks]
    request = pa.struct([*request, *labels])
    return pa.schema(
        [
            ("user", pa.int32()),
            *((f"user_{name}", pa.int32()) for name in user_features),
            ("history_item", pa.list_(pa.int32())),
            ("history_type", pa.list_(pa.int8())),
            ("history_time", pa.list_(pa.int64())),
            ("requests", pa.list_(request)),
        ]
    )


class Feature(Strict):
    """One categorical feature of users or items."""

    name: str
    """Column name: ``user_<name>`` in the splits, ``<name>`` in ``items.parquet``."""
    rows: int
    """Size of its vocabulary, the unknown id 0 included."""
    multi: bool = False
    """True: list<int32> in ``items.parquet`` (several values an item); False: int32."""


class SplitCounts(Strict):
    """Row counts of one split."""

    users: int
    """Rows of the split's files."""
    events: int
    """History events stored."""
    requests: int
    """Requests."""
    candidates: int
    """Candidates over all requests."""
    positives: float
    """Sum of the labels."""
    first_events: float | None = None
    """Where non-events are drawn: share of the log's positives that no draw can be like, since
    their item was positive for nobody before; see ``requests.negatives.first_events``."""

    @classmethod
    def nothing(cls) -> SplitCounts:
        """Of a split without rows."""
        return cls(users=0, events=0, requests=0, candidates=0, positives=0.0)


class FurtherTask(Strict):
    """A label beside the main one."""

    name: str
    labelled: dict[Split, int]
    """Candidates that it applies to."""
    positives: dict[Split, float]
    """Sum of their labels."""


class Manifest(Strict):
    """``manifest.json``: everything a model needs to know about the data to be built."""

    contract_version: int
    name: str
    """Name of the data-set definition."""
    users: int
    """Rows of the user table, unknown included."""
    items: int
    """Rows of the item table, unknown included."""
    user_features: list[Feature]
    item_features: list[Feature]
    event_types: list[str]
    """Names of ``history_type`` values; index = value."""
    has_clock: bool
    """True: times are seconds and comparable across users; False: order within a user."""
    content_dim: int | None
    """Width of ``items.content``, None where items carry no content embedding."""
    has_text: bool
    """True where ``items.text`` exists."""
    has_oracle: bool
    """True where requests carry the true click probability."""
    task: str = MAIN_TASK
    """Name of the main task, whose labels are ``labels`` of a request."""
    tasks: list[FurtherTask] = []
    """The others: ``labels_<name>`` of a request."""
    splits: dict[Split, SplitCounts]
    definition: dict[str, object]
    """The data-set definition that made this, resolved."""
    fingerprint: str
    """Hex digest over the definition and the counts: which data a checkpoint was made on."""

    @property
    def task_names(self) -> list[str]:
        """All tasks, the main one first."""
        return [self.task, *(task.name for task in self.tasks)]

    @property
    def votes(self) -> dict[str, float] | None:
        """Event type -> vote, as the definition gives them; None: every event votes 1."""
        history = self.definition.get("history")
        votes = history.get("votes") if isinstance(history, dict) else None
        return votes if isinstance(votes, dict) else None

    @property
    def split_schema(self) -> pa.Schema:
        """Schema of the files of a split; see :func:`split_schema`."""
        users = [feature.name for feature in self.user_features]
        return split_schema(users, oracle=self.has_oracle, tasks=self.task_names[1:])

    @model_serializer(mode="wrap")
    def _as_before_tasks(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Files of data sets without further tasks stay what earlier releases wrote and read.
        written: dict[str, Any] = serialise(self)
        if self.task_names == [MAIN_TASK]:
            written = {k: v for k, v in written.items() if k not in ("task", "tasks")}
        return written


def label_field(task: str, manifest: Manifest) -> str:
    """Field of a request that holds the labels of a task, the main one or another."""
    return "labels" if task == manifest.task else task_field(task)


class Stats(Strict):
    """``stats.json``: what the planner and the reader of a report want to know."""

    history_length_mean: float
    """Mean of ``history_end`` over the training requests."""
    history_length_quantiles: dict[str, int]
    """Keys "0.5", "0.9", "0.95", "0.99", "1.0"."""
    candidates_mean: float
    """Mean candidates per training request."""
    candidates_max: int
    feature_values_mean: dict[str, float]
    """Item feature -> mean number of values per item (1.0 for single-valued)."""


def items_schema(manifest: Manifest) -> pa.Schema:
    """Schema of ``items.parquet``: row i is item i.

    ``train_count`` is the number of training candidates with that item (drawn non-events left
    out), ``first_time`` the first time it is seen in the training period (null: never).
    """
    fields: list[tuple[str, pa.DataType]] = [("item", pa.int32()), ("raw_id", pa.string())]
    for feature in manifest.item_features:
        fields.append((feature.name, pa.list_(pa.int32()) if feature.multi else pa.int32()))
    if manifest.has_text:
        fields.append(("text", pa.string()))
    if manifest.content_dim is not None:
        fields.append(("content", pa.list_(pa.float32(), manifest.content_dim)))
    return pa.schema([*fields, ("train_count", pa.int64()), ("first_time", pa.int64())])


class PreparedData:
    """A prepared data set, opened for reading.

    Args:
        root: the folder that ``hisac-rec prepare`` wrote.

    Raises:
        UserError: the folder is no prepared data set, is of another contract version, or
            lacks a file; says which and what to run.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.manifest = self._read_json("manifest.json", Manifest)
        if self.manifest.contract_version != CONTRACT_VERSION:
            raise UserError(
                f"{self.root / 'manifest.json'}: contract_version "
                f"{self.manifest.contract_version}, this release reads {CONTRACT_VERSION}; "
                "run 'hisac-rec prepare' again"
            )

    @cached_property
    def stats(self) -> Stats:
        """The contents of ``stats.json``."""
        return self._read_json("stats.json", Stats)

    @cached_property
    def items(self) -> pa.Table:
        """``items.parquet``, whole; see :func:`items_schema`."""
        table = self.read_parquet("items.parquet")
        if table.num_rows != self.manifest.items:
            raise UserError(
                f"{self.root / 'items.parquet'}: {table.num_rows} rows, the manifest says "
                f"{self.manifest.items}; run 'hisac-rec prepare' again"
            )
        return table

    @property
    def has_semantic_ids(self) -> bool:
        """True after ``hisac-rec semantic-ids``."""
        return (self.root / "semantic_ids.parquet").is_file()

    def split_files(self, split: Split) -> list[Path]:
        """The Parquet files of one split, in order.

        Raises:
            UserError: the split is not there or holds no request.
        """
        files = sorted((self.root / split).glob("*.parquet"))
        if not files:
            raise UserError(f"{self.root / split}: no Parquet files; run 'hisac-rec prepare' again")
        if self.manifest.splits[split].requests == 0:
            raise UserError(
                f"{self.root / split}: the split is empty (no request); change [split] or "
                "[requests] of the data-set definition and prepare again"
            )
        return files

    def read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file of the folder.

        Raises:
            UserError: it is absent or damaged; names the file.
        """
        path = self.root / name
        try:
            return pq.read_table(path, columns=columns, memory_map=True, **READING)
        except FileNotFoundError:
            command = "semantic-ids" if name in _SEMANTIC_FILES else "prepare"
            raise UserError(
                f"{path}: not there; run 'hisac-rec {command}' for this data first"
            ) from None
        except DAMAGED as error:
            raise UserError(f"{path}: damaged Parquet file ({error}); prepare it again") from None

    def _read_json(self, name: str, model: type[M]) -> M:
        path = self.root / name
        try:
            return model.model_validate(json.loads(path.read_text()))
        except FileNotFoundError:
            raise UserError(
                f"{self.root}: not a prepared data set ({name} is missing); "
                "make one with 'hisac-rec prepare DEFINITION --out FOLDER'"
            ) from None
        except (ValidationError, ValueError) as error:
            raise UserError(f"{path}: not readable ({error}); prepare the data again") from None


_SEMANTIC_FILES = ("semantic_ids.parquet", "codebook.parquet", "semantic_ids.json")
