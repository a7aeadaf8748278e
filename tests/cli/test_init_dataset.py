"""The ``init-dataset`` command: what it writes, prints and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from propose.logs import clean_log, write_csv
from typer.testing import CliRunner

from hisac_rec.cli.init_dataset import run
from hisac_rec.config import load_config
from hisac_rec.errors import UserError
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare

app = typer.Typer(rich_markup_mode="markdown")
app.command()(run)


def invoke(*arguments: object) -> str:
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_writes_what_prepare_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    write_csv(tmp_path / "raw" / "shop-log.csv", clean_log())
    printed = invoke("raw/shop-log.csv")
    assert "no warnings" in printed
    assert "hisac-rec prepare shop_log.toml --raw raw --out data/shop_log" in printed
    file = tmp_path / "shop_log.toml"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "shop_log.toml"]
    definition = load_config(DatasetDefinition, file)
    data = prepare(definition, tmp_path / "out", raw=tmp_path / "raw", origin=str(file))
    assert sum(split.candidates for split in data.manifest.splits.values()) == 1200
    with pytest.raises(UserError, match="exists already"):
        invoke("raw/shop-log.csv")
    invoke("raw/shop-log.csv", "--force", "--label", "click = 0", "--user", "USER_ID")
    assert 'label = "label"' in file.read_text()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = write_csv(tmp_path / "log.csv", clean_log(users=10))
    with pytest.raises(UserError, match=r"nobody\.csv: no such file"):
        invoke("nobody.csv")
    with pytest.raises(UserError, match=r"--user usr: no such column; did you mean 'user_id'"):
        invoke(log, "--user", "usr")
    with pytest.raises(UserError, match=r"--label .*neither a column nor an SQL expression"):
        invoke(log, "--label", "clicks >> 'x'")
    with pytest.raises(UserError, match=r"no row is left by --where"):
        invoke(log, "--where", "click = 7")
    odd = write_csv(
        tmp_path / "odd.csv", [{"a": 1.5, "b": f"x{k % 9}", "c": 0.5} for k in range(60)]
    )
    with pytest.raises(
        UserError, match=r"(?s)odd\.csv: no column holds times.*columns seen: a .*--time"
    ):
        invoke(odd)
    with pytest.raises(UserError, match=r"(?s)odd\.csv: no column looks like.*--user COLUMN"):
        invoke(odd, "--time", "lines")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        invoke("empty.csv")
    (tmp_path / "head.csv").write_text("user,item,time\n")
    with pytest.raises(UserError, match="holds no rows"):
        invoke("head.csv")
    assert not list(tmp_path.glob("*.toml"))
