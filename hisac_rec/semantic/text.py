"""Item text to vectors with nothing to download: TF-IDF, then a truncated SVD.

Source: Deerwester et al. 1990, "Indexing by latent semantic analysis".
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.errors import UserError
from hisac_rec.semantic.config import TextConfig
from hisac_rec.semantic.reduction import reduce_width

log = logging.getLogger(__name__)


def text_vectors(
    text: pa.ChunkedArray, dim: int, config: TextConfig, seed: int, path: Path
) -> NDArray[np.float32]:
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
        [I, dim].

    Raises:
        UserError: hardly any term is left; names the keys that decide it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    featuriser = TfidfVectorizer(
        max_features=config.max_terms,
        min_df=config.min_items,
        max_df=config.max_share,
        ngram_range=(1, config.ngrams),
        sublinear_tf=True,
        strip_accents="unicode",
        dtype=np.float32,
    )
    lines = ["" if line is None else line for line in text.to_pylist()]
    try:
        matrix = featuriser.fit_transform(lines)
    except ValueError as error:  # what scikit-learn says of an empty vocabulary
        raise UserError(_too_few(path, config, str(error))) from None
    if min(matrix.shape) < 3:
        raise UserError(_too_few(path, config, f"{matrix.shape[1]} terms are left"))
    log.info("text: %d terms of %d items", matrix.shape[1], matrix.shape[0])
    return reduce_width(matrix, dim, seed)


def _too_few(path: Path, config: TextConfig, why: str) -> str:
    return (
        f"{path}: column 'text' gives no usable terms ({why.rstrip('.')}); a term must occur in "
        f"text.min_items = {config.min_items} items and in at most text.max_share = "
        f"{config.max_share:g} of them: change these or choose another 'source'"
    )
