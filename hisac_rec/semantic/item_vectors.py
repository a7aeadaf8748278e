"""One source vector per item: those of one source, or of two side by side.

Legend: I items (row 0 = the unknown item), s width of a source vector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.sources import (
    ON_CPU,
    Arrays,
    Flags,
    Means,
    Part,
    Vectors,
    vectors_again,
    vectors_of,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ItemVectors:
    """The input of a quantiser."""

    vectors: Vectors
    """[I, s]; items of which nothing is known hold the mean of the others."""
    known: Flags
    """[I]: the item has a vector of its own."""
    fit: Flags
    """[I]: the quantiser may learn from it; with a collaborative source, only what the
    training split has seen."""
    seen: Flags
    """[I]: the item occurs in the training period (``items.first_time``)."""
    featuriser: Arrays = field(default_factory=dict)
    """What :func:`placed_vectors` needs to place further items in the same space."""
    inputs: list[str] = field(default_factory=list)
    """For people: what was read besides the prepared data."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of that."""


def item_vectors(
    data: PreparedData, config: SemanticIdConfig, means: Means = ON_CPU
) -> ItemVectors:
    """Source vectors of all items.

    With two sources each half is scaled to length 1 (where ``normalise``), a half that an
    item lacks is predicted from the other by ridge regression (so that an item unseen in
    training is placed by its text), and the halves are weighted by ``collaborative_weight``.

    Args:
        data: the prepared data.
        config: with a source other than "auto"; see
            :func:`~hisac_rec.semantic.sources.choose_source`.
        means: of a text model.

    Raises:
        UserError: no item has a vector, or values are not finite; names the row.
    """
    names = config.source.split("+")
    found = [vectors_of(name, data, config, means) for name in names]
    parts = [part.vectors for part in found]
    featuriser = {
        f"{name}.{key}": array
        for name, part in zip(names, found, strict=True)
        for key, array in part.made_by.items()
    }
    known = _known(parts)
    if not known.any():
        raise UserError(
            f"{data.root / 'items.parquet'}: no item has a vector from source = "
            f"'{config.source}'; choose another 'source'"
        )
    fit = _nonzero(parts[names.index("collaborative")]) if "collaborative" in names else known
    if config.normalise:
        parts = [_unit(part) for part in parts]
    if len(parts) == 2:
        featuriser |= _predictor("first", parts[0], parts[1])
        featuriser |= _predictor("second", parts[1], parts[0])
    vectors = _combine(parts, featuriser, config)
    mean = vectors[fit].mean(axis=0)
    vectors[~known] = mean
    featuriser["mean"] = mean
    vectors = np.ascontiguousarray(vectors, np.float32)
    return ItemVectors(vectors, known, fit, _seen(data), featuriser, *_besides(found))


def placed_vectors(
    data: PreparedData,
    config: SemanticIdConfig,
    stored: Arrays,
    old: NDArray[np.int64],
    means: Means = ON_CPU,
) -> ItemVectors:
    """Source vectors of all items in the space of an earlier fit; nothing is fitted.

    Text goes through the stored vocabulary and directions, content through the stored
    directions; who consumed a new item is folded in
    (:func:`~hisac_rec.semantic.collaborative.fold_in`), and a half that a new item lacks is
    predicted by the stored regression.

    Args:
        data: the data whose items are wanted.
        config: of the earlier fit.
        stored: its ``featuriser``.
        old: [I] row of each item in the data of that fit, -1 where it is new.
        means: of a text model.

    Raises:
        UserError: the content embedding has another width, or values are not finite.
    """
    names = config.source.split("+")
    found = []
    for name in names:
        prefix = f"{name}."
        own = {
            key.removeprefix(prefix): value
            for key, value in stored.items()
            if key.startswith(prefix)
        }
        found.append(vectors_again(name, data, config, own, old, means))
    parts = [part.vectors for part in found]
    known = _known(parts)
    fit = _nonzero(parts[names.index("collaborative")]) if "collaborative" in names else known
    if config.normalise:
        parts = [_unit(part) for part in parts]
    vectors = _combine(parts, stored, config)
    vectors[~known] = stored["mean"]
    if "rotation" in stored:
        vectors = vectors @ stored["rotation"]
    vectors = np.ascontiguousarray(vectors, np.float32)
    return ItemVectors(vectors, known, fit, _seen(data), stored, *_besides(found))


def _combine(parts: list[Vectors], featuriser: Arrays, config: SemanticIdConfig) -> Vectors:
    """One vector of the parts of each item, a missing half predicted."""
    if len(parts) == 1:
        return parts[0]
    first = _fill_missing(parts[0], parts[1], "first", featuriser)
    second = _fill_missing(parts[1], parts[0], "second", featuriser)
    weight = config.collaborative_weight
    vectors = np.hstack([first * np.sqrt(1 - weight), second * np.sqrt(weight)])
    return _unit(vectors) if config.normalise else vectors


def _known(parts: list[Vectors]) -> Flags:
    """[I] whether any part knows the item; the unknown item 0 is made nobody in each."""
    known = np.zeros(len(parts[0]), bool)
    for part in parts:
        part[0] = 0.0
        known |= _nonzero(part)
    return known


def _seen(data: PreparedData) -> Flags:
    return np.asarray(data.items.column("first_time").is_valid(), dtype=bool)


def _besides(found: list[Part]) -> tuple[list[str], dict[str, str]]:
    """What the parts read besides the prepared data."""
    inputs = [line for part in found for line in part.inputs]
    for line in inputs:
        log.info("%s", line)
    return inputs, {key: value for part in found for key, value in part.digests.items()}


def _nonzero(vectors: Vectors) -> Flags:
    return np.asarray(vectors.any(axis=1), dtype=bool)


def _unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; rows of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _predictor(name: str, target: Vectors, given: Vectors) -> Arrays:
    """Ridge regression of ``target`` on ``given``, learned where an item has both."""
    from sklearn.linear_model import Ridge

    both = _nonzero(target) & _nonzero(given)
    if both.sum() < 2:
        return {}
    ridge = Ridge(alpha=1.0).fit(given[both], target[both])
    return {f"{name}.slopes": ridge.coef_, f"{name}.intercept": ridge.intercept_}


def _fill_missing(target: Vectors, given: Vectors, name: str, featuriser: Arrays) -> Vectors:
    """Fill rows of zeros in ``target`` by the regression on ``given``."""
    missing = ~_nonzero(target) & _nonzero(given)
    if not missing.any() or f"{name}.slopes" not in featuriser:
        return target
    filled = target.copy()
    slopes, intercept = featuriser[f"{name}.slopes"], featuriser[f"{name}.intercept"]
    filled[missing] = given[missing] @ slopes.T + intercept
    return filled
