"""Where checkpoints lie: a folder, or any URL that fsspec knows (``s3://``, ``gs://``, ...).

Either is a path: ``pathlib.Path`` where it is a folder, ``upath.UPath`` with the same methods
where it is a URL. What differs is here: how ``torch.distributed.checkpoint`` reads and writes
there, and how a checkpoint that has been written is made to count.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from upath import UPath

from hisac_rec.errors import UserError


def locate(where: str | Path) -> Path:
    """A path of either kind.

    Raises:
        UserError: nothing here knows such URLs; says what to install.
    """
    if "://" not in str(where):
        return Path(where).absolute()
    try:
        # A listing must show what other ranks have written in the meantime.
        found = UPath(str(where), use_listings_cache=False)
        found.exists()
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{where}: {error}; checkpoints may lie wherever fsspec finds a file system "
            "(pip install s3fs for s3://, gcsfs for gs://, adlfs for az://)"
        ) from None
    except OSError as error:
        raise UserError(f"{where}: cannot be reached: {error}") from None
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether files cannot be renamed at once there."""
    return not isinstance(path, Path)


def writer(path: Path) -> FileSystemWriter:
    """How ``torch.distributed.checkpoint`` writes to ``path``."""
    if is_remote(path):
        # What is closed has been stored: there is nothing to flush to a disk of this machine.
        return FsspecWriter(str(path), sync_files=False, **_options(path))
    return FileSystemWriter(str(path))


def reader(path: Path) -> FileSystemReader:
    """How ``torch.distributed.checkpoint`` reads from ``path``."""
    if is_remote(path):
        return FsspecReader(str(path), **_options(path))
    return FileSystemReader(str(path))


def remove(path: Path) -> None:
    """Remove a folder and all in it; one that is not there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    remote: UPath = path  # type: ignore[assignment]
    remote.fs.invalidate_cache()
    if remote.exists():
        remote.fs.rm(remote.path, recursive=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, and stays after a power failure."""
    if is_remote(path):  # an object is there when its upload has ended
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _options(path: Path) -> dict[str, Any]:
    return dict(path.storage_options)  # type: ignore[attr-defined]
