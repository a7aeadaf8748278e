"""Item vectors out of each source: content, text, or who consumed an item.

Legend: I items (row 0 = the unknown item), s width of a source vector, V views.
"""

from __future__ import annotations

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

DEFAULT_DIM = 64
"""Width of text and collaborative vectors where ``dim`` is not given."""

Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]
Arrays = dict[str, NDArray]


class Part(NamedTuple):
    """Vectors out of one source."""

    vectors: Vectors
    """[I, s], or [V, I, s] where views differ; zeros where it knows nothing of an item."""
    made_by: Arrays
    """What places further items in the same space."""
    inputs: list[str] = []
    digests: dict[str, str] = {}
    support: NDArray[np.float32] | None = None
    """[V, I] users behind each vector; None: it comes from no users."""


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


def vectors_of(name: str, data: PreparedData, config: SemanticIdConfig, means: Means) -> Part:
    """Vectors of one source: "content", "text" or "collaborative".

    Raises:
        UserError: the data has no such vectors, or values are not finite; names the row.
    """
    path = data.root / "items.parquet"
    dim = config.dim or DEFAULT_DIM
    if name == "content":
        return _reduced(_content(data, config), config)
    if name == "text" and config.text.model is not None:
        return _reduced(_embedded(data, config, means), config)
    if name == "text":
        return Part(*text_vectors(data.items.column("text"), dim, config.text, config.seed, path))
    vectors, support, made_by = collaborative_vectors(data, dim, config.collaborative, config.seed)
    return Part(vectors, made_by, support=support)


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


def vectors_again(
    name: str,
    data: PreparedData,
    config: SemanticIdConfig,
    stored: Arrays,
    old: NDArray[np.int64],
    means: Means,
) -> Part:
    """Vectors of one source in the space of an earlier :func:`vectors_of`.

    Raises:
        UserError: as there; the embeddings are of another width or another text model.
    """
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
    vectors, support = fold_in(data, old, stored, config.collaborative, config.seed)
    return Part(vectors, {}, support=support)


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
