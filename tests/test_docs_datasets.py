"""The page of data sets says what the definitions say."""

from __future__ import annotations

from pathlib import Path

import pytest

from hisac_rec.docs_datasets import filled
from hisac_rec.shipped import shipped_names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "datasets.md"


def test_the_table_is_current() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "stale; run `make docs`"
    assert all(f"[`{name}`](../datasets/{name}.toml)" in page for name in shipped_names("datasets"))


def test_a_page_without_a_place_for_it() -> None:
    with pytest.raises(ValueError, match="expected a line"):
        filled("# Data sets\n")
