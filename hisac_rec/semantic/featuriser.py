"""What made the vectors and codes of a fit, stored so that further items can be placed.

``featuriser.npz`` holds named arrays and nothing else: the text vocabulary and its directions, the
item factors of the training period, regressions, networks of an RQ-VAE. Which names there are is
the business of :mod:`hisac_rec.semantic.item_vectors` and of the quantiser. It is a NumPy archive,
written and read without pickle, and the same fit gives the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hisac_rec.errors import UserError

FEATURISER_FILE = "featuriser.npz"
_FIT = "fit"


def write_featuriser(path: Path, arrays: Mapping[str, NDArray], fingerprint: str) -> None:
    """Write named arrays and the fingerprint of their fit."""
    with path.open("wb") as file:
        np.savez(file, **{_FIT: np.array(fingerprint)}, **arrays)  # type: ignore[arg-type]


def load_featuriser(root: Path, fingerprint: str) -> dict[str, NDArray]:
    """The arrays of the fit with this fingerprint.

    Raises:
        UserError: the file is not there, is damaged or comes from another fit; says what to run.
    """
    path = root / FEATURISER_FILE
    mend = (
        f"fit again what lies there: 'hisac-rec semantic-ids {root} --force' (equal settings give "
        "equal codes)"
    )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there, so new items cannot be placed beside the old ones; {mend}"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); {mend}") from None
    if str(arrays.pop(_FIT, "")) != fingerprint:
        raise UserError(f"{path}: comes from another fit than the codes beside it; {mend}")
    return arrays
