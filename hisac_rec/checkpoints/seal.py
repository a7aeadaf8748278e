"""Checksums of a checkpoint's files: what is read back is what was written.

The work is shared out: each rank reads every world-size-th file, once when the checkpoint is
written and once when it is loaded. All ranks see the same folder, as distributed checkpoints
need anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from hisac_rec.config import Strict

T = TypeVar("T")


class Seal(Strict):
    """What a file was when it was written."""

    bytes: int
    sha256: str


def seal_files(folder: Path, group: dist.ProcessGroup | None = None) -> dict[str, Seal]:
    """Name -> seal of every file of a folder, the same on all ranks. O(bytes / ranks) read.

    Called on every rank, after all of them have written.

    Raises:
        OSError: some rank could not read a file; on all ranks.
    """

    def mine() -> dict[str, Seal]:
        files = sorted(folder.iterdir(), key=lambda path: path.name)
        return {path.name: _seal(path) for path in _share(files)}

    seals: dict[str, Seal] = {}
    for part in _of_all(mine, group):
        seals |= part
    return dict(sorted(seals.items()))


def find_damage(folder: Path, seals: dict[str, Seal]) -> str:
    """What is wrong with the first damaged file, or ""; the same on all ranks.

    Called on every rank. O(bytes / ranks) read.
    """

    def mine() -> list[str]:
        return [_damage(folder / name, seals[name]) for name in _share(list(seals))]

    return next((problem for part in _of_all(mine) for problem in part if problem), "")


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


def _of_all(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """What each rank has made of its share; no rank waits for one that has failed."""
    mine: tuple[T | None, str] = (None, "")
    try:
        mine = (work(), "")
    except OSError as error:
        mine = (None, f"rank {dist.get_rank()}: {error}")
    every: list[tuple[T | None, str]] = [mine] * dist.get_world_size()
    dist.all_gather_object(every, mine, group=group)
    for _, problem in every:
        if problem:
            raise OSError(problem)
    return [part for part, _ in every if part is not None]
