"""Score requests in bulk, on any number of ranks: with whole histories, or with a cache of them.

Both ways are the same lookups, batches and ranker; only what a history is read from differs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import duckdb
import torch.distributed as dist

from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.units import RequestTable
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.preparation.sql import text
from hisac_rec.serving.cache import Cache
from hisac_rec.serving.cached import Cached, require_same
from hisac_rec.serving.requests import read_requests
from hisac_rec.train.distributed import Ranks, gather_numbers
from hisac_rec.train.evaluate import load_ranker, predict_into
from hisac_rec.train.job import open_job
from hisac_rec.train.pipeline import Batches
from hisac_rec.train.run import RunFolder

log = logging.getLogger(__name__)
SCORES = "scores.parquet"


@dataclass(frozen=True)
class Scored:
    """What :func:`score_run` did, over all ranks.

    Args:
        candidates: scored.
        seconds: of scoring.
        missing: requests of users that the cache does not know.
        unknown_items: candidates that the data set does not know.
    """

    candidates: int
    seconds: float
    missing: int
    unknown_items: int


def score_run(
    run: RunFolder,
    data: PreparedData,
    ranks: Ranks,
    out: Path,
    *,
    split: Split = "test",
    requests: Path | None = None,
    cache: Path | None = None,
    top: int | None = None,
    checkpoint: str = "best",
    planner: PlannerConfig | None = None,
) -> Scored:
    """Score requests into ``out/scores.parquet``. Called on every rank.

    Args:
        run: a trained run.
        data: the data it was trained on, or later data of the same vocabularies.
        ranks: this process.
        out: a folder; ``predictions/`` in it gets a part of each rank.
        split: whose histories, and whose requests where no file has them.
        requests: a file of requests (:mod:`hisac_rec.serving.requests`).
        cache: of ``hisac-rec compress``, in place of the histories.
        top: keep the best so many candidates of a request; None: all.
        checkpoint: "best", "last" or a step.
        planner: where tables go; None for the devices that are there.

    Raises:
        UserError: the cache is of another checkpoint, or the file of requests is not what it
            should be.
    """
    job = open_job(run.config(), data)
    path = run.checkpoints().find(checkpoint)
    asked = read_requests(requests, data, split) if requests is not None else None
    cached = None
    if cache is not None:
        opened = Cache(cache)
        require_same(opened, job, path)
        cached = Cached(opened, job)
    model = load_ranker(job, path, ranks, planner)

    def view(table: RequestTable) -> RequestTable:
        if asked is not None:
            table = asked.of_unit(table, job.spec.max_history)
        return table if cached is None else cached.view(table)

    feeder = Batches(job, ranks).in_order(split, view, None if cached is None else cached.remember)
    total = data.manifest.splits[split].candidates if asked is None else len(asked.items)
    parts = out / "predictions"
    name = f"{path.name} cache {opened.manifest.model_dump_json()}" if cache else path.name
    title = (f"score {split if requests is None else requests.name}", total)
    seconds = predict_into(
        parts, job, model, ranks, feeder, title=title, name=name, oracle=asked is None
    )
    missing = int(gather_numbers([float(cached.missing if cached else 0)]).sum())
    if missing and ranks.first:
        log.warning(
            "%s requests of users that the cache does not know: their newest %s events count alone",
            f"{missing:,}",
            job.config.ranker.recent,
        )
    if ranks.first:
        further = tuple(task.name for task in job.spec.tasks[1:])
        write_scores(parts, data, out / SCORES, top, further)
    dist.barrier()
    return Scored(total, seconds, missing, asked.unknown_items if asked is not None else 0)


def write_scores(
    parts: Path, data: PreparedData, out: Path, top: int | None, further: tuple[str, ...] = ()
) -> None:
    """Predictions in raw ids, the best candidate of each request first. Out of core.

    Columns: ``request`` (the row of the file of requests, else the request's number), ``user``,
    ``time``, ``item``, ``score`` (probability), ``rank`` (from 1, by ``score``), and of each of
    the ``further`` tasks ``score_<task>``.
    """
    others = "".join(f", (1 / (1 + exp(-logit_{task})))::FLOAT AS score_{task}" for task in further)
    kept = "" if top is None else f"QUALIFY rank <= {top}"
    temporary = out.with_name(f".{out.name}.partial")
    connection = duckdb.connect()
    connection.execute(
        f"""
        COPY (
            SELECT request, users.value AS "user", time, items.raw_id AS item, score,
                row_number() OVER (PARTITION BY request ORDER BY logit DESC, items.item) AS rank
                {others}
            FROM read_parquet({text(str(parts / "*.parquet"))}) AS scored
            JOIN read_parquet({text(str(data.root / "vocab/user.parquet"))}) AS users
                ON users.id = scored."user"
            JOIN read_parquet({text(str(data.root / "items.parquet"))}) AS items
                ON items.item = scored.item
            {kept}
            ORDER BY request, rank
        ) TO {text(str(temporary))} (FORMAT parquet, COMPRESSION zstd)
        """
    )
    connection.close()
    temporary.rename(out)
