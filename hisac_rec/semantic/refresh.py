"""Semantic IDs of today that go on from those of another day.

*Extending* keeps the code words and gives new items codes by them. *Refitting* fits today's
vectors again, in yesterday's space and from yesterday's code words, and lets an item leave its path
only where that is worth it. Either way a code means what it meant, and a ranker that learned a row
for it can go on.

Legend: I items, V views, D levels, s width of source vectors, d width of semantic vectors.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.alignment import NEW, settle, stay
from hisac_rec.semantic.codebook import Codebook
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.fit import (
    TABLE,
    Fitted,
    check_codes,
    fit_rows,
    make_quantiser,
    rounded,
    vector_dtype,
    write_fit,
)
from hisac_rec.semantic.item_vectors import ItemVectors, item_vectors, placed_vectors
from hisac_rec.semantic.predecessor import Predecessor, match_items
from hisac_rec.semantic.quality import Refresh, Report
from hisac_rec.semantic.sources import Means
from hisac_rec.semantic.views import rows_in_views

log = logging.getLogger(__name__)

SAME = 1e-4
"""Two sets of vectors that differ by less than this share of squared length are in one space."""
FIXED = ("source", "views", "dim", "normalise", "method", "codes", "vector_dtype")
"""Settings that a refit shares with what it goes on from."""
FIXED_RQVAE = ("rqvae.latent_dim", "rqvae.hidden", "text.model")
"""And besides, where networks are trained on."""


def extend_semantic_ids(
    data: PreparedData,
    old: Predecessor,
    device: torch.device | str = "cpu",
    config: SemanticIdConfig | None = None,
) -> Report:
    """Give new items codes by an earlier codebook; all others keep vector and codes exactly.

    Args:
        data: the data with the new items.
        old: the earlier fit; its settings hold.
        device: where to compute.
        config: the same settings with another file of embeddings.

    Raises:
        UserError: this data lacks what the vectors come from, or it has another form.
    """
    config = config or old.report.config
    if data.manifest.definition.get(TABLE) != old.data.manifest.definition.get(TABLE):
        log.warning(
            "[%s] of %s is not that of %s: where its codebook is kept, its settings hold",
            TABLE,
            data.root,
            old.data.root,
        )
    rows = match_items(data, old.data)
    items = placed_vectors(data, config, old.featuriser, rows, _means(old, device))
    rows = rows_in_views(rows, config.views, old.data.manifest.items)
    quantiser = make_quantiser(config, device)
    quantiser.restore(Codebook.of(old.semantics, device), old.quantiser)
    source = rounded(items.vectors, config)
    vectors = quantiser.embed(source).to(vector_dtype(config))
    codes = quantiser.codebook.encode(vectors)

    keep = (rows >= 0) & old.semantics.known[rows.clip(0)]
    stored = torch.tensor(old.semantics.vectors[rows[keep]])
    vectors[torch.from_numpy(keep)] = stored
    codes[torch.from_numpy(keep)] = torch.tensor(old.semantics.codes[rows[keep]])
    if config.method == "residual_kmeans":  # there, the semantic vector is the source vector
        source = vectors.float()
    items = replace(
        items,
        known=items.known | keep,
        fit=items.fit & keep,
        featuriser=_grown(items, old, rows),
    )
    refresh = _compare("extended", old, rows, items.known, vectors, codes, quantiser.codebook, 0.0)
    fitted = Fitted(items, source, vectors, codes, quantiser, refresh, old.lineage)
    return write_fit(data, config, fitted)


def refit_semantic_ids(
    data: PreparedData,
    config: SemanticIdConfig,
    old: Predecessor,
    device: torch.device | str = "cpu",
) -> Report:
    """Fit today's vectors again, aligned to an earlier fit.

    Vectors whose source was fitted anew (text, who consumed what) live in a space turned against
    yesterday's: an orthogonal Procrustes rotation on the items of both turns them back. The code
    words then go on from yesterday's, and an item leaves its path only where that is worth it
    (:mod:`hisac_rec.semantic.alignment`).

    Args:
        data: today's data.
        config: settings; those that shape the codes must be the earlier ones.
        old: the earlier fit.
        device: where to compute.

    Raises:
        UserError: the settings cannot be aligned, or no item is in both.
    """
    _check(config, old)
    rows = match_items(data, old.data)
    items = item_vectors(data, config, _means(old, device))
    there = _source_vectors(data, config, old, rows, device)
    rows = rows_in_views(rows, config.views, old.data.manifest.items)
    shared = _real(rows, old) & items.known & old.semantics.known[rows.clip(0)]
    if not shared.any():
        raise UserError(
            f"{data.root}: has no item with a vector in common with {old.data.root}: raw ids are "
            "matched; fit without --from"
        )
    items, misfit = _turned(items, there, shared, old)
    check_codes(config, items)
    source = rounded(items.vectors, config)
    quantiser = make_quantiser(config, device)
    fitted_on = fit_rows(items, config)
    quantiser.refit(source[fitted_on], Codebook.of(old.semantics, device), old.quantiser)
    vectors = quantiser.embed(source).to(vector_dtype(config))
    before = torch.tensor(np.where(shared[:, None], old.semantics.codes[rows.clip(0)], NEW))
    quantiser.codebook = settle(
        quantiser.codebook, vectors[fitted_on], before[fitted_on], config.refresh, config.iterations
    )
    codes = stay(quantiser.codebook, vectors, before, config.refresh)
    refresh = _compare(
        "refitted", old, rows, items.known, vectors, codes, quantiser.codebook, misfit
    )
    refresh = refresh.model_copy(update={"margin": config.refresh.margin})
    fitted = Fitted(items, source, vectors, codes, quantiser, refresh, old.lineage)
    return write_fit(data, config, fitted)


def _source_vectors(
    data: PreparedData,
    config: SemanticIdConfig,
    old: Predecessor,
    rows: NDArray[np.int64],
    device: torch.device | str,
) -> NDArray[np.float32]:
    """[I, s] where today's items stood in the space of the earlier source vectors."""
    if config.method == "residual_kmeans":
        everywhere = rows_in_views(rows, config.views, old.data.manifest.items)
        return old.semantics.vectors[everywhere.clip(0)].astype(np.float32)
    return placed_vectors(data, config, old.featuriser, rows, _means(old, device)).vectors


def _means(old: Predecessor, device: torch.device | str) -> Means:
    return Means(str(device), (old.data.root,))


def _turned(
    items: ItemVectors, there: NDArray[np.float32], shared: NDArray[np.bool_], old: Predecessor
) -> tuple[ItemVectors, float]:
    """Today's vectors in the earlier space, and the share of it that they do not explain."""
    from scipy.linalg import orthogonal_procrustes

    ours, theirs = items.vectors[shared], there[shared]
    if ours.shape[1] != theirs.shape[1]:
        raise UserError(
            f"{old.data.root}: its source vectors are {theirs.shape[1]} wide, today's "
            f"{ours.shape[1]}, so the codes cannot be aligned; fit without --from"
        )
    length = max(float(np.square(theirs).sum()), 1e-12)
    misfit = float(np.square(ours - theirs).sum()) / length
    if misfit < SAME:
        return items, misfit
    rotation = orthogonal_procrustes(ours, theirs)[0].astype(np.float32)
    vectors = items.vectors @ rotation
    misfit = float(np.square(vectors[shared] - theirs).sum()) / length
    log.info("turned today's vectors onto the earlier ones: %.1f %% do not fit", 100 * misfit)
    featuriser = items.featuriser | {"rotation": rotation}
    return replace(items, vectors=vectors, featuriser=featuriser), misfit


def _grown(items: ItemVectors, old: Predecessor, rows: NDArray[np.int64]) -> dict[str, NDArray]:
    """The stored arrays for the rows of this data: item factors are by row."""
    name = "collaborative.factors"
    if name not in old.featuriser:
        return items.featuriser
    before = old.featuriser[name]
    factors = before.reshape(-1, before.shape[-1])[rows.clip(0)]
    factors[rows < 0] = 0.0
    return items.featuriser | {name: factors.reshape(len(before), -1, before.shape[-1])}


def _real(rows: NDArray[np.int64], old: Predecessor) -> NDArray[np.bool_]:
    """[V I] rows of items that the earlier fit knows, the unknown item left out."""
    return np.asarray((rows >= 0) & (rows % old.data.manifest.items > 0))


def _compare(
    kind: str,
    old: Predecessor,
    rows: NDArray[np.int64],
    known: NDArray[np.bool_],
    vectors: Tensor,
    codes: Tensor,
    book: Codebook,
    misfit: float,
) -> Refresh:
    before = old.semantics
    there = _real(rows, old)
    both = there & known & before.known[rows.clip(0)]
    differs = codes.numpy()[both] != before.codes[rows[both]]
    count = max(int(both.sum()), 1)
    steps = vectors[torch.from_numpy(both)].float() - torch.tensor(before.vectors[rows[both]])
    drift = [
        float((words.cpu() - torch.tensor(was)).square().sum(1).mean().sqrt())
        / max(float(np.sqrt(np.square(was).sum(1).mean())), 1e-12)
        for words, was in zip(book.levels, before.codebook, strict=True)
    ]
    return Refresh(
        kind="extended" if kind == "extended" else "refitted",
        predecessor=str(old.data.root),
        predecessor_fit=before.fingerprint,
        unchanged=int(both.sum()),
        new=int((rows < 0).sum()),
        placed=int((there & known & ~before.known[rows.clip(0)]).sum()),
        gone=old.data.manifest.items - 1 - int(there.sum()),
        changed=[float(share) for share in differs.sum(0) / count],
        changed_path=float(differs.any(1).sum() / count),
        moved=float(steps.norm(dim=1).sum() / count),
        drift=drift,
        misfit=misfit,
        margin=None,
    )


def _check(config: SemanticIdConfig, old: Predecessor) -> None:
    keys = FIXED + (FIXED_RQVAE if config.method == "rqvae" else ())
    for key in keys:
        mine, its = (attrgetter(key)(of) for of in (config, old.report.config))
        if mine != its:
            raise UserError(
                f"key 'semantic_ids.{key}' = {mine!r}, that of {old.data.root} is {its!r}: codes "
                "can only be aligned between equal ones; set it to that, or fit without --from"
            )
