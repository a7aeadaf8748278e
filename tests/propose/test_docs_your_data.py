"""The commands of docs/your-data.md, as a reader would type them, and what it says of them."""

from __future__ import annotations

import gzip
import re
import shlex
import zlib
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hisac_rec.cli.app import app

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-data.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]  # fmt: skip
SHOWN = re.findall(r"```(?:text|toml)\n(.*?)```", PAGE, flags=re.DOTALL)


def typed(command: str) -> str:
    name, *arguments = shlex.split(command)
    assert name == "hisac-rec"
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.stdout


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is, with the raw file."""
    raw = shared_data / "online-retail" / "online-retail.csv.gz"
    (tmp_path / raw.name).symlink_to(raw)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_on_a_few_customers(folder: Path) -> None:
    """One customer of twenty: the same definition but for its figures, and it prepares."""
    file = folder / "online-retail.csv.gz"
    with gzip.open(file, "rt", newline="") as opened:
        header, *lines = opened.readlines()
    customers = [line.rsplit(",", 2)[1] for line in lines]
    kept = [
        line
        for customer, line in zip(customers, lines, strict=True)
        if zlib.crc32((customer or line).encode()) % 20 == 7
    ]
    file.unlink()
    with gzip.open(file, "wt", newline="", compresslevel=1) as opened:
        opened.writelines([header, *kept])
    for command in COMMANDS[:3]:
        typed(command)
    written = (folder / "retail.toml").read_text()
    for part in ("source", "requests", "requests.negatives"):
        table = re.search(
            rf"^\[{part}\].*?(?=^\[[a-z]|\Z)", SHOWN[1], flags=re.DOTALL | re.MULTILINE
        )
        assert table is not None
        assert table[0].strip() in written, written
    assert (folder / "data" / "retail" / "manifest.json").is_file()


@pytest.mark.slow
def test_what_the_page_shows(folder: Path) -> None:
    assert plain(typed(COMMANDS[0])) == plain(SHOWN[0])
    typed(COMMANDS[1])
    written = (folder / "retail.toml").read_text()
    assert plain(written[written.index("name = ") :]) == plain(SHOWN[1])
    prepared = typed(COMMANDS[2])
    for line in plain(SHOWN[2])[1:]:  # the title holds a fingerprint
        assert line in prepared
    assert Console().width == 100
