"""An interest tree for people: in the terminal, and as one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from hisac_rec.files import replace_text
from hisac_rec.serving.interests import Interests, Leaf, say_votes


def to_html(found: Interests) -> str:
    """A whole page; names of items are escaped, whatever they hold."""
    environment = Environment(
        loader=PackageLoader("hisac_rec", "serving"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    template = environment.get_template("interests.html.j2")
    return template.render(found=found, say_votes=say_votes)


def write_html(found: Interests, path: Path) -> None:
    """The page as a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, to_html(found))


def print_interests(found: Interests, console: Console, *, leaves: int = 8) -> None:
    """The tree with the first ``leaves`` of each branch, then the candidates."""
    agents = sum(leaf.agent for leaf in found.leaves)
    tree = Tree(
        f"user {escape(found.user)}: {found.events:,} events on {len(found.leaves)} leaves, "
        f"{agents} agents; {found.pruned:,} events on pruned leaves"
    )
    for code, own in found.branches.items():
        branch = tree.add(f"[bold]branch {code}[/bold]: {say_votes(own)}")
        for leaf in own[:leaves]:
            branch.add(_line(leaf))
        if len(own) > leaves:
            rest = own[leaves:]
            branch.add(f"[dim]{len(rest)} more leaves, {say_votes(rest)}[/dim]")
    console.print(tree)
    table = Table("item", "path", "score", "label", "agents that drew it")
    for one in found.candidates:
        drew = ", ".join(f"{_path(path)} {share:.0%}" for path, share in one.attention[:3])
        label = "" if one.label is None else f"{one.label:g}"
        table.add_row(
            escape(one.item),
            _path(one.path),
            f"{one.score:.3f}",
            label,
            f"{drew}; nobody {one.nothing:.0%}",
        )
    console.print(table)


def _line(leaf: Leaf) -> str:
    items = "; ".join(escape(name) for name, _ in leaf.items)
    if leaf.agent:
        return f"[green]{_path(leaf.path)}[/green] {leaf.said}, {leaf.weight:.1%}: {items}"
    return (
        f"[dim]{_path(leaf.path)} {leaf.said}, pruned; {leaf.share:.1%} of agent "
        f"{_path(leaf.nearest)}: {items}[/dim]"
    )


def _path(path: tuple[int, ...]) -> str:
    return ".".join(map(str, path))
