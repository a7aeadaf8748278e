"""A checkpoint of any number of ranks and any sharding goes on in any other.

``matrix.py`` says what a cell is. The short form has two ranks and one; the whole matrix, 256
cells, is slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import matrix
from training import one_process, small_config, torchrun

from hisac_rec.data.contract import PreparedData
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.train.job import open_job

pytestmark = pytest.mark.distributed

SCRIPT = Path(matrix.__file__)


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """60 users with 10 to 40 events: every cell trains on all of them.

    Every table has a row for each of four ranks: fbgemm's kernel for CPU reads past its tables
    where the last of a group of bags has no row on a rank.
    """
    synthetic = {
        "users": 60,
        "items": 60,
        "branches": [7, 6],
        "length_min": 10,
        "length_median": 20,
        "length_max": 40,
        "content_dim": 8,
    }
    codes = {"source": "content", "codes": [8, 8]}
    definition = DatasetDefinition.model_validate(
        {"name": "tiny", "synthetic": synthetic, "semantic_ids": codes}
    )
    data = prepare(definition, tmp_path_factory.mktemp("tiny") / "data")
    fit_semantic_ids(data, resolve_config(data))
    return data


def check(cells: dict[str, dict[str, float]]) -> None:
    for cell, found in cells.items():
        assert found["predictions"] < 1e-6, cell
        assert found["state"] < 1e-6, cell
        assert found["step"] > 1e-3, cell  # a step is no small thing
        before, now = (name.split("-", 1) for name in cell.split(" to "))
        columns = [
            layout == "column_wise" and matrix.NARROWEST[int(ranks)]
            for ranks, layout in (before, now)
        ]
        # One number a row for all columns, or one for some of them, are other optimisers.
        if columns[0] == columns[1]:
            assert found["after"] < 1e-6, cell


@pytest.fixture(scope="module")
def of_two(tiny_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have saved and loaded again."""
    out = tmp_path_factory.mktemp("of_two")
    torchrun(SCRIPT, tiny_data.root, out, "save", "load")
    return out


def test_any_sharding_to_any_other(of_two: Path) -> None:
    cells = json.loads((of_two / "cells-2.json").read_text())
    assert len(cells) == 16
    check(cells)


@pytest.fixture
def row_wise_bags(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    offered = matrix.EmbeddingBagCollectionSharder.sharding_types
    matrix.offer_row_wise_bags()
    yield
    matrix.EmbeddingBagCollectionSharder.sharding_types = offered


@pytest.mark.usefixtures("row_wise_bags")
def test_two_ranks_to_one(of_two: Path, tiny_data: PreparedData) -> None:
    with one_process() as ranks:
        job = open_job(small_config(*matrix.CONFIG), tiny_data)
        cells = matrix.load(job, ranks, of_two, layouts=("table_wise", "column_wise"))
    assert len(cells) == 8
    check(cells)


@pytest.mark.slow
def test_every_world_size_and_sharding_to_every_other(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    for phase in ("save", "load"):
        for ranks in matrix.HOSTS:
            torchrun(SCRIPT, tiny_data.root, tmp_path, phase, ranks=ranks, timeout=1200)
    cells: dict[str, dict[str, float]] = {}
    for ranks in matrix.HOSTS:
        cells |= json.loads((tmp_path / f"cells-{ranks}.json").read_text())
    assert len(cells) == 256
    check(cells)
    print({what: max(found[what] for found in cells.values()) for what in ("predictions", "state")})
