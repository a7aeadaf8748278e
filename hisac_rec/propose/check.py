"""The proof of a proposal: ``prepare`` itself, on the real files, with a sample of the users."""

from __future__ import annotations

from pathlib import Path

from hisac_rec.data.contract import Manifest
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare

SAMPLE_EVENTS = 100_000
"""About as many events are prepared."""


def prepare_sample(
    definition: DatasetDefinition,
    raw: Path,
    scratch: Path,
    origin: str,
    events: int,
    memory_limit: str,
    threads: int | None,
) -> tuple[Manifest, int]:
    """Prepare one user of k, and tell k.

    Raises:
        UserError: the definition does not give a data set.
    """
    source = definition.source
    assert source is not None
    one_in = max(1, events // SAMPLE_EVENTS)
    if one_in > 1:
        select = source.events.strip().rstrip(";")
        sampled = f'SELECT * FROM (\n{select}\n) AS e WHERE hash(e."user"::VARCHAR) % {one_in} = 0'
        source = source.model_copy(update={"events": sampled})
        definition = definition.model_copy(update={"source": source})
    data = prepare(
        definition,
        scratch / "prepared",
        raw=raw,
        origin=origin,
        force=True,
        memory_limit=memory_limit,
        threads=threads,
    )
    return data.manifest, one_in
