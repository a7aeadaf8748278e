"""``hisac-rec prepare``: an event log becomes a data set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hisac_rec.data.contract import FurtherTask, Manifest, PreparedData


class Engine(StrEnum):
    """What runs the SQL of a definition."""

    duckdb = "duckdb"
    spark = "spark"


def run(
    definition: Annotated[
        str, typer.Argument(help="Definition file, or the name of a shipped one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    raw: Annotated[
        Path | None, typer.Option(help="Folder of raw files, where the definition has [source].")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a prepared data set at --out.")
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Throw away what an earlier start, cut off, has done."),
    ] = False,
    memory_limit: Annotated[
        str, typer.Option(help="Memory of the SQL engine; beyond it, it works on disk.")
    ] = "4GB",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the SQL engine; all cores if not given.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What reads and sorts events: this machine, or a Spark cluster.")
    ] = Engine.duckdb,
    spark: Annotated[
        list[str] | None,
        typer.Option("--spark", metavar="KEY=VALUE", help="A setting of Spark; may be repeated."),
    ] = None,
) -> None:
    """Make a data set from raw events, or from the synthetic generator.

    **Examples**
        hisac-rec prepare synthetic --out data/synthetic

        hisac-rec prepare synthetic --out data/long --set synthetic.length_median=6000
        --set synthetic.length_max=10000

        hisac-rec prepare movielens_1m --raw ~/ml-1m --out data/movielens-1m

        hisac-rec prepare my/shop.toml --raw /logs/shop --out data/shop --memory-limit 64GB
    """
    from hisac_rec.config import load_config
    from hisac_rec.preparation.definition import DatasetDefinition
    from hisac_rec.preparation.prepare import prepare
    from hisac_rec.shipped import find_config

    path = find_config("datasets", definition)
    data = prepare(
        load_config(DatasetDefinition, path, set_ or ()),
        out,
        raw=raw,
        origin=str(path),
        force=force,
        fresh=fresh,
        memory_limit=memory_limit,
        threads=threads,
        engine=engine.value,
        spark=spark or (),
    )
    _show(data)


def _task_line(task: FurtherTask) -> str:
    rates = (
        f"{split} {rows:,} labelled, rate {task.positives[split] / rows:.3f}"
        for split, rows in task.labelled.items()
    )
    return f"task {task.name}: {'; '.join(rates)}"


def _first_events(manifest: Manifest) -> Iterator[str]:
    """What drawn non-events cannot be like, and a warning where that is much."""
    from hisac_rec.preparation.definition import DatasetDefinition
    from hisac_rec.preparation.first_events import in_words, warning

    shares = {split: count.first_events for split, count in manifest.splits.items()}
    if all(share is None for share in shares.values()):
        return
    requests = DatasetDefinition.model_validate(manifest.definition).requests
    negatives = requests.negatives if requests is not None else None
    if negatives is not None and negatives.first_events == "drop":
        yield f"{in_words(shares)} (left out)"
    elif (found := warning(shares)) is not None:
        yield from (f"warning first-events: {found[0]}", f"  -> {found[1]}")
    else:
        yield in_words(shares)


def _show(data: PreparedData) -> None:
    """Print what was made: one row per split, then the lengths."""
    from rich.console import Console
    from rich.table import Table

    manifest, stats = data.manifest, data.stats
    table = Table(title=f"{manifest.name} ({manifest.fingerprint[:8]})", title_justify="left")
    table.add_column("split")
    for name in ("users", "history events", "requests", "candidates", "positives", "rate"):
        table.add_column(name, justify="right")
    for split, c in manifest.splits.items():
        numbers = (c.users, c.events, c.requests, c.candidates, round(c.positives))
        rate = f"{c.positives / c.candidates:.3f}" if c.candidates else "-"
        table.add_row(split, *(f"{n:,}" for n in numbers), rate)
    console = Console()
    console.print(table)
    features = [f"{f.name} ({f.rows - 1:,})" for f in manifest.item_features]
    of_users = [f"{f.name} ({f.rows - 1:,})" for f in manifest.user_features]
    lengths = ", ".join(f"{q}: {n:,}" for q, n in stats.history_length_quantiles.items())
    lines = (
        f"{manifest.users - 1:,} users, features: {', '.join(of_users) or 'none'}",
        f"{manifest.items - 1:,} items, features: {', '.join(features) or 'none'}",
        f"history length of training requests: mean {stats.history_length_mean:,.1f}; "
        f"quantiles {lengths}",
        *map(_task_line, manifest.tasks),
        *_first_events(manifest),
        f"written to {data.root}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _show_stages(data.root)


def _show_stages(root: Path) -> None:
    """Print what the stages took, the longest first."""
    from rich.console import Console
    from rich.table import Table

    from hisac_rec.preparation.work import read_record, record_path

    stages = read_record(root)
    table = Table(title="longest stages", title_justify="left")
    table.add_column("stage")
    for name in ("seconds", "peak memory", "read", "written"):
        table.add_column(name, justify="right")
    for stage in sorted(stages, key=lambda s: -s.seconds)[:5]:
        sizes = (stage.peak_bytes, stage.read_bytes, stage.written_bytes)
        table.add_row(
            stage.title, f"{stage.seconds:,.1f}", *(f"{size / 1e6:,.0f} MB" for size in sizes)
        )
    console = Console()
    console.print(table)
    seconds = sum(stage.seconds for stage in stages)
    peak = max(stage.peak_bytes for stage in stages)
    line = f"all stages: {seconds:,.1f} s, peak memory {peak / 1e6:,.0f} MB; {record_path(root)}"
    console.print(line, highlight=False, soft_wrap=True)
