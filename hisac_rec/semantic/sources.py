"""One source vector per item, from what the data has: content, text, or who consumed it.

Legend: I items (row 0 = the unknown item), s width of a source vector.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.collaborative import collaborative_vectors, fold_in
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.embeddings import read_embeddings
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
    inputs: list[str] = field(default_factory=list)
    """For people: what was read besides the prepared data."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of that."""


class Part(NamedTuple):
    """Vectors out of one source."""

    vectors: Vectors
    """[I, s]; zeros where it knows nothing of an item."""
    made_by: Arrays
    """What places further items in the same space."""
    inputs: list[str] = []
    digests: dict[str, str] = {}


def choose_source(data: PreparedData, config: SemanticIdConfig) -> SemanticIdConfig:
    """Replace "auto" by the best source the data has, and check that the source is there.

    Raises:
        UserError: the column that the source needs is missing; names the sources there are.
    """
    manifest = data.manifest
    there = {
        "content": manifest.content_dim is not None or config.embeddings is not None,
        "text": manifest.has_text,
        "collaborative": True,
    }
    if config.source == "auto":
        return config.model_copy(update={"source": next(name for name in there if there[name])})
    if config.embeddings is not None and "content" not in config.source:
        raise UserError(
            f"key 'semantic_ids.embeddings' = '{config.embeddings}': source = '{config.source}' "
            "does not read them; set source to 'content' or 'content+collaborative', or leave them "
            "away"
        )
    names = ", ".join(name for name in there if there[name])
    for part in config.source.split("+"):
        if not there[part]:
            raise UserError(
                f"{data.root / 'items.parquet'}: source = '{config.source}' needs a column "
                f"'{part}', which this data has not; give the items one in the data-set "
                f"definition, or choose among: {names}"
            )
    return config


class Means(NamedTuple):
    """What a text model computes with."""

    device: str = "cpu"
    older: tuple[Path, ...] = ()
    """Folders of other days, whose embedded texts are known."""


ON_CPU = Means()


def item_vectors(
    data: PreparedData, config: SemanticIdConfig, means: Means = ON_CPU
) -> ItemVectors:
    """Source vectors of all items.

    With two sources each half is scaled to length 1 (where ``normalise``), a half that an
    item lacks is predicted from the other by ridge regression (so that an item unseen in
    training is placed by its text), and the halves are weighted by ``collaborative_weight``.

    Args:
        data: the prepared data.
        config: with a source other than "auto"; see :func:`choose_source`.
        means: of a text model.

    Raises:
        UserError: no item has a vector, or values are not finite; names the row.
    """
    names = config.source.split("+")
    found = [_source(name, data, config, means) for name in names]
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
        found.append(_source_again(name, data, config, own, old, means))
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


def _source(name: str, data: PreparedData, config: SemanticIdConfig, means: Means) -> Part:
    """Vectors of one source."""
    path = data.root / "items.parquet"
    dim = config.dim or DEFAULT_DIM
    if name == "content":
        return _reduced(_content(data, config), config)
    if name == "text" and config.text.model is not None:
        return _reduced(_embedded(data, config, means), config)
    if name == "text":
        return Part(*text_vectors(data.items.column("text"), dim, config.text, config.seed, path))
    return Part(*collaborative_vectors(data, dim, config.collaborative, config.seed))


def _reduced(part: Part, config: SemanticIdConfig) -> Part:
    """Given embeddings at the width that is wanted."""
    given = part.vectors
    width = np.array(given.shape[1])
    if config.dim is None or config.dim >= given.shape[1]:
        return part._replace(made_by=part.made_by | {"width": width})
    reduced, directions = reduce_width(given, config.dim, config.seed)
    made_by = part.made_by | {"width": width, "directions": directions}
    return part._replace(vectors=reduced, made_by=made_by)


def _reduced_again(part: Part, stored: Arrays, where: str) -> Part:
    """Given embeddings of further items in the space of an earlier :func:`_reduced`."""
    given = part.vectors
    if given.shape[1] != int(stored["width"]):
        raise UserError(
            f"{where} is {given.shape[1]} wide, that of the earlier fit was "
            f"{int(stored['width'])}: fit these items anew, without --from"
        )
    if "directions" not in stored:
        return part
    return part._replace(vectors=project(given, stored["directions"]))


def _source_again(
    name: str,
    data: PreparedData,
    config: SemanticIdConfig,
    stored: Arrays,
    old: NDArray[np.int64],
    means: Means,
) -> Part:
    """Vectors of one source in the space of an earlier :func:`_source`."""
    if name == "content":
        where = config.embeddings or f"{data.root / 'items.parquet'}: 'content'"
        return _reduced_again(_content(data, config), stored, where)
    if name == "text" and config.text.model is not None:
        part = _embedded(data, config, means)
        if part.digests["text.model"] != str(stored["model"]):
            raise UserError(
                f"key 'semantic_ids.text.model' = '{config.text.model}': is not the model of the "
                "earlier fit (its weights or prompt differ), so its vectors lie elsewhere; fit "
                "these items anew, without --from"
            )
        return _reduced_again(part, stored, f"'{config.text.model}'")
    if name == "text":
        return Part(text_vectors_again(data.items.column("text"), config.text, stored), {})
    return Part(fold_in(data, old, stored, config.collaborative, config.seed), {})


def _embedded(data: PreparedData, config: SemanticIdConfig, means: Means) -> Part:
    """The items' texts by the model that the settings name."""
    from hisac_rec.semantic.text_model import CACHE_FILE, embed_texts

    found = embed_texts(
        data.items.column("text"),
        config.text,
        cache=data.root / CACHE_FILE,
        older=[folder / CACHE_FILE for folder in means.older],
        device=means.device,
    )
    made_by = {"model": np.array(found.digest)}
    return Part(found.vectors, made_by, [found.said], {"text.model": found.digest})


def _content(data: PreparedData, config: SemanticIdConfig) -> Part:
    """A copy of ``items.content``, zeros where null; or what the file of embeddings has."""
    path = data.root / "items.parquet"
    if config.embeddings is not None:
        read = read_embeddings(Path(config.embeddings), data)
        return Part(read.vectors, {}, [read.coverage], {"embeddings": read.digest})
    if "content" not in data.items.column_names:
        raise UserError(f"{path}: has no column 'content'; name a file with --embeddings")
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
    return Part(content, {})


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
