"""One source vector per item, from what the data has: content, text, or who consumed it.

Legend: I items (row 0 = the unknown item), s width of a source vector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.collaborative import collaborative_vectors, fold_in
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.reduction import project, reduce_width
from hisac_rec.semantic.text import text_vectors, text_vectors_again

log = logging.getLogger(__name__)

DEFAULT_DIM = 64
"""Width of text and collaborative vectors where ``dim`` is not given."""

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
Arrays = dict[str, NDArray]


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


def choose_source(data: PreparedData, config: SemanticIdConfig) -> SemanticIdConfig:
    """Replace "auto" by the best source the data has, and check that the source is there.

    Raises:
        UserError: the column that the source needs is missing; names the sources there are.
    """
    manifest = data.manifest
    there = {
        "content": manifest.content_dim is not None,
        "text": manifest.has_text,
        "collaborative": True,
    }
    if config.source == "auto":
        return config.model_copy(update={"source": next(name for name in there if there[name])})
    names = ", ".join(name for name in there if there[name])
    for part in config.source.split("+"):
        if not there[part]:
            raise UserError(
                f"{data.root / 'items.parquet'}: source = '{config.source}' needs a column "
                f"'{part}', which this data has not; give the items one in the data-set "
                f"definition, or choose among: {names}"
            )
    return config


def item_vectors(data: PreparedData, config: SemanticIdConfig) -> ItemVectors:
    """Source vectors of all items.

    With two sources each half is scaled to length 1 (where ``normalise``), a half that an
    item lacks is predicted from the other by ridge regression (so that an item unseen in
    training is placed by its text), and the halves are weighted by ``collaborative_weight``.

    Args:
        data: the prepared data.
        config: with a source other than "auto"; see :func:`choose_source`.

    Raises:
        UserError: no item has a vector, or values are not finite; names the row.
    """
    names = config.source.split("+")
    parts, featuriser = [], Arrays()
    for name in names:
        part, made_by = _source(name, data, config)
        parts.append(part)
        featuriser |= {f"{name}.{key}": array for key, array in made_by.items()}
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
    return ItemVectors(vectors, known, fit, _seen(data), featuriser)


def placed_vectors(
    data: PreparedData, config: SemanticIdConfig, stored: Arrays, old: NDArray[np.int64]
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

    Raises:
        UserError: the content embedding has another width, or values are not finite.
    """
    names = config.source.split("+")
    parts = []
    for name in names:
        prefix = f"{name}."
        own = {
            key.removeprefix(prefix): value
            for key, value in stored.items()
            if key.startswith(prefix)
        }
        parts.append(_source_again(name, data, config, own, old))
    known = _known(parts)
    fit = _nonzero(parts[names.index("collaborative")]) if "collaborative" in names else known
    if config.normalise:
        parts = [_unit(part) for part in parts]
    vectors = _combine(parts, stored, config)
    vectors[~known] = stored["mean"]
    if "rotation" in stored:
        vectors = vectors @ stored["rotation"]
    return ItemVectors(np.ascontiguousarray(vectors, np.float32), known, fit, _seen(data), stored)


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


def _source(name: str, data: PreparedData, config: SemanticIdConfig) -> tuple[Vectors, Arrays]:
    """[I, s] of one source, zeros where it knows nothing of an item, and what made it."""
    path = data.root / "items.parquet"
    dim = config.dim or DEFAULT_DIM
    if name == "content":
        content = _content(data)
        width = np.array(content.shape[1])
        if config.dim is None or config.dim >= content.shape[1]:
            return content, {"width": width}
        reduced, directions = reduce_width(content, config.dim, config.seed)
        return reduced, {"width": width, "directions": directions}
    if name == "text":
        return text_vectors(data.items.column("text"), dim, config.text, config.seed, path)
    return collaborative_vectors(data, dim, config.collaborative, config.seed)


def _source_again(
    name: str, data: PreparedData, config: SemanticIdConfig, stored: Arrays, old: NDArray[np.int64]
) -> Vectors:
    """[I, s] of one source in the space of an earlier :func:`_source`."""
    if name == "content":
        content = _content(data)
        if content.shape[1] != int(stored["width"]):
            raise UserError(
                f"{data.root / 'items.parquet'}: 'content' is {content.shape[1]} wide, that of the "
                f"earlier fit was {int(stored['width'])}: fit these items anew, without --from"
            )
        return project(content, stored["directions"]) if "directions" in stored else content
    if name == "text":
        return text_vectors_again(data.items.column("text"), config.text, stored)
    return fold_in(data, old, stored, config.collaborative, config.seed)


def _content(data: PreparedData) -> Vectors:
    """[I, s] copy of ``items.content``, zeros where null."""
    path = data.root / "items.parquet"
    column = data.items.column("content").combine_chunks()
    width = column.type.list_size
    flat = column.values.slice(column.offset * width, len(column) * width)
    content = flat.to_numpy(zero_copy_only=False).reshape(-1, width).astype(np.float32)
    content[column.is_null().to_numpy(zero_copy_only=False)] = 0.0
    wrong = np.flatnonzero(~np.isfinite(content).all(axis=1))
    if len(wrong):
        raise UserError(
            f"{path}: row {wrong[0]}: 'content' is not finite ({len(wrong)} such rows); "
            "mend the embedding or make it null"
        )
    return content


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
