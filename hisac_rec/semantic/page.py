"""The quality of semantic IDs for people: one HTML file that needs nothing else.

Legend: I items, D levels, C_l codes of level l.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.files import replace_text
from hisac_rec.semantic.quality import Report
from hisac_rec.semantic.store import Semantics, load_semantics

PAGE_FILE = "semantic_ids.html"
BRANCHES = 256
"""Top-level codes shown, the largest."""
TWIGS = 12
"""Prefixes of two codes shown of each, the largest."""
EXAMPLES = 5
"""Items named of each node, the most consumed."""
SNIPPET = 90
"""Characters of an item's text."""
STEPS = 96
"""Columns of the picture of a level."""


@dataclass(frozen=True)
class Node:
    """A node of the tree as the page shows it."""

    path: tuple[int, ...]
    items: int
    examples: list[str]
    children: list[Node]
    hidden: int = 0
    """Children that are not shown."""


def write_page(data: PreparedData, report: Report, path: Path) -> None:
    """The page as a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, to_html(data, report))


def to_html(data: PreparedData, report: Report) -> str:
    """A whole page; names of items are escaped, whatever they hold."""
    semantics = load_semantics(data)
    branches = tree(data, semantics)
    environment = Environment(
        loader=PackageLoader("hisac_rec", "semantic"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("semantic_ids.html.j2").render(
        name=data.manifest.name,
        report=report,
        quality=report.quality,
        fit=semantics.fingerprint,
        pictures=[_sizes(semantics, level) for level in range(semantics.codes.shape[1])],
        branches=branches[:BRANCHES],
        hidden=max(0, len(branches) - BRANCHES),
        largest=branches[0].items if branches else 1,
    )


def tree(data: PreparedData, semantics: Semantics) -> list[Node]:
    """The top-level codes in use, largest first, with their children and most consumed items.

    Of items with a vector of their own; the codes of the others mean nothing. O(I log I).
    """
    popular = np.argsort(-data.items["train_count"].to_numpy(), kind="stable")
    popular = popular[semantics.known[semantics.in_view(0)][popular]]
    names = data.items["text" if data.manifest.has_text else "raw_id"]
    raw = data.items["raw_id"]
    nodes = [
        Node(
            (code,),
            len(rows),
            _named(rows, names, raw),
            twigs[:TWIGS],
            max(0, len(twigs) - TWIGS),
        )
        for code, rows in _groups(popular, semantics.codes[:, 0])
        for twigs in [_twigs(code, rows, semantics, names, raw)]
    ]
    return sorted(nodes, key=lambda node: -node.items)


def _twigs(
    code: int,
    rows: NDArray[np.int64],
    semantics: Semantics,
    names: pa.ChunkedArray,
    raw: pa.ChunkedArray,
) -> list[Node]:
    if semantics.codes.shape[1] < 2:
        return []
    groups = sorted(_groups(rows, semantics.codes[:, 1]), key=lambda group: -len(group[1]))
    return [
        Node((code, twig), len(own), _named(own, names, raw) if shown < TWIGS else [], [])
        for shown, (twig, own) in enumerate(groups)
    ]


def _groups(
    rows: NDArray[np.int64], codes: NDArray[np.int32]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Rows by their code, in the order they had."""
    own = codes[rows]
    order = np.argsort(own, kind="stable")
    found, first = np.unique(own[order], return_index=True)
    yield from zip(found.tolist(), np.split(rows[order], first[1:]), strict=True)


def _named(rows: NDArray[np.int64], names: pa.ChunkedArray, raw: pa.ChunkedArray) -> list[str]:
    found = []
    for row in rows[:EXAMPLES].tolist():
        text = " ".join(str(names[row].as_py() or "").split())
        found.append(text[:SNIPPET] or str(raw[row].as_py()))
    return found


def _sizes(semantics: Semantics, level: int) -> list[float]:
    """Heights, in percent of the largest, of a level's codes sorted by how many items have them."""
    codes = semantics.codes[semantics.known, level]
    sizes = np.sort(np.bincount(codes, minlength=semantics.code_counts[level]))[::-1]
    at = np.linspace(0, len(sizes) - 1, min(len(sizes), STEPS)).round().astype(int)
    return [round(100 * float(size) / max(1, int(sizes[0])), 1) for size in sizes[at]]
