"""The folder of an exported model: its manifest, its files, and the test that it runs on itself.

::

    manifest.json        what this is (ExportManifest), and a seal of every file
    candidate.pt2        the candidate side, of torch.export
    candidate.aoti.pt2   the same, compiled by AOTInductor (where the exporter had a compiler)
    tables/<name>.npy    embedding rows; <name>.scale.npy with 8 bits; <name>.rows.npy where ids
                         are not rows
    users/views.npy      which view of the semantic IDs a user reads, where there are several
    items/*.npy          raw ids, features and semantic-ID codes of the items
    selftest.npz         recorded inputs and logits

Legend: I items, D levels, d width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.serving.precision import Precision

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PROGRAM = "candidate.pt2"
COMPILED = "candidate.aoti.pt2"
SELFTEST = "selftest.npz"
FORMAT = 3
"""Raised when an earlier release would read a folder wrongly: 3 has a row for items without a place
in the tables of codes, and views."""
FORMAT_OF_VOTES = 4
"""Of a model whose events can vote against leaves: the program takes :data:`REJECTED` too."""
TOLERANCE = 1e-4
"""Largest difference of a logit in the self-test: other machines add in another order."""

INPUTS = (
    *("vectors", "events", "path", "length", "users", "recent"),
    *("candidates", "codes", "placed"),
)
"""Names of what the candidate side takes, in the order of its arguments."""
REJECTED = ("against", "against_path")
"""Names of what it takes besides where events can vote against leaves."""


class ExportedLookup(Strict):
    """One vector that the model reads."""

    key: str
    table: str
    side: Literal["user", "history", "candidate"]
    column: str
    """"item" and "user" are ids themselves; sid<l> and prefix<l> come from the codes."""
    multi: bool
    """A list of values: their rows' mean."""


class ExportManifest(Strict):
    """``manifest.json`` of an exported model."""

    format: int
    name: str
    """Of the model."""
    run: str
    """Digest of the checkpoint; a cache of another one does not fit."""
    data_fingerprint: str
    metrics: dict[str, float]
    """Validation metrics of the checkpoint."""
    versions: dict[str, str]
    """Of the packages that exported it."""
    dim: int
    code_counts: list[int]
    """Codes of each level; the last D columns of the item's codes."""
    views: int = 1
    """Views of the semantic IDs: ``items/codes`` holds one after the other, ``users/views`` says
    which a user reads."""
    recent: int
    """Length of the short sequence; 0: none."""
    max_history: int | None
    """The model counts so many events of a history at most."""
    has_clock: bool
    """Times are seconds; else the order within a user."""
    age_buckets: int
    """Rows of the table of ages; 0: age is not read."""
    event_types: list[str]
    """Names of the event types; the table of types has a row for each, or is absent."""
    tasks: list[str] = []
    """Names of the tasks, in the order of the logits' columns; none: logits are of one task."""
    lookups: list[ExportedLookup]
    precision: Precision
    """Of the tables."""
    votes_against: bool = False
    """Events can vote against leaves: the program takes :data:`REJECTED` too."""
    files: dict[str, str]
    """File -> SHA-256."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the program takes, in the order of its arguments."""
        return INPUTS + REJECTED if self.votes_against else INPUTS


class Artefact:
    """An exported model, opened.

    Args:
        root: its folder.
        verify: read every file once and compare its checksum. Without, damage shows in the
            self-test at best.

    Raises:
        UserError: no exported model, another format, or a damaged file.
    """

    def __init__(self, root: Path, *, verify: bool = True) -> None:
        self.root = root
        self.manifest = _read_manifest(root)
        if verify:
            for name, digest in self.manifest.files.items():
                _check(root / name, digest)
        self.compiled = (root / COMPILED).is_file()
        self._program = _load_program(root)

    def logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """[N] logits of one request, [N, M] of M > 1 tasks; ``inputs`` by the names of
        :attr:`ExportManifest.inputs`.
        """
        with torch.inference_mode():
            result: Tensor = self._program(*(inputs[name] for name in self.manifest.inputs))
            return result

    def array(self, name: str) -> NDArray[Any]:
        """One ``.npy`` file, memory-mapped.

        Raises:
            UserError: it is absent or damaged.
        """
        path = self.root / f"{name}.npy"
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not readable ({error}); export the model again") from None
        return found

    def self_test(self) -> float:
        """Largest difference between the recorded logits and what this machine computes.

        Raises:
            UserError: it is larger than :data:`TOLERANCE`.
        """
        recorded = np.load(self.root / SELFTEST, allow_pickle=False)
        worst = 0.0
        for case in range(int(recorded["cases"])):
            names = self.manifest.inputs
            inputs = {name: torch.from_numpy(recorded[f"{case}.{name}"]) for name in names}
            off = self.logits(inputs).numpy() - recorded[f"{case}.logits"]
            worst = max(worst, float(np.abs(off).max()))
        if not worst <= TOLERANCE:
            raise UserError(
                f"{self.root}: the self-test is off by {worst:.2g} in a logit, {TOLERANCE:g} is "
                "allowed: this machine or its torch computes something else than the exporter's; "
                "do not serve with it"
            )
        return worst


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(root: Path) -> ExportManifest:
    path = root / MANIFEST
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{root}: not an exported model ({MANIFEST} is missing); make one with "
            "'hisac-rec export RUN --out FOLDER'"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not readable: {error}") from None
    if found.get("format") not in (FORMAT, FORMAT_OF_VOTES):
        raise UserError(
            f"{path}: format {found.get('format')}, this release reads {FORMAT} and "
            f"{FORMAT_OF_VOTES}; export again"
        )
    try:
        return ExportManifest.model_validate(found)
    except ValueError as error:
        raise UserError(f"{path}: not readable: {error}") from None


def _check(path: Path, digest: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing; copy or export the model again")
    if digest_of(path) != digest:
        raise UserError(f"{path}: not what was exported (its checksum differs); copy it again")


def _load_program(root: Path):  # type: ignore[no-untyped-def]
    if (root / COMPILED).is_file():
        try:
            return torch._inductor.aoti_load_package(str(root / COMPILED))
        except (RuntimeError, OSError) as error:
            log.warning("%s does not load here (%s): the program runs eagerly", COMPILED, error)
    return torch.export.load(root / PROGRAM).module()
