"""``hisac-rec inspect``: one person's interest tree."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def run(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")],
    user: Annotated[str, typer.Option(help="Raw id of a user.")],
    candidate: Annotated[
        list[str] | None,
        typer.Option(help="Raw id of an item to score; may be repeated. Else the request's own."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file as well.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The prepared data set, where it has moved.")
    ] = None,
    split: Annotated[str, typer.Option(help="Where the history is: train, valid, test.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
) -> None:
    """Show what a history was compressed to, what was pruned and is heard all the same, and which
    agents drew the scores of candidates.

    **Examples**

        hisac-rec inspect runs/hisac --user 17

        hisac-rec inspect runs/hisac --user 17 --candidate 1193 --html user17.html
    """
    from rich.console import Console

    from hisac_rec.cli.trained import open_run, require_split
    from hisac_rec.serving.interests import inspect_user
    from hisac_rec.serving.interests_page import print_interests, write_html
    from hisac_rec.train.distributed import process_group

    require_split(split)
    folder, prepared = open_run(run_folder, data)
    with process_group() as ranks:
        found = inspect_user(
            folder,
            prepared,
            ranks,
            user,
            split=split,  # type: ignore[arg-type]
            candidates=candidate,
            checkpoint=checkpoint,
        )
    print_interests(found, Console())
    if html is not None:
        write_html(found, html)
        log.info("written to %s", html)
