"""One source vector per item, from what the data has: content, text, or who consumed it.

Legend: I items (row 0 = the unknown item), s width of a source vector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.collaborative import collaborative_vectors
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.reduction import reduce_width
from hisac_rec.semantic.text import text_vectors

log = logging.getLogger(__name__)

DEFAULT_DIM = 64
"""Width of text and collaborative vectors where ``dim`` is not given."""

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]


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
    parts = [_source(name, data, config) for name in names]
    known = np.zeros(data.manifest.items, bool)
    for part in parts:
        part[0] = 0.0  # the unknown item is nobody
        known |= _nonzero(part)
    if not known.any():
        raise UserError(
            f"{data.root / 'items.parquet'}: no item has a vector from source = "
            f"'{config.source}'; choose another 'source'"
        )
    fit = _nonzero(parts[names.index("collaborative")]) if "collaborative" in names else known
    if config.normalise:
        parts = [_unit(part) for part in parts]
    if len(parts) == 2:
        first, second = _predict_missing(parts[0], parts[1]), _predict_missing(parts[1], parts[0])
        weight = config.collaborative_weight
        vectors = np.hstack([first * np.sqrt(1 - weight), second * np.sqrt(weight)])
        if config.normalise:
            vectors = _unit(vectors)
    else:
        vectors = parts[0]
    vectors[~known] = vectors[fit].mean(axis=0)
    seen = np.asarray(data.items.column("first_time").is_valid(), dtype=bool)
    return ItemVectors(np.ascontiguousarray(vectors, np.float32), known, fit, seen)


def _source(name: str, data: PreparedData, config: SemanticIdConfig) -> Vectors:
    """[I, s] of one source, zeros where it knows nothing of an item."""
    path = data.root / "items.parquet"
    dim = config.dim or DEFAULT_DIM
    if name == "content":
        content = _content(data)
        if config.dim is None or config.dim >= content.shape[1]:
            return content
        return reduce_width(content, config.dim, config.seed)
    if name == "text":
        return text_vectors(data.items.column("text"), dim, config.text, config.seed, path)
    return collaborative_vectors(data, dim, config.collaborative, config.seed)


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


def _predict_missing(target: Vectors, given: Vectors) -> Vectors:
    """Fill rows of zeros in ``target`` by ridge regression on ``given``, learned on the rest."""
    from sklearn.linear_model import Ridge

    has_target, has_given = _nonzero(target), _nonzero(given)
    missing = ~has_target & has_given
    both = has_target & has_given
    if not missing.any() or both.sum() < 2:
        return target
    filled = target.copy()
    filled[missing] = Ridge(alpha=1.0).fit(given[both], target[both]).predict(given[missing])
    return filled
