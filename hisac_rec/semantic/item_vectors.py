"""One source vector per item: those of one source, or of two side by side.

Legend: I items (row 0 = the unknown item), s width of a source vector, V views.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace

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
    """The input of a quantiser: view after view, I rows each."""

    vectors: Vectors
    """[V I, s]; items of which nothing is known hold the mean of the others."""
    known: Flags
    """[V I]: the item has a vector of its own."""
    fit: Flags
    """[V I]: the quantiser may learn from it; with a collaborative source, only what the
    training split has seen often enough."""
    seen: Flags
    """[I]: the item occurs in the training period (``items.first_time``)."""
    featuriser: Arrays = field(default_factory=dict)
    """What :func:`placed_vectors` needs to place further items in the same space."""
    inputs: list[str] = field(default_factory=list)
    """For people: what was read besides the prepared data."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of that."""
    support: NDArray[np.float32] | None = None
    """[V, I] users behind each vector, where who consumed what is a source."""


def item_vectors(
    data: PreparedData, config: SemanticIdConfig, means: Means = ON_CPU
) -> ItemVectors:
    """Source vectors of all items, in every view.

    With two sources each half is scaled to length 1 (where ``normalise``), a half that an
    item lacks is predicted from the other by ridge regression (so that an item unseen in
    training is placed by its text), and the halves are weighted by ``collaborative_weight``.
    What few users say of an item is shrunk (``collaborative.shrinkage``) towards that prediction,
    or towards the origin where there is no other source.

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
    featuriser = {
        f"{name}.{key}": array
        for name, part in zip(names, found, strict=True)
        for key, array in part.made_by.items()
    }
    whole = _views(data, config, names, found, featuriser, learn=True)
    if not whole.known.any():
        raise UserError(
            f"{data.root / 'items.parquet'}: no item has a vector from source = "
            f"'{config.source}'; choose another 'source'"
        )
    mean = whole.vectors[whole.fit].mean(axis=0)
    whole.vectors[~whole.known] = mean
    featuriser["mean"] = mean
    return whole


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
    whole = _views(data, config, names, found, stored, learn=False)
    whole.vectors[~whole.known] = stored["mean"]
    if "rotation" not in stored:
        return whole
    return replace(whole, vectors=np.ascontiguousarray(whole.vectors @ stored["rotation"]))


def _views(
    data: PreparedData,
    config: SemanticIdConfig,
    names: list[str],
    found: list[Part],
    featuriser: Arrays,
    *,
    learn: bool,
) -> ItemVectors:
    """All views one after the other; where ``learn``, regressions are fitted and added to
    ``featuriser``.
    """
    support = next((part.support for part in found if part.support is not None), None)
    parts_of_views = [
        [part.vectors if part.vectors.ndim == 2 else part.vectors[view] for part in found]
        for view in range(config.views)
    ]
    vectors, known, fit = [], [], []
    for view, parts in enumerate(parts_of_views):
        known.append(_known(parts))
        both = "collaborative" in names
        fit.append(_nonzero(parts[names.index("collaborative")]) if both else known[-1])
        if config.normalise:
            parts = [_unit(part) for part in parts]
        prefix = f"{view}." if config.views > 1 else ""
        if len(parts) == 2 and learn:
            featuriser |= _predictor(f"{prefix}first", parts[0], parts[1])
            featuriser |= _predictor(f"{prefix}second", parts[1], parts[0])
        own = None
        if support is not None:
            users = support[view]
            own = users / np.maximum(users + config.collaborative.shrinkage, 1e-9)
        vectors.append(_combine(parts, featuriser, prefix, config, names, own))
    whole = np.ascontiguousarray(np.concatenate(vectors), np.float32)
    together = np.concatenate(known), np.concatenate(fit)
    inputs, digests = _besides(found)
    return ItemVectors(whole, *together, _seen(data), featuriser, inputs, digests, support)


def _combine(
    parts: list[Vectors],
    featuriser: Arrays,
    prefix: str,
    config: SemanticIdConfig,
    names: list[str],
    own: NDArray[np.float32] | None,
) -> Vectors:
    """One vector of the parts of each item, a missing half predicted.

    ``own`` [I] is the share that the collaborative part keeps of its own vector.
    """
    if len(parts) == 1:
        return parts[0] if own is None else parts[0] * own[:, None]
    filled = []
    for name, target, given, source in zip(
        ("first", "second"), parts, reversed(parts), names, strict=True
    ):
        predicted = _predict(given, target.shape[1], f"{prefix}{name}", featuriser)
        share = _nonzero(target).astype(np.float32)
        if source == "collaborative" and own is not None:
            share = share * np.where(_nonzero(given), own, 1)
        # Not scaled again: what is predicted is short where little is known.
        filled.append(target * share[:, None] + predicted * (1 - share)[:, None])
    weight = config.collaborative_weight
    vectors = np.hstack([filled[0] * np.sqrt(1 - weight), filled[1] * np.sqrt(weight)])
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


def _predict(given: Vectors, width: int, name: str, featuriser: Arrays) -> Vectors:
    """[I, s] by the regression on ``given``; zeros where that is zero, or nothing was learned."""
    if f"{name}.slopes" not in featuriser:
        return np.zeros((len(given), width), np.float32)
    slopes, intercept = featuriser[f"{name}.slopes"], featuriser[f"{name}.intercept"]
    predicted: Vectors = (given @ slopes.T + intercept).astype(np.float32)
    predicted[~_nonzero(given)] = 0.0
    return predicted
