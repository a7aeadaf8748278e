"""What is searched: the common keys of a file, and the method's own.

Every dimension holds the model file's own value, so that the first trial can be the defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import model_validator

from hisac_rec.config import Strict, parse_override
from hisac_rec.errors import UserError
from hisac_rec.methods.base import find_method
from hisac_rec.ranker.config import ModelConfig, load_model_config, resolve_model_config

Values = dict[str, Any]
"""Key of the model file, dotted -> value."""


class Dimension(Strict):
    """How one key is searched: a range (``low`` and ``high``) or a list of ``values``."""

    low: int | float | None = None
    """Smallest value. Whole numbers at both ends give whole numbers in between."""
    high: int | float | None = None
    """Largest value, itself included."""
    log: bool = False
    """Draw from the range's logarithm: for rates and scales."""
    values: list[Any] | None = None
    """The values to choose from, instead of a range."""

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        if self.values is not None:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("give low and high, or values, not both")
            if not self.values:
                raise ValueError("values is empty")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or values")
        if self.low >= self.high:
            raise ValueError("low must be less than high")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range starts above 0")
        return self

    def probes(self) -> list[Any]:
        """Values that a model file must accept for the dimension to make sense."""
        return [self.low, self.high] if self.values is None else self.values

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it. Listed values go as JSON: Optuna takes no lists as choices."""
        if self.values is not None:
            return CategoricalDistribution([json.dumps(value) for value in self.values])
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        assert self.low is not None  # of the validator
        assert self.high is not None
        return FloatDistribution(self.low, self.high, log=self.log)

    def encode(self, value: Any) -> Any:
        """A value as :meth:`distribution` has it."""
        return value if self.values is None else json.dumps(value)

    def decode(self, parameter: Any) -> Any:
        """The value behind Optuna's parameter."""
        return parameter if self.values is None else json.loads(parameter)


class SearchSpace(Strict):
    """A whole search space (``models/search/*.toml``): what is searched for every model."""

    keys: dict[str, Dimension]
    """Dotted key of the model file, such as ``"train.sparse_lr"``, and how it is searched."""


@dataclass(frozen=True)
class Search:
    """What is searched for one model; made by :func:`open_search`.

    Args:
        name: of the model, in tables and folders.
        source: the model file, for messages.
        base: the model file, resolved.
        dimensions: dotted key -> how it is searched; holds the base's own value.
    """

    name: str
    source: str
    base: ModelConfig
    dimensions: dict[str, Dimension]

    @property
    def metric(self) -> str:
        """The validation metric that decides: the model file's ``train.metric``."""
        return self.base.train.metric

    def defaults(self) -> Values:
        """The model file's own values of the searched keys."""
        return {key: get_key(self.base, key) for key in self.dimensions}

    def config(self, values: Values) -> ModelConfig:
        """The model file with these values.

        Raises:
            UserError: they do not fit together.
        """
        return with_values(self.base, values, self.source)


def open_search(path: Path, space: SearchSpace, overrides: Sequence[str], source: str) -> Search:
    """What is searched for a model file: the space's keys, then the method's own ones.

    A key that an override sets is fixed and not searched.

    Args:
        path: the model file; its stem is the model's name.
        space: the common keys.
        overrides: ``key.path=value`` over the model file.
        source: the space's file, for messages.

    Raises:
        UserError: a key or value that the model file does not take; names both files.
    """
    base = load_model_config(path, list(overrides))
    own = find_method(base.method).search
    dimensions = {f"history.{key}": Dimension(values=values) for key, values in own.items()}
    sources = dict.fromkeys(dimensions, f"the method '{base.method}': what it names for search")
    # The file has the last word on a method's key, but common keys stand first.
    dimensions = space.keys | {k: d for k, d in dimensions.items() if k not in space.keys}
    fixed = {".".join(parse_override(text)[0]) for text in overrides}
    return Search(
        path.stem,
        str(path),
        base,
        {
            key: _fit(key, dimension, base, f"{sources.get(key, source)}, for {path}")
            for key, dimension in dimensions.items()
            if key not in fixed
        },
    )


def get_key(config: ModelConfig, key: str) -> Any:
    """The value of a dotted key of a resolved model file; None where it is left out."""
    *tables, last = key.split(".")
    node = config.model_dump(mode="json")
    for table in tables:
        node = node[table]
    return node.get(last)


def with_values(base: ModelConfig, values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model file with other values at dotted keys.

    Raises:
        UserError: naming ``source``, key and value.
    """
    raw = base.model_dump(mode="json")
    for key, value in values.items():
        *tables, last = key.split(".")
        node = raw
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise UserError(f"{source}: key '{key}': '{table}' holds a value, not a table")
        node[last] = value
    return resolve_model_config(raw, source)


def _fit(key: str, dimension: Dimension, base: ModelConfig, source: str) -> Dimension:
    """The dimension in the model file's own types, widened to hold the file's own value."""
    probes = [get_key(with_values(base, {key: v}, source), key) for v in dimension.probes()]
    default = get_key(base, key)
    if dimension.values is not None:
        here = {json.dumps(value) for value in probes}
        first = [] if json.dumps(default) in here else [default]
        return dimension.model_copy(update={"values": first + probes})
    if isinstance(default, bool) or not isinstance(default, int | float):
        raise UserError(
            f"{source}: key '{key}' is {default!r}, not a number: give values, not a range"
        )
    if dimension.log and default <= 0:
        raise UserError(
            f"{source}: key '{key}' is {default}, which no logarithmic range holds; leave 'log' "
            "out, or set the key in the model file"
        )
    ends = {"low": min(default, *probes), "high": max(default, *probes)}
    return dimension.model_copy(update=ends)
