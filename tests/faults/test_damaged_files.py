"""Parquet files cut short or with a flipped bit: named, and never trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import random_rows, write_prepared
from training import small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.parquet import DAMAGED, open_parquet
from hisac_rec.errors import UserError
from hisac_rec.train.job import open_job
from hisac_rec.train.run import RunFolder

FLIPS = 200


@pytest.fixture
def data(small_data: PreparedData, tmp_path: Path) -> PreparedData:
    """A copy that may be damaged."""
    return PreparedData(shutil.copytree(small_data.root, tmp_path / "data"))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def page_bytes(path: Path) -> tuple[int, int]:
    """First and past-the-last byte of the first row group's largest column."""
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    largest = max(columns, key=lambda column: column.total_compressed_size)
    first = largest.dictionary_page_offset or largest.data_page_offset
    return first, first + largest.total_compressed_size


def test_a_flipped_bit_ends_the_training(data: PreparedData, tmp_path: Path) -> None:
    """In the midst of the values, where everything still decodes: told by the checksum alone."""
    path = data.split_files("train")[0]
    flip(path, 8 * (page_bytes(path)[1] - 20))
    with pytest.raises(UserError, match=r"train/part-00000\.parquet: damaged Parquet file .*CRC"):
        train_run(small_config(), data, tmp_path / "run")
    assert RunFolder(tmp_path / "run").checkpoints().steps() == []


def test_a_file_cut_short_ends_the_training(data: PreparedData, tmp_path: Path) -> None:
    path = data.split_files("train")[0]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"train/part-00000\.parquet: damaged Parquet file"):
        train_run(small_config(), data, tmp_path / "run")


@pytest.mark.parametrize("name", ["items.parquet", "semantic_ids.parquet", "codebook.parquet"])
def test_files_beside_the_splits(data: PreparedData, name: str) -> None:
    path = data.root / name
    flip(path, 8 * (page_bytes(path)[1] - 4))
    with pytest.raises(UserError, match=rf"{name}: damaged Parquet file"):
        open_job(small_config("history.semantics=vectors"), data)


def test_no_flipped_bit_changes_what_is_read(data: PreparedData) -> None:
    """Anywhere in the file: noticed, or without effect."""
    path = data.split_files("train")[0]
    whole = path.read_bytes()
    values = open_parquet(path).read()
    generator = np.random.default_rng(0)
    noticed = 0
    for bit in generator.choice(8 * len(whole), FLIPS, replace=False):
        flip(path, int(bit))
        try:
            same = open_parquet(path).read().equals(values)
        except (UserError, *DAMAGED):
            noticed += 1
        else:
            assert same, f"bit {bit} of {8 * len(whole)} changes what is read"
        path.write_bytes(whole)
    assert noticed > 0.9 * FLIPS


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    """Data that an earlier release, or somebody else, has written."""
    data = write_prepared(tmp_path, rows={"train": random_rows(np.random.default_rng(0), 5, 20)})
    path = data.split_files("train")[0]
    pq.write_table(pq.read_table(path), path)
    assert open_parquet(path).read().num_rows > 0
