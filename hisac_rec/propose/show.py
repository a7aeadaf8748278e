"""The preview in the terminal: choices, figures, warnings, what to type next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hisac_rec.propose.labels import label_choice
from hisac_rec.propose.look import Looked, prepare_command
from hisac_rec.propose.moments import written
from hisac_rec.propose.sides import Side


def show(looked: Looked, out: Path, console: Console) -> None:
    """Print everything; ``out`` is where the definition was written."""
    console.print(_choices(looked))
    for side in (looked.proposal.items, looked.proposal.users):
        if side is not None and (side.useful or side.dropped):
            console.print(_side(side))
    console.print(_figures(looked))
    console.print(_splits(looked))
    for note in looked.proposal.notes:
        console.print(f"[bold]note[/] {escape(note)}", highlight=False)
    for concern in looked.concerns:
        console.print(
            f"[bold yellow]warning[/] {escape(concern.code)}: {escape(concern.text)}",
            highlight=False,
        )
        console.print(f"  -> {escape(concern.advice)}", highlight=False)
    if not looked.concerns:
        console.print("no warnings")
    sample = "all users" if looked.one_in == 1 else f"one of {looked.one_in:,} users"
    counts = looked.manifest.splits
    console.print(
        f"checked: prepare accepts it ({sample}: "
        + ", ".join(f"{split} {c.requests:,} requests" for split, c in counts.items())
        + ")",
        highlight=False,
    )
    name = looked.proposal.name
    lines = (
        f"written to {out}; next:",
        f"  {prepare_command(looked.proposal, out)}",
        f"  hisac-rec semantic-ids data/{name}",
        f"  hisac-rec train hisac data/{name} --out runs/{name}",
        f"  hisac-rec evaluate runs/{name}",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str, right: bool = False) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right" if right else "left")
    return table


def _choices(looked: Looked) -> Table:
    log, proposal = looked.proposal.log, looked.proposal
    table = _table(escape(log.raw.title), "role", "column", "why", "or")
    for choice in (log.user, log.item, log.time, label_choice(log.label)):
        if choice.role == "label" and log.label.kind == "none":
            column = "none"
        else:
            column = ", ".join(choice.columns) or choice.sql
        option = ", ".join(choice.rivals[:4])
        why = choice.reason
        table.add_row(choice.role, *(escape(cell) for cell in (column, why, option)))
    if log.label.tasks:
        tasks = ", ".join(name for name, _ in log.label.tasks)
        table.add_row("tasks", escape(tasks), "further flags, for models of several tasks", "")
    table.add_row("request", escape(proposal.group_name), escape(proposal.group_reason), "")
    table.add_row("split", proposal.split.by, escape(proposal.split.reason), "")
    return table


def _side(side: Side) -> Table:
    what = "columns of the events" if side.of_events else side.key_reason
    table = _table(f"{side.side}s ({escape(what)})", "column", "becomes", "why")
    kept: dict[str, list[str]] = {}
    for feature in side.features:
        kept.setdefault(feature.reason.replace(" ([])", ""), []).append(feature.name)
    for why, found in kept.items():
        table.add_row(", ".join(found), "feature", escape(why))
    for name in side.text_columns:
        table.add_row(escape(name), "text", "words")
    if side.content is not None:
        table.add_row("content", "embedding", escape(side.content_reason))
    gone: dict[str, list[str]] = {}
    for name, why in side.dropped:
        gone.setdefault(why, []).append(name)
    for why, dropped in gone.items():
        listed = ", ".join(dropped[:5]) + (
            f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        )
        table.add_row(escape(listed), "-", escape(why))
    return table


def _figures(looked: Looked) -> Table:
    found, moment = looked.figures, looked.proposal.log.moment
    sampled = "" if found.share == 1 else f" (a sample: {found.share:.1%} of the users)"
    table = Table(title=f"events{sampled}", title_justify="left", show_header=False)
    table.add_row("rows", f"{found.rows_read:,}, of which {found.events:,} are used")
    for name, n, (median, p95, most) in (
        ("users", found.users, found.per_user),
        ("items", found.items, found.per_item),
    ):
        spread = f"median {median:,}, 95 % have at most {p95:,}, most {most:,}"
        table.add_row(name, f"{n:,}; events of each: {spread}")
    if moment.clock:
        table.add_row("time", f"{written(found.first)} to {written(found.last)} UTC")
    else:
        table.add_row("order", f"{found.first:,} to {found.last:,}")
    return table


def _splits(looked: Looked) -> Table:
    table = _table(
        "candidates",
        "split",
        "candidates",
        "label rate",
        "of new users",
        "of new items",
        right=True,
    )
    for split, one in looked.figures.splits.items():
        rate = "-" if one.rate is None else f"{one.rate:.1%}"
        if looked.proposal.negatives is not None:
            counts = looked.manifest.splits[split]  # type: ignore[index]
            rate = f"{counts.positives / counts.candidates:.1%} with drawn non-events"
        new = ("", "") if split == "train" else (f"{one.new_users:.1%}", f"{one.new_items:.1%}")
        table.add_row(split, f"{one.candidates:,}", rate, *new)
    return table
