"""``prepare``: a definition and raw files in, a prepared data set out.

Everything is written into a work folder beside the output and renamed at the end, so that a
prepared data set is whole or absent; what a killed run has done is not done again. Memory is
bounded by the largest block of users plus one word per user and item; DuckDB sorts on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.config import Strict
from hisac_rec.data.contract import (
    CONTRACT_VERSION,
    MAIN_TASK,
    FurtherTask,
    Manifest,
    PreparedData,
    Split,
    SplitCounts,
    items_schema,
)
from hisac_rec.data.parquet import WRITING
from hisac_rec.data.validate import validate_prepared
from hisac_rec.errors import UserError
from hisac_rec.preparation.blocks import draw_cold_items
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.rawchecks import require_files
from hisac_rec.preparation.source import Catalogue, Source
from hisac_rec.preparation.synthetic import SyntheticSource
from hisac_rec.preparation.users import write_splits
from hisac_rec.preparation.work import WorkFolder, identity, sweep
from hisac_rec.preparation.writer import TrainTally
from hisac_rec.progress import progress

if TYPE_CHECKING:
    from hisac_rec.preparation.rawlog import RawLog

log = logging.getLogger(__name__)


def prepare(
    definition: DatasetDefinition,
    out: Path,
    *,
    raw: Path | None = None,
    origin: str = "",
    force: bool = False,
    fresh: bool = False,
    memory_limit: str = "4GB",
    threads: int | None = None,
    engine: Literal["duckdb", "spark"] = "duckdb",
    spark: Sequence[str] = (),
) -> PreparedData:
    """Make a prepared data set, whole or not at all.

    Args:
        definition: what to make.
        out: folder to make; see ``contract`` for what lies in it afterwards.
        raw: folder of raw files; needed where the definition has ``[source]``.
        origin: the definition's file, for messages.
        force: replace a prepared data set that is already at ``out``.
        fresh: throw away what an earlier start, cut off, has done for the same output.
        memory_limit: of DuckDB, for example "4GB"; beyond it, it works on disk.
        threads: of DuckDB; None: one per core.
        engine: what reads and sorts the events of ``[source]``.
        spark: settings of Spark, "KEY=VALUE" each.

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
    sweep(out.absolute())
    _refuse_existing(out, force)
    if definition.source is not None:
        raw = require_files(definition.source, raw, origin)
    made_from = identity(definition, raw, engine)
    with WorkFolder(out.absolute(), made_from, fresh=fresh) as work, ExitStack() as stack:
        source: Source
        if definition.synthetic is not None:
            source = SyntheticSource(definition.synthetic)
        else:
            source = stack.enter_context(
                _raw_log(engine, spark)(definition, raw, work, origin, memory_limit, threads)
            )
        cold = draw_cold_items(source.items, definition.split.cold_items or 0.0)
        counts, tally, tasks = write_splits(source, work, cold, origin)
        catalogue = source.catalogue(tally.seen)
        manifest = _manifest(definition, source, catalogue, counts, tasks)
        stats = tally.stats(counts["train"], catalogue.values_mean)
        root = work.building
        work.once(
            "write items",
            lambda: _write_items(root / "items.parquet", manifest, catalogue, tally),
        )
        work.once(
            "write vocabularies", lambda: _write_vocabularies(root / "vocab", source, catalogue)
        )
        _write_json(root / "manifest.json", manifest)
        _write_json(root / "stats.json", stats)
        work.once("check", lambda: validate_prepared(root))
        work.finish()
    return PreparedData(out)


def _raw_log(engine: str, spark: Sequence[str]) -> Callable[..., RawLog]:
    from hisac_rec.preparation.rawlog import RawLog

    if engine == "duckdb":
        return RawLog
    from hisac_rec.preparation.spark.log import SparkLog

    return partial(SparkLog, settings=spark)


def _manifest(
    definition: DatasetDefinition,
    source: Source,
    catalogue: Catalogue,
    counts: dict[Split, SplitCounts],
    tasks: list[FurtherTask],
) -> Manifest:
    resolved = definition.model_dump(mode="json", exclude_none=True)
    facts = {
        "definition": _shaping(resolved),
        "users": source.users,
        "items": source.items,
        "splits": {s: count.model_dump(exclude={"first_events"}) for s, count in counts.items()},
        "features": [f.model_dump() for f in (*source.user_features, *catalogue.features)],
    }
    if tasks:
        facts["tasks"] = [task.model_dump() for task in tasks]
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
        task=(definition.requests.task if definition.requests else None) or MAIN_TASK,
        tasks=tasks,
        splits=counts,
        definition=resolved,
        fingerprint=digest[:32],
    )


def _shaping(resolved: dict[str, Any]) -> dict[str, Any]:
    """What of a definition says how the data comes out; a key that changes nothing is not in it, so
    that data keeps the fingerprint that it had before there was such a key.
    """
    shaping = {k: v for k, v in resolved.items() if k not in ("description", "semantic_ids")}
    negatives = shaping.get("requests", {}).get("negatives")
    if negatives is not None and negatives["first_events"] == "keep":
        asked = {k: v for k, v in negatives.items() if k != "first_events"}
        shaping["requests"] = {**shaping["requests"], "negatives": asked}
    return shaping


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
    folder.mkdir(exist_ok=True)
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
