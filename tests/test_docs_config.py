"""The configuration reference says what the code says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from hisac_rec.config import Strict
from hisac_rec.docs_config import _sections, main, render

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"


class Inner(Strict):
    """An inner table."""

    rate: float = Field(default=0.5, gt=0, le=1)
    """Rate, see :class:`~a.B` and ``this | that``."""


class Outer(Strict):
    """The outer table."""

    need: str
    """Required."""
    codes: list[Annotated[int, Field(ge=2)]] = [32, 16]
    """Codes."""
    kind: Literal["a", "b"] = "a"
    """One of two."""
    cut: int | None = None
    """May be unset."""
    inner: Inner = Inner()
    """Table."""
    named: dict[str, Inner] = {}
    """Tables by name."""


def page() -> str:
    return "\n".join(_sections(Outer.model_json_schema(), {}, path="", level=3))


def test_the_committed_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make docs` and commit the page"


def test_each_key_has_type_default_limits_and_docstring() -> None:
    lines = page().splitlines()
    assert "| `need` | string | required |  | Required. |" in lines
    assert "| `codes` | list of integers | `[32, 16]` | each ≥ 2 | Codes. |" in lines
    assert '| `kind` | string | `"a"` | `"a"`, `"b"` | One of two. |' in lines
    assert "| `cut` | integer | *unset* |  | May be unset. |" in lines


def test_inner_tables_become_sections_and_marks_become_markdown() -> None:
    text = page()
    assert "### `[inner]`" in text
    assert "### `[named.<name>]`" in text
    assert "| `rate` | float | `0.5` | > 0, ≤ 1 | Rate, see `a.B` and `this \\| that`. |" in text


def test_a_stale_page_is_told_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_here = tmp_path / "configuration.md"
    page_here.write_text("old")
    monkeypatch.setattr(sys, "argv", ["docs_config", "--check", str(page_here)])
    with pytest.raises(SystemExit, match="stale"):
        main()
    assert page_here.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["docs_config", str(page_here)])
    main()
    assert page_here.read_text(encoding="utf-8") == render()
    assert list(tmp_path.iterdir()) == [page_here]
