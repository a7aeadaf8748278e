"""Checksums of a checkpoint's files: what is read back is what was written.

The work is shared out: each rank reads every world-size-th file, once when the checkpoint is
written and once when it is loaded. All ranks see the same folder, as distributed checkpoints
need anyway.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from hisac_rec.config import Strict

T = TypeVar("T")


class Seal(Strict):
    """What a file was when it was written."""

    bytes: int
    sha256: str


def seal_files(folder: Path) -> dict[str, Seal]:
    """Name -> seal of every file of a folder, the same on all ranks. O(bytes / ranks) read.

    Called on every rank, after all of them have written.
    """
    mine = {path.name: _seal(path) for path in _share(sorted(folder.iterdir()))}
    seals: dict[str, Seal] = {}
    for part in _gathered(mine):
        seals |= part
    return dict(sorted(seals.items()))


def find_damage(folder: Path, seals: dict[str, Seal]) -> str:
    """What is wrong with the first damaged file, or ""; the same on all ranks.

    Called on every rank. O(bytes / ranks) read.
    """
    found = [_damage(folder / name, seals[name]) for name in _share(list(seals))]
    return next((problem for part in _gathered(found) for problem in part if problem), "")


def _seal(path: Path) -> Seal:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Seal(bytes=path.stat().st_size, sha256=digest)


def _damage(path: Path, written: Seal) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != written.bytes:
        return f"{path.name} has {size:,} bytes, {written.bytes:,} were written"
    if _seal(path) != written:
        return f"{path.name} is not what was written (its checksum differs)"
    return ""


def _share(files: list[T]) -> list[T]:
    return files[dist.get_rank() :: dist.get_world_size()]


def _gathered(mine: T) -> list[T]:
    every: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return [part for part in every if part is not None]
