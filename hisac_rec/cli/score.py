"""``hisac-rec score``: score requests in bulk, from histories or from a cache of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for scores.parquet.")],
    requests: Annotated[
        Path | None,
        typer.Option(help="Parquet file with user, time and items; else those of the split."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Of 'hisac-rec compress', in place of the histories.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Keep a request's best so many; else all.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The prepared data set, where it has moved.")
    ] = None,
    split: Annotated[str, typer.Option(help="Whose histories: train, valid or test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    planner: Annotated[
        str | None, typer.Option(help="Planner config, or the name of a shipped one.")
    ] = None,
) -> None:
    """Score requests and write them in the data set's own ids, each request's best first.

    With a cache, a history's newest events are read as they are and all that is older from the
    cache, which may be older than the request.

    **Examples**

        hisac-rec score runs/hisac --out scores

        hisac-rec score runs/hisac --requests tonight.parquet --cache cache --top 20 --out scores
    """
    from hisac_rec.cli.trained import cluster, open_run, require_split

    require_split(split)
    folder, prepared = open_run(run_folder, data)
    where = cluster(planner)

    from hisac_rec.serving.score import SCORES, score_run
    from hisac_rec.train.distributed import process_group

    with process_group() as ranks:
        done = score_run(
            folder,
            prepared,
            ranks,
            out,
            split=split,  # type: ignore[arg-type]
            requests=requests,
            cache=cache,
            top=top,
            checkpoint=checkpoint,
            planner=where,
        )
        first = ranks.first
    if first:
        if done.unknown_items:
            log.warning("%s candidates that the data set does not know", f"{done.unknown_items:,}")
        rate = done.candidates / done.seconds
        log.info(
            "%s candidates, %s a second: %s", f"{done.candidates:,}", f"{rate:,.0f}", out / SCORES
        )
