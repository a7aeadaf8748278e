"""The ``prepare`` command: what it prints, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
import typer
from till import PURCHASES, lines, write
from typer.testing import CliRunner

from hisac_rec.cli.prepare import run
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError

app = typer.Typer(rich_markup_mode="markdown")
app.command()(run)
SMALL = [
    part
    for key, value in {
        "users": 30,
        "items": 40,
        "branches": [4, 4],
        "length_min": 20,
        "length_median": 30,
        "length_max": 60,
    }.items()
    for part in ("--set", f"synthetic.{key}={value}")
]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_synthetic_by_name(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "syn"
    text = invoke("synthetic", "--out", str(out), *SMALL)
    data = PreparedData(out)
    assert data.manifest.users == 31
    assert data.manifest.splits["train"].requests == 150
    for expected in ("train", "valid", "test", "1,200", "history length", "segment (8)", str(out)):
        assert expected in text.replace("\n", "")


def test_definition_by_path_and_exists(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("name = 'mine'\n[synthetic]\nseed = 3\n")
    out = str(tmp_path / "out")
    invoke(str(file), "--out", out, *SMALL)
    assert PreparedData(out).manifest.name == "mine"
    with pytest.raises(UserError, match="exists already"):
        invoke(str(file), "--out", out, *SMALL)
    invoke(str(file), "--out", out, "--force", *SMALL)


def test_first_events_are_told(tmp_path: Path) -> None:
    definition, raw = tmp_path / "till.toml", write(tmp_path / "raw", lines())
    definition.write_text(tomli_w.dumps(PURCHASES))
    said = {}
    for name, settings in {
        "few": [],
        "many": ["requests.negatives.window=500"],
        "none": ["requests.negatives.window=500", "requests.negatives.first_events=drop"],
    }.items():
        keys = [word for key in settings for word in ("--set", key)]
        words = (str(definition), "--raw", str(raw), "--out", str(tmp_path / name), *keys)
        said[name] = invoke(*words)
    assert "first event, as far as draws look back: train" in said["few"]
    assert "warning" not in said["few"]
    assert "warning first-events: positives that are their item's first event" in said["many"]
    assert 'set first_events = "drop" in [requests.negatives]' in said["many"]
    assert "warning" not in said["none"]
    assert "% (left out)" in said["none"]


def test_messages(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'synthetic'"):
        invoke("syntetic", "--out", out)
    with pytest.raises(UserError, match=r"unknown key 'synthetic.user'; did you mean 'users'"):
        invoke("synthetic", "--out", out, "--set", "synthetic.user=3")
    with pytest.raises(UserError, match=r"--raw\nWhere to get the raw files: https://grouplens"):
        invoke("movielens_1m", "--out", out)
    assert not list(tmp_path.iterdir())


def test_help_shows_examples() -> None:
    text = invoke("--help")
    assert "hisac-rec prepare synthetic" in text
    assert "movielens_1m" in text
