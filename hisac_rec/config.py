"""Typed configuration: TOML in, validated and frozen pydantic models out.

Every configurable part owns a :class:`Strict` model next to its code, with a docstring
under each field (the configuration reference in ``docs/`` is generated from them). This
file knows how to read them and how to say what is wrong: unknown keys are errors that
name the nearest valid key, and every error names file, key, value and what is allowed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hisac_rec.errors import UserError, did_you_mean


class Strict(BaseModel):
    """Base of all configuration: no unknown keys, immutable, documented fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


C = TypeVar("C", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UserError: the file is absent or not TOML; names the file and the line.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a TOML file was expected") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split ``key.path=value`` of ``--set``; the value is TOML, or a bare string.

    Example::

        parse_override("train.lr=0.01")  # (["train", "lr"], 0.01)
        parse_override("history.method=din")  # (["history", "method"], "din")

    Raises:
        UserError: there is no ``=`` or an empty key.
    """
    key, sign, value = text.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not sign or not all(path):
        raise UserError(f"--set {text!r}: expected key.path=value, for example train.epochs=3")
    try:
        return path, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return path, value.strip()


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``raw`` with each ``key.path=value`` written into it."""
    result = _deep_copy(raw)
    for text in overrides:
        path, value = parse_override(text)
        node = result
        for part in path[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise UserError(f"--set {text!r}: '{part}' holds a value, not a table of keys")
            node = child
        node[path[-1]] = value
    return result


def load_config(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read, override and validate one configuration file.

    Args:
        model: the pydantic model of the whole file.
        path: the TOML file.
        overrides: ``key.path=value`` strings, applied in order.

    Raises:
        UserError: naming file, key, value and what is allowed, one line per mistake.
    """
    return validate(model, apply_overrides(read_toml(path), overrides), source=str(path))


def validate(model: type[C], raw: Mapping[str, Any], source: str) -> C:
    """Validate ``raw`` as ``model``; ``source`` is how messages name where it came from.

    Raises:
        UserError: see :func:`load_config`.
    """
    try:
        return model.model_validate(dict(raw))
    except ValidationError as error:
        lines = [_explain(model, details) for details in error.errors()]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def dump_toml(config: BaseModel) -> str:
    """Serialise a configuration to TOML; keys that are None are left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True), multiline_strings=True)


def _explain(model: type[BaseModel], details: ErrorDetails) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        valid = _keys_beside(model, details["loc"])
        return f"unknown key '{key}'{did_you_mean(str(details['loc'][-1]), valid)}"
    if details["type"] == "missing":
        return f"key '{key}' is required"
    where = f"key '{key}' = {details['input']!r}: " if key else ""
    return f"{where}{details['msg'].removeprefix('Value error, ')}"


def _keys_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the table in which ``location`` lies."""
    here: Any = model
    for part in location[:-1]:
        here = _descend(here, part)
    found = _model_in(here)
    return list(found.model_fields) if found is not None else []


def _descend(annotation: Any, part: int | str) -> Any:
    """The annotation of key ``part`` of a table of type ``annotation``."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            return field.annotation if field is not None else None
        if getattr(kind, "__origin__", None) in (dict, list):  # keyed by names of the user's
            return kind.__args__[-1]
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _deep_copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _deep_copy(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_deep_copy(value) for value in node]
    return node
