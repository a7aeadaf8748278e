"""Item text to vectors by a model that the user names: the optional extra ``text``.

Texts are embedded once: ``text_vectors.parquet`` keeps what came out, by a digest of the text and
of the model's weights, in the folder of the data. A refresh reads the folder that it goes on from,
so that a day embeds the day's new texts alone.

Legend: I items, t distinct texts, s width of the model.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from hisac_rec.data.parquet import DAMAGED, READING, WRITING
from hisac_rec.errors import UserError
from hisac_rec.progress import progress
from hisac_rec.semantic.config import TextConfig

log = logging.getLogger(__name__)

CACHE_FILE = "text_vectors.parquet"
MODEL_KEY = b"hisac_rec.text_model"
"""Parquet metadata key: digest of the model that made the vectors."""
DIGEST_BYTES = 16
CHUNK_TEXTS = 4_096
"""Texts given to the model at once, between two steps of the progress bar."""


@dataclass(frozen=True)
class Embedded:
    """Texts as vectors."""

    vectors: NDArray[np.float32]
    """[I, s]; zeros where there is no text."""
    digest: str
    """Of the model's weights and settings."""
    said: str
    """For people: how many texts were embedded, how many were known."""


def embed_texts(
    text: pa.ChunkedArray,
    config: TextConfig,
    *,
    cache: Path,
    older: Sequence[Path] = (),
    device: str = "cpu",
) -> Embedded:
    """Vectors of the items' texts by ``config.model``.

    Equal texts are embedded once. Vectors are rounded to float16, as the cache keeps them, so that
    a text has the same vector whether it was known or not.

    Args:
        text: [I] strings, nulls allowed.
        config: names the model.
        cache: file that is read where it is there, and written whole.
        older: more such files, of other days.
        device: where the model computes.

    Raises:
        UserError: the extra is not installed, or the model cannot be loaded; says what to do.
    """
    assert config.model is not None
    model = load_model(config.model, device)
    digest = model_digest(model, config)
    lines = [(line or "").strip() for line in text.to_pylist()]
    keys = pa.array([_key(line) if line else None for line in lines], pa.binary())
    texts = keys.dictionary_encode()
    wanted: pa.Array = texts.dictionary
    found = np.zeros((len(wanted), model.get_embedding_dimension()), np.float16)
    known = _read_caches((cache, *older), digest, wanted, found)
    # Of equal texts, that of the first item.
    first = pc.index_in(wanted, value_set=keys).to_numpy()[~known]
    if len(first):
        found[~known] = _embed(model, [lines[row] for row in first], config)
    if len(first) or not cache.is_file():
        _write_cache(cache, digest, wanted, found)
    vectors = np.zeros((len(lines), found.shape[1]), np.float32)
    there = keys.is_valid().to_numpy(zero_copy_only=False)
    vectors[there] = found[texts.indices.drop_null().to_numpy()]
    said = (
        f"text model {config.model} ({digest}): {len(first):,} texts embedded, "
        f"{int(known.sum()):,} known from before"
    )
    return Embedded(vectors, digest, said)


def load_model(name: str, device: str) -> Any:
    """The sentence-transformers model in a folder, or of this name on the hub.

    Raises:
        UserError: see :func:`embed_texts`.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"key 'semantic_ids.text.model' = '{name}': needs the extra 'text' ({error}): "
            "python requirements/install.py text, or pip install 'hisac-rec[text]'"
        ) from None
    try:
        return SentenceTransformer(name, device=device, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"key 'semantic_ids.text.model' = '{name}': cannot be loaded ({reason}). It must be a "
            "folder of a sentence-transformers model, or a name on the Hugging Face hub; without a "
            f"network fetch it elsewhere ('hf download {name} --local-dir FOLDER') and set the key "
            "to that folder"
        ) from None


def model_digest(model: Any, config: TextConfig) -> str:
    """What decides the vectors: weights, longest text, prompt. O(weights)."""
    digest = hashlib.sha256(f"{model.max_seq_length} {config.prompt}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _embed(model: Any, texts: list[str], config: TextConfig) -> NDArray[np.float16]:
    """[t, s] of texts, a chunk at a time."""
    parts = []
    with progress("embed text", len(texts), "texts") as advance:
        for start in range(0, len(texts), CHUNK_TEXTS):
            chunk = texts[start : start + CHUNK_TEXTS]
            found = model.encode(
                chunk,
                prompt=config.prompt or None,
                batch_size=config.batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
            parts.append(np.asarray(found, np.float16))
            advance(len(chunk))
    return np.concatenate(parts)


def _key(line: str) -> bytes:
    return hashlib.sha256(line.encode()).digest()[:DIGEST_BYTES]


def _read_caches(
    paths: Sequence[Path], digest: str, wanted: pa.Array, into: NDArray[np.float16]
) -> NDArray[np.bool_]:
    """Copy what the files know of the texts [t] that are wanted; says which they knew."""
    known = np.zeros(len(wanted), bool)
    for path in paths:
        if not path.is_file():
            continue
        try:
            table = pq.read_table(path, memory_map=True, **READING)
        except DAMAGED as error:
            log.warning("%s: damaged (%s); its texts are embedded again", path, error)
            continue
        if (table.schema.metadata or {}).get(MODEL_KEY, b"").decode() != digest:
            log.info("%s: of another model or prompt; its texts are embedded again", path)
            continue
        there = table["text"].cast(pa.binary())
        rows = pc.index_in(wanted, value_set=there).fill_null(-1).to_numpy()
        new = (rows >= 0) & ~known
        matrix = table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, into.shape[1])
        into[new] = matrix[rows[new]]
        known |= new
    return known


def _write_cache(path: Path, digest: str, texts: pa.Array, vectors: NDArray[np.float16]) -> None:
    """The texts of this data, in an order of their own, whole or not at all."""
    order = pc.sort_indices(texts)
    rows = vectors[order.to_numpy()]
    table = pa.table(
        {
            "text": texts.take(order).cast(pa.binary(DIGEST_BYTES)),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1]),
        }
    ).replace_schema_metadata({MODEL_KEY: digest.encode()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, **WRITING)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
