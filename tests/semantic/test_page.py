"""The page of a codebook: whole, escaped, and silent towards the network."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.semantic.page import EXAMPLES, to_html, tree, write_page
from hisac_rec.semantic.predecessor import open_predecessor
from hisac_rec.semantic.refresh import refit_semantic_ids
from hisac_rec.semantic.store import load_semantics

ITEMS = 200
NASTY = "<script>alert('x')</script> & \"co\""
VOID = {"meta", "br", "link", "img"}


class Page(HTMLParser):
    """Tags that open are closed in order; what is seen is kept."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.rows = 0
        self.outside: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outside += [str(value) for name, value in attrs if name in ("src", "href")]
        self.rows += tag == "details"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    rng = np.random.default_rng(0)
    return write_prepared(
        tmp_path / "data",
        items=ITEMS,
        content=rng.normal(size=(ITEMS, 4)),
        text=[None, NASTY, *(f"item {i} of a shop" for i in range(2, ITEMS))],
    )


def test_the_page_is_whole_and_says_what_the_report_says(data: PreparedData) -> None:
    report = fit_semantic_ids(data, resolve_config(data, ["codes=[6, 5]"]))
    page = Page(to_html(data, report))
    assert not page.open
    assert not page.outside
    assert page.rows == 6
    for level in report.quality.levels:
        assert f"{level.perplexity:.1f}" in page.text
        assert f"{100 * level.variance_explained:.1f} %" in page.text
    assert "No level has collapsed" in page.text
    assert "churn" not in page.text
    assert not re.search(r"https?://|@import|url\(", to_html(data, report))


def test_names_are_escaped(data: PreparedData, tmp_path: Path) -> None:
    table = data.items
    counts = [10**6 if item == 1 else 0 for item in range(ITEMS)]  # the first to be named
    at = table.schema.get_field_index("train_count")
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.array(counts)), data.root / "items.parquet"
    )
    data = PreparedData(data.root)
    report = fit_semantic_ids(data, resolve_config(data, ["codes=[2, 2]"]))
    write_page(data, report, tmp_path / "new" / "page.html")
    html = (tmp_path / "new" / "page.html").read_text()
    assert "<script" not in html
    assert NASTY in Page(html).text


def test_the_tree_counts_every_item_once_and_names_the_most_consumed(data: PreparedData) -> None:
    fit_semantic_ids(data, resolve_config(data, ["codes=[6, 5]"]))
    semantics = load_semantics(data)
    nodes = tree(data, semantics)
    assert sum(node.items for node in nodes) == ITEMS - 1
    assert [node.items for node in nodes] == sorted((n.items for n in nodes), reverse=True)
    counts = data.items["train_count"].to_numpy()
    for node in nodes:
        assert sum(twig.items for twig in node.children) == node.items
        rows = np.flatnonzero(semantics.known & (semantics.codes[:, 0] == node.path[0]))
        best = rows[np.argsort(-counts[rows], kind="stable")][:EXAMPLES]
        text = data.items["text"].to_pylist()
        assert node.examples == [" ".join(text[row].split()) for row in best]


def test_collapse_is_on_the_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = np.repeat(np.eye(16), [185, *[1] * 15], axis=0)
    content[1:] += 1e-3 * rng.normal(size=(199, 16))
    data = write_prepared(tmp_path, items=ITEMS, content=content)
    report = fit_semantic_ids(data, resolve_config(data, ["codes=[16, 4]"]))
    first = report.quality.levels[0]
    assert first.collapsed
    assert first.usage > 0.5  # what the share of used codes alone would not have said
    page = Page(to_html(data, report)).text
    assert "on one code: the codebook has collapsed there" in page
    assert "No level has collapsed" not in page


def test_churn_is_on_the_page_where_there_is_a_fit_before(
    data: PreparedData, tmp_path: Path
) -> None:
    config = resolve_config(data, ["codes=[6, 5]"])
    fit_semantic_ids(data, config)
    rng = np.random.default_rng(1)
    content = np.stack(data.items["content"].to_pylist()) + 0.2 * rng.normal(size=(ITEMS, 4))
    other = write_prepared(tmp_path / "other", items=ITEMS, content=content, seed=1)
    report = refit_semantic_ids(other, config, open_predecessor(data))
    assert report.refresh is not None
    page = Page(to_html(other, report)).text
    assert "Refitted from" in page
    assert f"{100 * report.refresh.changed_path:.2f} %" in page
