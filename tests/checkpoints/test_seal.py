"""Seals tell a damaged file by name, whatever the damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import one_process

from hisac_rec.checkpoints.seal import Seal, find_damage, seal_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.distcp").write_bytes(b"tensors" * 1000)
    (tmp_path / ".metadata").write_bytes(b"where they are")
    return tmp_path


def test_what_was_written_is_whole(folder: Path) -> None:
    with one_process():
        seals = seal_files(folder)
        assert list(seals) == [".metadata", "a.distcp"]
        assert seals["a.distcp"].bytes == 7000
        assert find_damage(folder, seals) == ""
        (folder / "manifest.json").write_text("{}")  # written after the seal
        assert find_damage(folder, seals) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.distcp is missing"),
        (b"tensors", "a.distcp has 7 bytes, 7,000 were written"),
        (b"Tensors" + b"tensors" * 999, "a.distcp is not what was written"),
    ],
)
def test_damage_is_named(folder: Path, content: bytes | None, message: str) -> None:
    with one_process():
        seals = seal_files(folder)
        if content is None:
            (folder / "a.distcp").unlink()
        else:
            (folder / "a.distcp").write_bytes(content)
        assert message in find_damage(folder, seals)


def test_a_checkpoint_of_before_seals_has_nothing_to_check(folder: Path) -> None:
    with one_process():
        assert find_damage(folder, {}) == ""
        assert find_damage(folder, {"gone": Seal(bytes=1, sha256="")}) == "gone is missing"
