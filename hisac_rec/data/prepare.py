"""``prepare``: a definition and raw files in, a prepared data set out.

Everything is written into a temporary folder beside the output and renamed at the end, so
that a prepared data set is whole or absent. Memory is bounded by the largest block of users
plus one word per user and item; DuckDB sorts on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisac_rec.config import Strict
from hisac_rec.data.blocks import (
    cut,
    draw_cold_items,
    visible_history,
    without_later_splits,
    without_training,
)
from hisac_rec.data.contract import (
    CONTRACT_VERSION,
    SPLITS,
    Manifest,
    PreparedData,
    Split,
    SplitCounts,
    items_schema,
    split_schema,
)
from hisac_rec.data.definition import DatasetDefinition
from hisac_rec.data.parquet import WRITING
from hisac_rec.data.source import Catalogue, Source
from hisac_rec.data.synthetic import SyntheticSource
from hisac_rec.data.validate import validate_prepared
from hisac_rec.data.writer import SplitWriter, TrainTally
from hisac_rec.errors import UserError
from hisac_rec.progress import progress

log = logging.getLogger(__name__)


def prepare(
    definition: DatasetDefinition,
    out: Path,
    *,
    raw: Path | None = None,
    origin: str = "",
    force: bool = False,
    memory_limit: str = "4GB",
    threads: int | None = None,
) -> PreparedData:
    """Make a prepared data set, whole or not at all.

    Args:
        definition: what to make.
        out: folder to make; see ``contract`` for what lies in it afterwards.
        raw: folder of raw files; needed where the definition has ``[source]``.
        origin: the definition's file, for messages.
        force: replace a prepared data set that is already at ``out``.
        memory_limit: of DuckDB, for example "4GB"; beyond it, it works on disk.
        threads: of DuckDB; None: one per core.

    Returns:
        The data set, opened.

    Raises:
        UserError: raw files are missing, SQL fails, columns are missing or of a wrong type,
            ids are null, labels are outside [0, 1], a split is empty, ``out`` exists.

    Example::

        definition = load_config(DatasetDefinition, Path("datasets/synthetic.toml"))
        data = prepare(definition, Path("data/synthetic"))
    """
    origin = origin or definition.name
    _refuse_existing(out, force)
    with _written_whole(out.absolute()) as (building, scratch), ExitStack() as stack:
        source: Source
        if definition.synthetic is not None:
            source = SyntheticSource(definition.synthetic)
        else:
            from hisac_rec.data.rawlog import RawLog

            source = stack.enter_context(
                RawLog(definition, raw, scratch, origin, memory_limit, threads)
            )
        cold = draw_cold_items(source.items, definition.split.cold_items or 0.0)
        counts, tally = _write_splits(source, building, cold, origin)
        catalogue = source.catalogue(tally.seen)
        manifest = _manifest(definition, source, catalogue, counts)
        _write_items(building / "items.parquet", manifest, catalogue, tally)
        _write_vocabularies(building / "vocab", source, catalogue)
        stats = tally.stats(counts["train"], catalogue.values_mean)
        _write_json(building / "manifest.json", manifest)
        _write_json(building / "stats.json", stats)
        validate_prepared(building)
    return PreparedData(out)


def _write_splits(
    source: Source, root: Path, cold: NDArray[np.bool_], origin: str
) -> tuple[dict[Split, SplitCounts], TrainTally]:
    names = [feature.name for feature in source.user_features]
    schema = split_schema(names, oracle=source.has_oracle)
    tally = TrainTally(source.items)
    with ExitStack() as stack:
        writers = {s: stack.enter_context(SplitWriter(root / s, schema)) for s in SPLITS}
        with progress("write users", total=source.users - 1, unit="users") as advance:
            for block in source.blocks():
                users = int(np.count_nonzero(np.diff(block.user, prepend=0)))
                if cold.any():
                    block = without_training(block, cold)
                for index, split in enumerate(SPLITS):
                    known = without_later_splits(block, index)
                    rows = cut(known, index, source.rules(split), visible_history(known))
                    writers[split].write(rows, source.user_values)
                    if split == "train":
                        tally.add(block, rows)
                advance(users)
        counts: dict[Split, SplitCounts] = {s: w.counts for s, w in writers.items()}
    for split, count in counts.items():
        if count.requests == 0:
            raise UserError(
                f"{origin}: the {split} split is empty (no request); change [split], "
                "requests.where or history.min_events"
            )
    return counts, tally


def _manifest(
    definition: DatasetDefinition,
    source: Source,
    catalogue: Catalogue,
    counts: dict[Split, SplitCounts],
) -> Manifest:
    resolved = definition.model_dump(mode="json", exclude_none=True)
    shaping = {k: v for k, v in resolved.items() if k not in ("description", "semantic_ids")}
    facts = {
        "definition": shaping,
        "users": source.users,
        "items": source.items,
        "splits": {split: count.model_dump() for split, count in counts.items()},
        "features": [f.model_dump() for f in (*source.user_features, *catalogue.features)],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Manifest(
        contract_version=CONTRACT_VERSION,
        name=definition.name,
        users=source.users,
        items=source.items,
        user_features=source.user_features,
        item_features=catalogue.features,
        event_types=source.event_types,
        has_clock=definition.clock,
        content_dim=catalogue.content_dim,
        has_text=catalogue.has_text,
        has_oracle=source.has_oracle,
        splits=counts,
        definition=resolved,
        fingerprint=digest[:32],
    )


def _write_items(path: Path, manifest: Manifest, catalogue: Catalogue, tally: TrainTally) -> None:
    """Write the items, batch by batch, with what the training period says of each."""
    schema = items_schema(manifest)
    start = 0
    with (
        progress("write items", total=manifest.items, unit="items") as advance,
        pq.ParquetWriter(path, schema, **WRITING) as writer,
    ):
        for batch in catalogue.batches:
            here = slice(start, start := start + batch.num_rows)
            never = pa.array(~tally.seen[here])
            first_time = pa.array(tally.first_time[here], mask=never.to_numpy(False))
            batch = batch.append_column("train_count", pa.array(tally.train_count[here]))
            batch = batch.append_column("first_time", first_time)
            writer.write_table(batch.select(schema.names).cast(schema))
            advance(batch.num_rows)
    assert start == manifest.items, f"{start} items written, {manifest.items} expected"


def _write_vocabularies(folder: Path, source: Source, catalogue: Catalogue) -> None:
    folder.mkdir()
    for name, values in {**catalogue.vocabularies, **source.user_vocabularies}.items():
        ids = pa.array(np.arange(len(values), dtype=np.int32))
        table = pa.table({"id": ids, "value": values})
        pq.write_table(table, folder / f"{name}.parquet", **WRITING)


def _write_json(path: Path, model: Strict) -> None:
    path.write_text(json.dumps(model.model_dump(mode="json"), indent=2) + "\n")


def _refuse_existing(out: Path, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise UserError(f"{out}: exists already; give another --out, or --force to replace it")
    replaceable = out.is_dir() and (
        (out / "manifest.json").is_file() or next(out.iterdir(), None) is None
    )
    if not replaceable:
        raise UserError(f"{out}: is no prepared data set, so --force does not replace it")


@contextmanager
def _written_whole(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder to build in and one for scratch, on the same disk as ``out``.

    The first becomes ``out`` when the block ends well; whatever else is left vanishes.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    building, scratch = temporary / "new", temporary / "scratch"
    building.mkdir()
    scratch.mkdir()
    try:
        yield building, scratch
        if out.exists():
            out.rename(temporary / "old")
        building.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
