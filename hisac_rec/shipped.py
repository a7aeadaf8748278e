"""Find the shipped models, data-set definitions, planner configs and so on by path or by name.

``models/hisac.toml``, ``hisac.toml`` and ``hisac`` all mean the same shipped file, in a
checkout and in an installed wheel (which carries the root folders inside the package).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hisac_rec.errors import UserError, did_you_mean

Kind = Literal["models", "models/search", "datasets", "launch/planners", "launch"]

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(kind: Kind) -> Path:
    """The folder of shipped files of one kind: in the wheel, else in the checkout."""
    inside = _PACKAGE / "shipped" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def shipped_names(kind: Kind) -> list[str]:
    """The names (without ``.toml``) that can be given instead of a path."""
    return sorted(path.stem for path in shipped_folder(kind).glob("*.toml"))


def find_config(kind: Kind, given: str | Path) -> Path:
    """Resolve what a person typed to an existing TOML file.

    Args:
        kind: which family of files is meant.
        given: a path, or the name of a shipped file with or without ``.toml``.

    Raises:
        UserError: neither a file nor a shipped name; lists the nearest names.
    """
    path = Path(given)
    if path.is_file():
        return path
    shipped = shipped_folder(kind) / f"{path.name.removesuffix('.toml')}.toml"
    bare = path.parent == Path() or path.parent.as_posix() == kind
    if bare and shipped.is_file():
        return shipped
    hint = did_you_mean(path.name.removesuffix(".toml"), shipped_names(kind))
    raise UserError(f"{given}: neither a file nor the name of a shipped one in {kind}/{hint}")
