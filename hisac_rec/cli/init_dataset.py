"""``hisac-rec init-dataset``: files nobody has described become a definition."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer


def run(
    events: Annotated[
        list[Path],
        typer.Argument(help="The event log: CSV, Parquet or JSON, gzipped or not; may be several."),
    ],
    items: Annotated[Path | None, typer.Option(help="File that describes the items.")] = None,
    users: Annotated[Path | None, typer.Option(help="File that describes the users.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Definition to write; NAME.toml here if not given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace --out.")] = False,
    user: Annotated[
        str | None, typer.Option(help="The user: a column, or an SQL expression over columns.")
    ] = None,
    item: Annotated[str | None, typer.Option(help="The item, likewise.")] = None,
    time: Annotated[
        str | None, typer.Option(help="The time, likewise; 'lines': the order of the lines.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Success, likewise, for example 'stars >= 4'.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="What one request shares (session, page view), likewise.")
    ] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Column of kinds of events.")] = None,
    positive: Annotated[
        list[str] | None, typer.Option(help="A kind of event that is success; may be repeated.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least rating that is success; near the median if not given."),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition: leave all other rows of the events out.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(help="strptime format of times as text, for example '%d/%m/%Y'.")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Zone of times without one, for example Europe/Berlin.")
    ] = None,
    item_key: Annotated[str | None, typer.Option(help="Column of --items with their ids.")] = None,
    user_key: Annotated[str | None, typer.Option(help="Column of --users with their ids.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="Column that is no feature; may be repeated.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of the CSV of events, where it is not found out.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of the CSV of events, likewise.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set.")] = None,
    memory_limit: Annotated[
        str, typer.Option(help="Memory of the SQL engine; beyond it, it works on disk.")
    ] = "4GB",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the SQL engine; all cores if not given.")
    ] = None,
) -> None:
    """Propose a definition for an event log, with a preview and warnings, and write it.

    Asks nothing: every guess is shown with its reason and can be set by an option. The
    definition is prepared with a sample of the users before it is written.

    **Examples**

        hisac-rec init-dataset ratings.csv --items movies.csv

        hisac-rec init-dataset log/*.parquet --label is_click --out shop.toml

        hisac-rec init-dataset answers.csv --user pupil --item task --time 'epoch(day + clock)'
    """
    from rich.console import Console

    from hisac_rec.errors import UserError
    from hisac_rec.propose import names
    from hisac_rec.propose.look import propose
    from hisac_rec.propose.proposal import Options
    from hisac_rec.propose.show import show

    if out is None:
        out = Path(f"{names.slug(name or events[0].name.split('.')[0])}.toml")
    if out.exists() and not force:
        raise UserError(f"{out}: exists already; give another --out, or --force to replace it")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.absolute().parent}")
    options = Options(
        tuple(events),
        items=items,
        users=users,
        name=None if name is None else names.slug(name),
        user=user,
        item=item,
        time=time,
        time_format=time_format,
        time_zone=time_zone,
        label=label,
        threshold=threshold,
        type=type_,
        positive=tuple(positive or ()),
        group=group,
        item_key=item_key,
        user_key=user_key,
        where=where,
        drop=tuple(drop or ()),
        delimiter=delimiter,
        encoding=encoding,
    )
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as scratch:
        looked = propose(options, out, Path(scratch), memory_limit=memory_limit, threads=threads)
        fresh = Path(scratch) / "definition.toml"
        fresh.write_text(looked.text, encoding="utf-8")
        fresh.replace(out)
    show(looked, out, Console())
