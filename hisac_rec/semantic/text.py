"""Item text to vectors with nothing to download: TF-IDF, then a truncated SVD.

Source: Deerwester et al. 1990, "Indexing by latent semantic analysis".
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.errors import UserError
from hisac_rec.semantic.config import TextConfig
from hisac_rec.semantic.reduction import project, reduce_width

log = logging.getLogger(__name__)


def text_vectors(
    text: pa.ChunkedArray, dim: int, config: TextConfig, seed: int, path: Path
) -> tuple[NDArray[np.float32], dict[str, NDArray]]:
    """Vectors of the items' texts; a row of zeros where there is no known term.

    Fitted on the whole catalogue: what an item says of itself is known before anyone
    consumed it. O(terms dim) time, a sparse matrix in memory.

    Args:
        text: [I] strings, nulls allowed.
        dim: width wanted; fewer where there are fewer terms.
        config: which terms count.
        seed: of the SVD.
        path: the file, for messages.

    Returns:
        [I, dim], and what :func:`text_vectors_again` needs to place further texts.

    Raises:
        UserError: hardly any term is left; names the keys that decide it.
    """
    featuriser = _tfidf(
        config,
        max_features=config.max_terms,
        min_df=config.min_items,
        max_df=config.max_share,
    )
    try:
        matrix = featuriser.fit_transform(_lines(text))
    except ValueError as error:  # what scikit-learn says of an empty vocabulary
        raise UserError(_too_few(path, config, str(error))) from None
    if min(matrix.shape) < 3:
        raise UserError(_too_few(path, config, f"{matrix.shape[1]} terms are left"))
    log.info("text: %d terms of %d items", matrix.shape[1], matrix.shape[0])
    vectors, directions = reduce_width(matrix, dim, seed)
    terms = "\n".join(featuriser.get_feature_names_out()).encode()  # no term has a line break
    return vectors, {
        "terms": np.frombuffer(terms, np.uint8),
        "idf": featuriser.idf_.astype(np.float32),
        "directions": directions,
    }


def text_vectors_again(
    text: pa.ChunkedArray, config: TextConfig, stored: dict[str, NDArray]
) -> NDArray[np.float32]:
    """Vectors [I, dim] of other texts in the space of an earlier :func:`text_vectors`."""
    terms = stored["terms"].tobytes().decode().split("\n")
    featuriser = _tfidf(config, vocabulary=terms)
    featuriser.idf_ = stored["idf"]
    return project(featuriser.transform(_lines(text)), stored["directions"])


def _tfidf(config: TextConfig, **of: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, config.ngrams),
        sublinear_tf=True,
        strip_accents="unicode",
        dtype=np.float32,
        **of,
    )


def _lines(text: pa.ChunkedArray) -> list[str]:
    return ["" if line is None else line for line in text.to_pylist()]


def _too_few(path: Path, config: TextConfig, why: str) -> str:
    return (
        f"{path}: column 'text' gives no usable terms ({why.rstrip('.')}); a term must occur in "
        f"text.min_items = {config.min_items} items and in at most text.max_share = "
        f"{config.max_share:g} of them: change these or choose another 'source'"
    )
