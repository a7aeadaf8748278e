"""``hisac-rec compress``: histories to interest-agents, kept in a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cache.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared data set, where it has moved.")
    ] = None,
    split: Annotated[str, typer.Option(help="Whose histories: train, valid or test.")] = "test",
    at: Annotated[
        str,
        typer.Option(help="Moments: of each user's first or last request, or of all requests."),
    ] = "last",
    age: Annotated[
        int, typer.Option(min=0, help="So long before them, in the data set's unit of time.")
    ] = 0,
    precision: Annotated[str, typer.Option(help="Of the vectors: fp32, fp16 or int8.")] = "fp32",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    planner: Annotated[
        str | None, typer.Option(help="Planner config, or the name of a shipped one.")
    ] = None,
) -> None:
    """Compress histories and keep what candidates read of them.

    Histories that the cache holds already, with no event since, are left out: call it again
    to go on after an interruption, or for the users with new events.

    **Examples**

        hisac-rec compress runs/hisac --out cache

        hisac-rec compress runs/hisac --out cache8 --precision int8

        torchrun --nproc_per_node 2 -m hisac_rec compress runs/hisac --out cache
    """
    from typing import get_args

    from hisac_rec.cli.trained import cluster, open_run
    from hisac_rec.data.contract import SPLITS
    from hisac_rec.errors import UserError, did_you_mean
    from hisac_rec.serving.cache import At
    from hisac_rec.serving.precision import PRECISIONS

    for name, given, valid in (
        ("split", split, SPLITS),
        ("at", at, get_args(At)),
        ("precision", precision, PRECISIONS),
    ):
        if given not in valid:
            raise UserError(
                f"--{name} {given}: expected one of {', '.join(valid)}{did_you_mean(given, valid)}"
            )
    folder, prepared = open_run(run_folder, data)
    where = cluster(planner)

    from hisac_rec.serving.compress import compress_run, print_compressed
    from hisac_rec.train.distributed import process_group

    with process_group() as ranks:
        done = compress_run(
            folder,
            prepared,
            ranks,
            out,
            split=split,  # type: ignore[arg-type]
            at=at,  # type: ignore[arg-type]
            age=age,
            precision=precision,  # type: ignore[arg-type]
            checkpoint=checkpoint,
            planner=where,
        )
        first = ranks.first
    if first:
        print_compressed(done)
