"""Small text files, written whole or not at all."""

from __future__ import annotations

from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old text or the new one.

    Nothing is flushed to the disk: it is for files that are soon written or easily made again.

    Raises:
        OSError: the disk is full or the folder is gone; the old text stays.
    """
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
