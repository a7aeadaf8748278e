"""One real comparison, trained once: two models and one that diverges, two seeds each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from compare_support import compare
from training import small_config
from typer.testing import Result

from hisac_rec.compare.cells import Layout
from hisac_rec.config import dump_toml
from hisac_rec.data.contract import PreparedData

DRAWS = 30


@dataclass(frozen=True)
class Compared:
    """A finished comparison."""

    layout: Layout
    models: dict[str, Path]
    data: PreparedData
    result: Result

    @property
    def name(self) -> str:
        """Of the data set."""
        return self.data.root.name


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    configs = {
        "diverging": ["train.dense_lr=1e30", "train.sparse_lr=1e30", "train.clip_norm=0"],
        "agents": [],
        "floor": ["inputs.history=[]", 'history={method = "none"}'],
    }
    for stem, changes in configs.items():
        config = small_config(f"name=the {stem}", "train.epochs=2", *changes)
        (folder / f"{stem}.toml").write_text(dump_toml(config))
    return {stem: folder / f"{stem}.toml" for stem in configs}


@pytest.fixture(scope="session")
def compared(
    small_data: PreparedData,
    model_files: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Compared:
    out = tmp_path_factory.mktemp("compare") / "out"
    result = compare(
        *model_files.values(),
        *("--data", small_data.root, "--out", out, "--seeds", "2"),
        *("--draws", str(DRAWS), "--keep-runs", "--jobs", "2"),
    )
    return Compared(Layout(out), model_files, small_data, result)
