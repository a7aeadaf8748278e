"""``compare`` as typed."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from hisac_rec.cli.app import app


def compare(*arguments: str | Path) -> Result:
    words = ["compare", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False)
