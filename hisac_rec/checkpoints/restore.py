"""Loading a checkpoint into a sharded model, of any plan and any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.checkpoints.column_state import load_converted, other_layouts
from hisac_rec.checkpoints.location import reader
from hisac_rec.checkpoints.managed_state import (
    collision_modules,
    load_moved,
    never_loaded,
    of_other_cuts,
    state_of,
)
from hisac_rec.checkpoints.manifest import CheckpointManifest, read_manifest, require_same
from hisac_rec.checkpoints.random_state import current_random_state, load_random_state
from hisac_rec.checkpoints.seal import find_damage
from hisac_rec.checkpoints.stored_tensors import StoredTensors
from hisac_rec.errors import UserError
from hisac_rec.train.optim import Optimizers


def flat_state(model: DistributedModelParallel, optimizers: Optimizers | None) -> dict[str, Any]:
    """Dotted name -> tensor of all that training changes; the tensors are the model's own.

    Args:
        model: sharded.
        optimizers: None for the weights alone.
    """
    state: dict[str, Any] = {"model": model.state_dict()}
    if optimizers is not None:
        state["optimizers"] = optimizers.state()
    return flatten_state_dict(state)[0]


def whole_state(model: DistributedModelParallel, optimizers: Optimizers) -> dict[str, Any]:
    """:func:`flat_state` and this rank's random state: what a checkpoint holds."""
    return flat_state(model, optimizers) | current_random_state()


def load_checkpoint(
    path: Path,
    model: DistributedModelParallel,
    optimizers: Optimizers | None,
    expected: CheckpointManifest,
) -> CheckpointManifest:
    """Load weights, and optimiser and random states where given, in place. Called on every rank.

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
    require_same(path, manifest, expected)
    require_whole(path, manifest)
    flat = flat_state(model, optimizers)
    try:
        stored = reader(path).read_metadata()
        source = StoredTensors(path)
        moved = of_other_cuts(source, model)
        apart = never_loaded(flat).union(*(state_of(table, flat) for table in moved))
        flat_here = {key: value for key, value in flat.items() if key not in apart}
        converted = other_layouts(flat_here, stored)
        direct = {key: value for key, value in flat_here.items() if key not in converted}
        dcp.load(direct, storage_reader=reader(path))
        load_converted(path, converted, flat, stored)
        for table in moved:
            load_moved(source, table, model, flat)
        for module in collision_modules(model).values():
            module.forget_round()
        if optimizers is not None:
            load_random_state(path, stored, manifest)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise _unreadable(path, error) from error
    except dcp.api.CheckpointException as error:
        # The exception's own text is the tracebacks of all ranks.
        cause = next((failure[0] for failure in error.failures.values()), error)
        raise _unreadable(path, cause) from error
    return manifest


def require_whole(path: Path, manifest: CheckpointManifest) -> None:
    """Check every file against its seal. Called on every rank.

    Raises:
        UserError: names the file that is damaged.
    """
    damage = find_damage(path, manifest.files)
    if damage:
        raise UserError(
            f"{path}: the checkpoint cannot be read: {damage}; choose another with "
            "--checkpoint, or delete the folder to go on from the one before"
        )


def _unreadable(path: Path, cause: BaseException) -> UserError:
    text = f"{path}: the checkpoint cannot be read: {cause}"
    if "Size mismatch" in text:
        # Since items without a place in the tree have a row of their own in the tables of codes.
        text += (
            "; an earlier release made tables of other sizes: train anew, or start from it with "
            "'hisac-rec train --warm-start'"
        )
    return UserError(text)
