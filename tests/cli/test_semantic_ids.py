from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from builders import write_prepared
from typer.testing import CliRunner

from hisac_rec.cli.semantic_ids import run
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.semantic.store import load_semantics

app = typer.Typer()
app.command()(run)


@pytest.fixture
def data(tmp_path: Path) -> PreparedData:
    rng = np.random.default_rng(0)
    return write_prepared(
        tmp_path / "data",
        items=80,
        content=rng.normal(size=(80, 6)),
        definition={"semantic_ids": {"codes": [5, 4]}},
    )


def call(data: PreparedData | Path, *arguments: str) -> str:
    root = data.root if isinstance(data, PreparedData) else data
    result = CliRunner().invoke(app, [str(root), *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_it_writes_and_shows_the_quality(data: PreparedData) -> None:
    shown = call(data)
    assert load_semantics(data).code_counts == [5, 4]
    for word in ("perplexity", "explained", "share their whole path", "tau", "raw-"):
        assert word in shown


def test_settings_on_the_command_line_win(data: PreparedData) -> None:
    call(data, "--set", "codes=[3, 2, 2]")
    assert load_semantics(data).code_counts == [3, 2, 2]


def test_the_same_settings_change_nothing(data: PreparedData) -> None:
    call(data)
    before = (data.root / "semantic_ids.parquet").stat().st_mtime_ns
    assert "perplexity" in call(data)
    assert (data.root / "semantic_ids.parquet").stat().st_mtime_ns == before


def test_other_settings_need_force(data: PreparedData) -> None:
    call(data)
    with pytest.raises(UserError, match=r"codes: \[5, 4\] -> \[3, 3\].*--force"):
        call(data, "--set", "codes=[3, 3]")
    assert load_semantics(data).code_counts == [5, 4]
    call(data, "--set", "codes=[3, 3]", "--force")
    assert load_semantics(data).code_counts == [3, 3]


def test_a_damaged_fit_is_made_again(data: PreparedData) -> None:
    call(data)
    (data.root / "codebook.parquet").unlink()
    call(data)
    assert load_semantics(data).code_counts == [5, 4]


def test_a_folder_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared data set"):
        call(tmp_path)


@pytest.fixture
def tomorrow(tmp_path: Path, data: PreparedData) -> PreparedData:
    """The same items and ten more."""
    rng = np.random.default_rng(0)
    content = np.concatenate([rng.normal(size=(80, 6)), rng.normal(size=(10, 6))])
    return write_prepared(
        tmp_path / "tomorrow",
        items=90,
        content=content,
        definition={"semantic_ids": {"codes": [5, 4]}},
    )


def test_another_day_goes_on_from_the_codes(data: PreparedData, tomorrow: PreparedData) -> None:
    call(data)
    shown = call(tomorrow, "--from", str(data.root))
    assert "extended from" in shown
    assert "10 new" in shown
    np.testing.assert_array_equal(load_semantics(tomorrow).codes[:80], load_semantics(data).codes)
    before = (tomorrow.root / "semantic_ids.parquet").stat().st_mtime_ns
    call(tomorrow, "--from", str(data.root))
    assert (tomorrow.root / "semantic_ids.parquet").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"from: .*, extended' -> .*, refitted'.*--force"):
        call(tomorrow, "--from", str(data.root), "--refit")
    assert "refitted from" in call(tomorrow, "--from", str(data.root), "--refit", "--force")


def test_a_kept_codebook_has_its_settings(data: PreparedData, tomorrow: PreparedData) -> None:
    call(data)
    with pytest.raises(UserError, match=r"the settings of .* hold"):
        call(tomorrow, "--from", str(data.root), "--set", "codes=[3, 3]")
    call(tomorrow, "--from", str(data.root), "--set", "text.batch_size=8")  # what may move
    assert load_semantics(tomorrow).code_counts == [5, 4]
    with pytest.raises(UserError, match="--refit needs --from"):
        call(tomorrow, "--refit")


def test_other_contents_of_a_file_of_embeddings_need_force(
    data: PreparedData, tmp_path: Path
) -> None:
    path = tmp_path / "v.npy"
    np.save(path, np.random.default_rng(1).integers(-127, 127, (79, 4)).astype(np.int8))
    (tmp_path / "v.ids.txt").write_text("\n".join(f"raw-{i}" for i in range(1, 80)))
    assert "int8 x 4 for 79 of 79 items" in call(data, "--embeddings", str(path))
    call(data, "--embeddings", str(path))
    np.save(path, np.random.default_rng(2).integers(-127, 127, (79, 4)).astype(np.int8))
    with pytest.raises(UserError, match=r"v\.npy: other contents.*--force"):
        call(data, "--embeddings", str(path))
