"""Fit semantic IDs for a prepared data set: vectors, codebook, codes, report, files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.config import apply_overrides, validate
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.codebook import Codebook, Quantiser
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.item_vectors import ItemVectors, item_vectors
from hisac_rec.semantic.probe import GAP, Probe, probe
from hisac_rec.semantic.quality import Refresh, Report, measure
from hisac_rec.semantic.residual_kmeans import ResidualKMeans
from hisac_rec.semantic.rqvae import RqVae
from hisac_rec.semantic.sources import Means, choose_source
from hisac_rec.semantic.store import REPORT_FILE, Semantics, save_semantics

log = logging.getLogger(__name__)

TABLE = "semantic_ids"
"""The table of a data-set definition that sets the defaults."""
QUANTISER = "quantiser."
"""Arrays of ``featuriser.npz`` whose names begin so belong to the quantiser."""


def resolve_config(
    data: PreparedData,
    overrides: Sequence[str] = (),
    *,
    embeddings: Path | None = None,
    raw: Path | None = None,
) -> SemanticIdConfig:
    """The settings for this data: its definition's table, overrides, source chosen.

    Args:
        data: the prepared data.
        overrides: ``key=value`` strings of ``--set``.
        embeddings: file that stands in for the key ``embeddings``.
        raw: folder that "{raw}" in that key stands for.

    Raises:
        UserError: a key or value is wrong, or the source is not in the data.
    """
    table = data.manifest.definition.get(TABLE) or {}
    if not isinstance(table, dict):
        raise UserError(f"{data.root / 'manifest.json'}: definition.{TABLE} is not a table")
    prefix = f"{TABLE}."
    own = [text.removeprefix(prefix) for text in overrides]
    source = f"[{TABLE}] of {data.root / 'manifest.json'}" + (" and --set" if overrides else "")
    config = validate(SemanticIdConfig, apply_overrides(table, own), source)
    return choose_source(data, with_embeddings(config, embeddings, raw))


def with_embeddings(
    config: SemanticIdConfig, embeddings: Path | None, raw: Path | None
) -> SemanticIdConfig:
    """The settings with the path of the embeddings as it is on this machine."""
    path = config.embeddings if embeddings is None else str(embeddings)
    if path is not None and "{raw}" in path:
        if raw is None:
            raise UserError(
                f"key '{TABLE}.embeddings' = '{path}': name the folder of raw files with --raw, or "
                "the file itself with --embeddings"
            )
        path = path.replace("{raw}", str(raw))
    return config.model_copy(update={"embeddings": path})


def make_quantiser(config: SemanticIdConfig, device: torch.device | str = "cpu") -> Quantiser:
    """The quantiser that the settings name."""
    if config.method == "rqvae":
        return RqVae(config.codes, config.rqvae, config.seed, device)
    return ResidualKMeans(config.codes, config.iterations, config.restarts, config.seed, device)


def fit_semantic_ids(
    data: PreparedData, config: SemanticIdConfig, device: torch.device | str = "cpu"
) -> Report:
    """Fit and write the files of :mod:`hisac_rec.semantic.store`.

    Every item gets codes: those the quantiser learned from, those unseen in training (from
    their content), and those of which nothing is known (from the mean vector). Source
    vectors are rounded to ``vector_dtype`` first, so that the stored vectors have exactly
    the stored codes.

    Args:
        data: the prepared data.
        config: from :func:`resolve_config`.
        device: where the quantiser computes.

    Raises:
        UserError: the source holds too little, or more codes are asked than there are items.
    """
    log.info("semantic IDs from %s, codes %s, %s", config.source, config.codes, config.method)
    items = item_vectors(data, config, Means(str(device)))
    check_codes(config, items)
    source = rounded(items.vectors, config)
    quantiser = make_quantiser(config, device)
    quantiser.fit(source[fit_rows(items, config)])
    vectors = quantiser.embed(source).to(vector_dtype(config))
    codes = quantiser.codebook.encode(vectors)
    return write_fit(data, config, Fitted(items, source, vectors, codes, quantiser))


@dataclass(frozen=True)
class Fitted:
    """A fit about to be measured and written."""

    items: ItemVectors
    source: Tensor
    """[V I, s] float32, as the quantiser saw them."""
    vectors: Tensor
    """[V I, d] semantic vectors as they are stored."""
    codes: Tensor
    """[V I, D] int32."""
    quantiser: Quantiser
    refresh: Refresh | None = None
    """What became of an earlier fit."""
    lineage: Sequence[str] = ()
    """See :class:`~hisac_rec.semantic.store.Semantics`."""


def write_fit(data: PreparedData, config: SemanticIdConfig, fitted: Fitted) -> Report:
    """Measure a fit and write its files, all or nothing."""
    items, quantiser = fitted.items, fitted.quantiser
    source, vectors, codes = fitted.source, fitted.vectors, fitted.codes
    known = torch.from_numpy(items.known)
    book = Codebook([words.cpu() for words in quantiser.codebook.levels])
    quality = measure(
        codes[known].numpy(),
        vectors[known],
        book,
        source[known],
        quantiser.decode(book.path_vector(codes[known])),
        config.seed,
    )
    for warning in quality.warnings:
        log.warning("%s", warning)
    real = np.arange(data.manifest.items) > 0
    by_view = items.known.reshape(config.views, -1)
    somewhere = by_view.any(axis=0)
    report = Report(
        config=config,
        data_fingerprint=data.manifest.fingerprint,
        items=data.manifest.items,
        items_without_vector=int((real & ~somewhere).sum()),
        items_unseen=int((real & ~items.seen).sum()),
        items_unseen_with_vector=int((real & ~items.seen & somewhere).sum()),
        items_fitted=int(items.fit.reshape(config.views, -1).any(axis=0).sum()),
        quality=quality,
        support=_support(items, config),
        inputs=items.inputs,
        digests=items.digests,
        refresh=fitted.refresh,
    )
    semantics = Semantics(
        codes.numpy(), vectors.numpy(), [w.numpy() for w in book.levels], items.known, config.views
    )
    report = report.model_copy(update={"probe": probe(data, semantics)})
    if report.probe is not None and report.probe.gap > GAP:
        log.warning("%s", leak_in_words(report.probe, config.views))
    save_semantics(
        data.root,
        codes.numpy(),
        vectors.numpy(),
        [words.numpy() for words in book.levels],
        items.known,
        data_fingerprint=data.manifest.fingerprint,
        report_json=report.model_dump_json(indent=2),
        views=config.views,
        featuriser=items.featuriser
        | {f"{QUANTISER}{name}": array for name, array in quantiser.state().items()},
        lineage=fitted.lineage,
    )
    return report


def _support(items: ItemVectors, config: SemanticIdConfig) -> dict[str, float] | None:
    """See :class:`~hisac_rec.semantic.quality.Report`."""
    if items.support is None:
        return None
    users = items.support.mean(axis=0)[1:]
    users = users[items.seen[1:]]
    if not len(users):
        return None
    found = {str(share): float(np.quantile(users, share)) for share in (0.1, 0.5, 0.9)}
    return found | {"below": float((users < config.collaborative.min_support).mean())}


def leak_in_words(found: Probe, views: int) -> str:
    """What a large gap between training and validation labels means."""
    cause = (
        "codes were fitted on the labels that a ranker is to learn: set "
        "semantic_ids.collaborative.views to 4"
        if views == 1
        else "the two periods differ, or their candidates were drawn in another way"
    )
    return (
        f"the codes alone tell training labels with an AUC of {found.train:.3f}, validation labels "
        f"with {found.valid:.3f}: {cause}"
    )


def vector_dtype(config: SemanticIdConfig) -> torch.dtype:
    """How vectors are stored."""
    return torch.float16 if config.vector_dtype == "float16" else torch.float32


def rounded(vectors: NDArray[np.float32], config: SemanticIdConfig) -> Tensor:
    """Source vectors [I, s] as they come out of storage, float32.

    Raises:
        UserError: values are beyond the range of float16.
    """
    source = torch.from_numpy(vectors).to(vector_dtype(config)).float()
    if not source.isfinite().all():
        raise UserError(
            f"key '{TABLE}.vector_dtype' = 'float16': values of source = '{config.source}' are "
            "beyond its range; set normalise = true or vector_dtype = 'float32'"
        )
    return source


def read_report(data: PreparedData) -> Report | None:
    """The report of the last fit; None where there is none, or it is not readable."""
    try:
        return Report.model_validate_json((data.root / REPORT_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def check_codes(config: SemanticIdConfig, items: ItemVectors) -> None:
    """Refuse more codes than there are items to learn from."""
    fitted = len(fit_rows(items, config))
    if max(config.codes) > fitted:
        level = int(np.argmax(config.codes))
        raise UserError(
            f"key '{TABLE}.codes' = {config.codes}: level {level} asks for {config.codes[level]} "
            f"codes, but only {fitted} items can be learned from; give fewer, for example "
            f"--set codes={[max(2, round(fitted**0.5))] * len(config.codes)}"
        )


def fit_rows(items: ItemVectors, config: SemanticIdConfig) -> torch.Tensor:
    """Rows the quantiser learns from, a seeded sample where there are very many."""
    rows = np.flatnonzero(items.fit)
    count = len(items.seen)
    views = len(items.fit) // count
    if views > 1:  # each item once, from one of its views
        rows = rows[rows // count == rows % count % views]
    if len(rows) > config.fit_sample:
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.choice(rows, config.fit_sample, replace=False))
    return torch.from_numpy(rows)
