"""Checkpoints through ``torch.distributed.checkpoint``: written whole or not at all.

``checkpoints/step-00001200/`` holds the tensors of all ranks and ``manifest.json``, which seals
their files by checksum; a checkpoint without a manifest does not count. Tensors are re-sharded on
load, so a checkpoint of two ranks loads on one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.train.column_state import load_converted, other_layouts
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.reading import Reading
from hisac_rec.train.seal import Seal, find_damage, seal_files

MANIFEST = "manifest.json"
BEST = "best"
"""Text file beside the checkpoints that names the best one."""


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
    """Validation metrics at that step."""
    best: dict[str, float]
    """Early-stop state: best metric so far and evaluations since."""
    files: dict[str, Seal] = {}
    """Size and checksum of every file beside this one."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``<run>/checkpoints``.
        keep: newest ones kept, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self._keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        found = self.folder.glob(f"step-*/{MANIFEST}")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def path(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.folder / f"step-{step:08d}"

    def find(self, which: str) -> Path:
        """Resolve "last", "best" or a step number.

        Raises:
            UserError: there is no such checkpoint; lists those there are.
        """
        steps = self.steps()
        best = self.folder / BEST
        if which == "best" and best.is_file() and int(best.read_text()) in steps:
            return self.path(int(best.read_text()))
        if which in ("last", "best") and steps:
            return self.path(steps[-1])
        if which.isdigit() and int(which) in steps:
            return self.path(int(which))
        raise UserError(
            f"{self.folder}: no checkpoint '{which}'; there "
            + (f"are steps {', '.join(map(str, steps))}" if steps else "is none yet")
        )

    def save(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        manifest: CheckpointManifest,
        reading: Reading,
        *,
        is_best: bool,
    ) -> None:
        """Write a checkpoint under a temporary name, rename it, drop the oldest ones.

        Called on every rank.
        """
        final = self.path(manifest.position.step)
        temporary = final.with_name(f".{final.name}.partial")
        first = dist.get_rank() == 0
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        dist.barrier()
        dcp.save(_state(model, optimizers), checkpoint_id=str(temporary))
        reading.save(temporary)
        dist.barrier()
        sealed = manifest.model_copy(update={"files": seal_files(temporary)})
        if first:
            (temporary / MANIFEST).write_text(sealed.model_dump_json(indent=1))
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            if is_best:
                pointer = self.folder / f".{BEST}.partial"
                pointer.write_text(str(manifest.position.step))
                pointer.rename(self.folder / BEST)
            self._drop_old()
        dist.barrier()

    def _drop_old(self) -> None:
        best = self.folder / BEST
        kept = {int(best.read_text())} if best.is_file() else set()
        kept |= set(self.steps()[-self._keep :])
        for step in self.steps():
            if step not in kept:
                # Without its manifest a checkpoint no longer counts: remove that first.
                (self.path(step) / MANIFEST).unlink()
                shutil.rmtree(self.path(step))


def load_checkpoint(
    path: Path,
    model: DistributedModelParallel,
    optimizers: Optimizers | None,
    expected: CheckpointManifest,
) -> CheckpointManifest:
    """Load weights, and optimiser states where given, in place. Called on every rank.

    Args:
        path: a checkpoint folder.
        model: sharded, of any plan and world size.
        optimizers: None for evaluation.
        expected: what this run would write; architecture and data must agree.

    Raises:
        UserError: the checkpoint is damaged or for another configuration or data; names the
            first key that differs and both values.
    """
    manifest = read_manifest(path)
    _require_same(path, manifest, expected)
    damage = find_damage(path, manifest.files)
    if damage:
        raise UserError(
            f"{path}: the checkpoint cannot be read: {damage}; choose another with "
            "--checkpoint, or delete the folder to go on from the one before"
        )
    flat, _ = flatten_state_dict(_state(model, optimizers))
    try:
        stored = dcp.FileSystemReader(str(path)).read_metadata()
        converted = other_layouts(flat, stored)
        direct = {key: value for key, value in flat.items() if key not in converted}
        dcp.load(direct, checkpoint_id=str(path))
        load_converted(path, converted, flat, stored)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: the checkpoint cannot be read: {error}") from error
    except dcp.api.CheckpointException as error:
        # The exception's own text is the tracebacks of all ranks.
        cause = next((failure[0] for failure in error.failures.values()), error)
        raise UserError(f"{path}: the checkpoint cannot be read: {cause}") from error
    return manifest


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


def _state(model: DistributedModelParallel, optimizers: Optimizers | None) -> dict[str, Any]:
    state: dict[str, Any] = {"model": model.state_dict()}
    if optimizers is not None:
        state["optimizers"] = optimizers.state()
    return state


def _require_same(path: Path, found: CheckpointManifest, expected: CheckpointManifest) -> None:
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
