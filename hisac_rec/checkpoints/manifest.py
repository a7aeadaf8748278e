"""``manifest.json`` of a checkpoint: what it is, and what must agree where it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hisac_rec.checkpoints.seal import Seal
from hisac_rec.config import Strict
from hisac_rec.errors import UserError

MANIFEST = "manifest.json"


class Position(Strict):
    """How far training has come."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epoch being read."""
    batch: int = 0
    """Steps done within the epoch."""
    candidates: int = 0
    """Candidates of all ranks read within the epoch."""
    evaluated: int = -1
    """Step of the last evaluation."""
    owed: bool = False
    """The evaluation of this step was broken off: it comes before anything else."""


class CheckpointManifest(Strict):
    """``manifest.json`` of a checkpoint."""

    position: Position
    world_size: int
    """Ranks that wrote it."""
    loader: dict[str, Any] = {}
    """``[loader]`` of the model file: how the epoch was cut and dealt out."""
    architecture: dict[str, Any]
    """The parts of the model file that shape the tensors."""
    data_fingerprint: str
    """Of the prepared data."""
    semantics_fingerprint: str
    """Of the codebook; empty without one."""
    metrics: dict[str, float]
    """Validation metrics of the last evaluation."""
    best: dict[str, float]
    """Early-stop state: best metric so far and evaluations since."""
    score: float | None = None
    """The metric that training is about, the larger the better; None where this step was not
    evaluated."""
    versions: dict[str, str] = {}
    """Installed versions that wrote it."""
    files: dict[str, Seal] = {}
    """Size and checksum of every file beside this one."""


def read_manifest(path: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest.

    Raises:
        UserError: it is absent or not readable.
    """
    try:
        return CheckpointManifest.model_validate(json.loads((path / MANIFEST).read_text()))
    except FileNotFoundError:
        raise UserError(f"{path}: not a complete checkpoint ({MANIFEST} is missing)") from None
    except ValueError as error:
        raise UserError(f"{path / MANIFEST}: not readable: {error}") from None


def require_same(path: Path, found: CheckpointManifest, expected: CheckpointManifest) -> None:
    """Refuse a checkpoint of another model, other data or other semantic ids.

    Raises:
        UserError: names the first key that differs and both values.
    """
    changed = first_difference(found.architecture, expected.architecture)
    if changed:
        raise UserError(
            f"{path}: the checkpoint is for another model: {changed} in this configuration"
        )
    if found.data_fingerprint != expected.data_fingerprint:
        raise UserError(
            f"{path}: the checkpoint was made on other data (fingerprint "
            f"{found.data_fingerprint[:12]}, this data has {expected.data_fingerprint[:12]})"
        )
    if found.semantics_fingerprint != expected.semantics_fingerprint:
        raise UserError(
            f"{path}: the checkpoint was made with other semantic ids (fingerprint "
            f"{found.semantics_fingerprint[:12]}, this data has "
            f"{expected.semantics_fingerprint[:12]}); fit them again with the same settings"
        )


def first_difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """``"key.path = 1 there, 2"`` for the first key of two nested tables that differs, or ""."""
    theirs, mine = flatten(there), flatten(here)
    for key in sorted(mine.keys() | theirs.keys()):
        if mine.get(key) != theirs.get(key):
            return f"{key} = {theirs.get(key)!r} there, {mine.get(key)!r}"
    return ""


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table of dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
