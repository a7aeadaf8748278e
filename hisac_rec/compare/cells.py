"""What a comparison keeps on disk: one small file per (data set, model, seed).

::

    OUT/cells/<data>/<model>/seed<k>.json    a finished cell (Cell)
    OUT/cells/<data>/<model>/seed<k>.error   why a cell failed; gone when it succeeds
    OUT/cells/<data>/reference.json          trivial predictors and oracle (Reference)
    OUT/runs/<data>/<model>/seed<k>/         its run while it is needed, and its log
    OUT/report.md, report.html, results.parquet, figures/

The report is made from ``cells/`` alone, which is small enough to be committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from hisac_rec.checkpoints.saving import first_difference
from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import METRICS, Floats
from hisac_rec.ranker.config import ModelConfig, resolve_model_config

CELL_VERSION = 1

COMPARED = ("auc", "gauc", "logloss")
"""Metrics whose bootstrap draws are kept, so that differences have intervals."""

DIGITS = 6
"""Decimals kept of metrics and draws."""

_WITHOUT_EFFECT = {
    "train": (
        "seed",
        "log_every",
        "keep_checkpoints",
        "keep_best",
        "checkpoint_every",
        "checkpoint_async",
    )
}
_ONLY_WORDS = ("name", "description")

M = TypeVar("M", bound=Strict)
Numbers = dict[str, float | None]


class Identity(Strict):
    """What a cell's numbers depend on; a cell is skipped where this is unchanged."""

    cell_version: int = CELL_VERSION
    config: dict[str, Any]
    """The resolved model file, without seed, names and what only writes logs."""
    data_fingerprint: str
    """Of the prepared data."""
    semantics_fingerprint: str
    """Of the codebook; empty without one."""
    split: str
    """What was predicted."""
    draws: int
    """Bootstrap draws over users."""


class Parameters(Strict):
    """Trained numbers of a model, and the frozen ones."""

    tables: int
    """In the sharded tables."""
    dense: int
    """Outside the tables, the history method's own included."""
    method: int
    """Of the history method alone."""
    frozen: int
    """In the frozen table of semantic vectors; 0 where the method reads none."""


class Cost(Strict):
    """What one request with a history of this length costs the history method."""

    length: int
    """Events in the history."""
    events: int
    """Events that the model sees of them (``inputs.max_history``)."""
    compress: int
    """Operations of ``compress``: once per request, candidate-independent."""
    read_request: int
    """Operations of ``read`` that do not grow with the candidates."""
    read_candidate: int
    """Operations of ``read`` for each further candidate."""
    memory_bytes: int
    """Bytes of what ``compress`` returns, in fp32."""


class Slice(Strict):
    """One bucket of one slicing."""

    axis: str
    bucket: str
    rows: int
    users: int
    positive_rate: float
    auc: float | None
    gauc: float | None
    logloss: float | None


class Scores(Strict):
    """One predictor on the rows of a split."""

    metrics: Numbers
    """All of ``evaluation.metrics.METRICS`` on all rows; None where not defined."""
    draws: dict[str, list[float | None]]
    """Metric -> its value under each bootstrap draw. Draw b takes the same users in every
    cell of a data set, so differences of draws are paired."""
    slices: list[Slice]
    """By history length, item popularity and item age."""

    def drawn(self, metric: str) -> Floats:
        """[B] draws of one metric, nan where not defined."""
        return np.array(self.draws[metric], dtype=np.float64)


class Rows(Strict):
    """The rows that were predicted; the same for every cell of a data set."""

    task: str = ""
    """What they are labelled with; empty: the data set's main task."""

    digest: str
    """Over user, time, item and label of every row."""
    rows: int
    users: int
    requests: int
    positive_rate: float
    left_out_users: int
    """Users with one class only, who have no part in GAUC."""


class Training(Strict):
    """How the cell was trained."""

    seconds: float
    """Wall clock of training, its validations included."""
    epochs: float
    """Passes over the training split."""
    best_step: int
    """The step whose checkpoint was predicted."""
    curve: list[dict[str, float]]
    """Validation metrics: step, auc, gauc, logloss."""
    ranks: int


class Cell(Strict):
    """``seed<k>.json``: everything that is known of one trained model."""

    data: str
    model: str
    """Stem of the model file."""
    name: str
    """Name of the model in tables."""
    seed: int
    identity: Identity
    method: str
    uses_history: bool
    candidate_independent: bool
    """Whether ``compress`` leaves a memory of bounded size, which a cache may hold."""
    rows: Rows
    scores: Scores
    on_training: dict[str, float] = {}
    """Metrics on a sample of the training rows; undefined ones are absent."""
    training: Training
    candidates_per_second: float
    """Scored in prediction, reading the data included."""
    parameters: Parameters
    costs: list[Cost]
    """By history length; lengths that were not affordable are absent."""
    versions: dict[str, str]
    host: str
    """Kind of machine."""
    date: str
    """Day, UTC."""


class Reference(Strict):
    """``reference.json``: predictors that need no training run, on the same rows."""

    data: str
    rows: Rows
    split: str
    draws: int
    """Bootstrap draws over users."""
    predictors: dict[str, Scores]
    """Name -> scores: item mean, item + user mean, and the oracle where known."""


class Layout:
    """Paths of one comparison.

    Args:
        out: its folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.cells = out / "cells"
        self.runs = out / "runs"

    def cell(self, data: str, model: str, seed: int) -> Path:
        """File of a finished cell."""
        return self.cells / data / model / f"seed{seed}.json"

    def error(self, data: str, model: str, seed: int) -> Path:
        """File that says why a cell failed."""
        return self.cell(data, model, seed).with_suffix(".error")

    def run(self, data: str, model: str, seed: int) -> Path:
        """Folder of the cell's run."""
        return self.runs / data / model / f"seed{seed}"

    def reference(self, data: str) -> Path:
        """File of the predictors without training."""
        return self.cells / data / "reference.json"

    def read_cells(self) -> list[Cell]:
        """All finished cells, ordered by data set, model and seed.

        Raises:
            UserError: there is none, or a file is not a cell of this release.
        """
        found = [read(path, Cell) for path in sorted(self.cells.glob("*/*/seed*.json"))]
        if not found:
            raise UserError(
                f"{self.cells}: no finished cell; run 'hisac-rec compare MODELS --data DATA "
                f"--out {self.out}' first"
            )
        return sorted(found, key=lambda cell: (cell.data, cell.model, cell.seed))

    def read_errors(self) -> Iterator[tuple[str, str]]:
        """(name of the cell, last line of its error) of every failed cell."""
        for path in sorted(self.cells.glob("*/*/seed*.error")):
            name = path.relative_to(self.cells).with_suffix("").as_posix()
            lines = path.read_text(encoding="utf-8").strip().splitlines()
            yield name, lines[-1] if lines else ""


def identity_of(
    config: ModelConfig, fingerprint: str, semantics: str, *, split: str, draws: int
) -> Identity:
    """What the numbers of a cell depend on."""
    shown = config.model_dump(mode="json", exclude=set(_ONLY_WORDS))
    for table, keys in _WITHOUT_EFFECT.items():
        shown[table] = {key: value for key, value in shown[table].items() if key not in keys}
    return Identity(
        config=shown,
        data_fingerprint=fingerprint,
        semantics_fingerprint=semantics,
        split=split,
        draws=draws,
    )


def what_changed(before: Identity, now: Identity) -> str:
    """``"config.history.tau = 0.1 there, 0.2"`` for the first difference, or "".

    A key that came after the cell was made counts as its default there: a switch that is new
    and off changes nothing.
    """
    there = _completed(before).model_dump(mode="json")
    return first_difference(there, now.model_dump(mode="json"))


def _completed(identity: Identity) -> Identity:
    """With the defaults of this release; as it is where this release does not take its keys."""
    try:
        config = resolve_model_config({"name": "-", **identity.config}, "a cell")
    except UserError:
        return identity
    return identity_of(
        config,
        identity.data_fingerprint,
        identity.semantics_fingerprint,
        split=identity.split,
        draws=identity.draws,
    )


def write(path: Path, content: Strict) -> None:
    """Write a small JSON file atomically, one top-level key a line (few lines in a diff)."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(value)}"
        for key, value in content.model_dump(mode="json").items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    temporary.replace(path)


def read(path: Path, model: type[M]) -> M:
    """Read what :func:`write` wrote.

    Raises:
        UserError: it is not of this release.
    """
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValidationError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: not readable by this release ({error}); remove it to run the cell again"
        ) from None


def rounded(value: float | np.floating[Any]) -> float | None:
    """To :data:`DIGITS` decimals; None for what is not finite."""
    return round(float(value), DIGITS) if np.isfinite(value) else None


def named(values: Floats) -> Numbers:
    """[M] metric values by name."""
    return {metric: rounded(value) for metric, value in zip(METRICS, values, strict=True)}
