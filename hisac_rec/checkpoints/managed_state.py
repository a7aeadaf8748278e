"""Managed tables in checkpoints: read on any number of ranks, and by other runs.

Where ranks are as many as wrote it, the mapping is loaded like any other tensor. On others, and
where a run starts from another, it is read whole, cut anew and the rows are copied after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hisac_rec.checkpoints.row_copy import copy_rows
from hisac_rec.checkpoints.row_matching import Match
from hisac_rec.checkpoints.stored_tensors import StoredTensors
from hisac_rec.data.jagged import Ints
from hisac_rec.managed.mapping import RowMapping
from hisac_rec.managed.modules import CollisionModule

log = logging.getLogger(__name__)

KEY = re.compile(r"\._managed_collision_modules\.(\w+)\.(\w+)$")
"""A buffer of a managed table in a checkpoint."""

SEGMENTS, STEP = "_output_segments_tensor", "_current_iter_tensor"
KEYS, ROWS = "_mch_sorted_raw_ids", "_mch_remapped_ids_mapping"


def collision_modules(model: nn.Module) -> dict[str, CollisionModule]:
    """Table -> this rank's managed collision module of it."""
    found = (module for module in model.modules() if isinstance(module, CollisionModule))
    return {str(module._name): module for module in found}


def stored_mapping(source: StoredTensors, table: str) -> RowMapping | None:
    """The mapping of a table in a checkpoint; None where it is not a managed one. O(X)."""
    keys = _stored(source, table)
    if KEYS not in keys:
        return None
    tensors = {key: torch.empty(source.of(key).size, dtype=torch.int64) for key in keys.values()}  # type: ignore[union-attr]
    source.read(dict(tensors))
    found = {name: tensors[key].numpy() for name, key in keys.items()}
    counts = {
        name.removeprefix("_mch_"): values
        for name, values in found.items()
        if name not in (SEGMENTS, STEP, KEYS, ROWS)
    }
    segments = found[SEGMENTS]
    return RowMapping(segments[segments >= 0], found[KEYS], found[ROWS], counts)


def never_loaded(flat: Iterable[str]) -> set[str]:
    """Keys of the state that say how this run is cut."""
    return {key for key in flat if (name := KEY.search(key)) and name[2] == SEGMENTS}


def of_other_cuts(source: StoredTensors, model: nn.Module) -> list[str]:
    """Managed tables whose blocks the checkpoint has cut elsewhere."""
    found = []
    for table, module in collision_modules(model).items():
        key = _stored(source, table)[SEGMENTS]
        there = torch.empty_like(module._init_output_segments_tensor, device="cpu")
        source.read({key: there})
        if not torch.equal(there, module._init_output_segments_tensor.cpu()):
            found.append(table)
    return found


def state_of(table: str, flat: dict[str, Any]) -> set[str]:
    """Keys of all that is kept of a managed table, but for its step."""
    return {
        key
        for key in flat
        if f".embeddings.{table}." in key
        or ((name := KEY.search(key)) and name[1] == table and name[2] != STEP)
    }


def load_moved(
    source: StoredTensors, table: str, model: nn.Module, flat: dict[str, Any], *, state: bool = True
) -> tuple[Match, int]:
    """Fill a managed table's mapping, rows and, where asked for, optimiser state, in place. Called
    on every rank, each for itself.

    Returns:
        Which row there each row here is, and how many rows of this rank were found.
    """
    stored = stored_mapping(source, table)
    module = collision_modules(model)[table]
    assert stored is not None
    here, before, left_out = stored.cut_anew(_segments(module))
    if left_out:
        log.warning(
            "table %s: %s of %s ids were left out: with blocks of other sizes, some have more ids "
            "than rows",
            table,
            f"{left_out:,}",
            f"{left_out + int((before >= 0).sum()) - len(here.segments) + 1:,}",
        )
    own = slice(module._output_global_offset, module._output_global_offset + module._zch_size)
    module._mch_sorted_raw_ids.copy_(torch.from_numpy(here.keys[own]))
    module._mch_remapped_ids_mapping.copy_(torch.from_numpy(here.rows[own]))
    for name, buffer in module._mch_metadata.items():
        if name in here.counts:
            buffer.copy_(torch.from_numpy(here.counts[name][own]))
    match = Match(lambda first, end: before[first:end], "keys of raw ids")
    key = next(key for key in flat if key.endswith(f".embeddings.{table}.weight"))
    there = source.key_of(table)
    assert there is not None
    return match, copy_rows(source, key, there, flat, match, with_state=state)


def take_step_over(source: StoredTensors, table: str, model: nn.Module) -> None:
    """Go on counting steps where that run was: the ages of ids are counted from there."""
    key = _stored(source, table)[STEP]
    source.read({key: collision_modules(model)[table]._current_iter_tensor})


def _stored(source: StoredTensors, table: str) -> dict[str, str]:
    """Buffer -> its key in the checkpoint."""
    names = ((key, KEY.search(key)) for key in source.stored.state_dict_metadata)
    return {name[2]: key for key, name in names if name is not None and name[1] == table}


def _segments(module: CollisionModule) -> Ints:
    segments = module._init_output_segments_tensor.cpu().numpy()
    found: Ints = segments[segments >= 0]
    return found
