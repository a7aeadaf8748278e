"""``docs/methods.md`` names every shipped model."""

from __future__ import annotations

import re
from pathlib import Path

from hisac_rec.shipped import shipped_names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"


def test_the_table_has_a_row_for_each_model_and_no_other() -> None:
    named = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(shipped_names("models"))
