"""Real public files, all the way: prepare, semantic ids, a short training, predictions.

The two format samples are completed by what they lack, in the publishers' own schemas.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from raw_files import SMALL
from training import predict_run, small_config, train_run

from hisac_rec.config import load_config
from hisac_rec.evaluation.metrics import auc
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config
from hisac_rec.shipped import find_config


def movielens_latest(real: Path, raw: Path) -> None:
    """60 users of latest-small."""
    shutil.copy(real / "ml-latest-small" / "movies.csv", raw)
    lines = (real / "ml-latest-small" / "ratings.csv").read_text().splitlines()
    few = [line for line in lines[1:] if int(line.split(",")[0]) <= 60]
    (raw / "ratings.csv").write_text("\n".join([lines[0], *few]) + "\n")


def taobao_mm(real: Path, raw: Path) -> None:
    """The ten rows of each file know other users and items: samples and vectors are re-keyed."""
    tables = {path.name: pq.read_table(path) for path in (real / "taobao-mm-demo").iterdir()}
    for part in ("train", "test"):
        users = tables[f"{part}_user_features.parquet"]
        if part == "train":  # somebody for the valid split
            ids = users["129_1"].to_pylist()
            users = users.set_column(0, "129_1", pa.array([ids[0] // 32 * 32, *ids[1:]]))
        tables[f"{part}_user_features.parquet"] = users
        samples = tables[f"{part}_samples.parquet"]
        keyed = samples.set_column(1, "129_1", users["129_1"])
        clicked = pa.array([[n % 2, 1 - n % 2] for n in range(10)], samples.schema[0].type)
        tables[f"{part}_samples.parquet"] = pa.concat_tables(
            [keyed, keyed.set_column(0, "label_0", clicked)]
        )
    met = pc.list_flatten(tables["train_user_features.parquet"]["150_2_180"]).unique()[:10]
    vectors = tables["scl_embedding_int8_p90.parquet"]
    tables["scl_embedding_int8_p90.parquet"] = vectors.set_column(0, "205", met)
    for name, table in tables.items():
        pq.write_table(table, raw / name)


def ebnerd(real: Path, raw: Path) -> None:
    """The sample has no articles, and one split: it is cut in two at its median impression."""
    for file in SMALL["ebnerd"]():
        if file.name == "articles.parquet":
            file.write(raw)
    pages = pq.read_table(real / "ebnerd-test" / "behaviors.parquet")
    middle = np.median(pages["impression_time"].to_numpy().astype(np.int64))
    late = pa.array(pages["impression_time"].to_numpy().astype(np.int64) > middle)
    for part, chosen in (("train", pc.invert(late)), ("validation", late)):
        (raw / part).mkdir()
        pq.write_table(pages.filter(chosen), raw / part / "behaviors.parquet")
        shutil.copy(real / "ebnerd-test" / "history.parquet", raw / part)


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        (taobao_mm, ["codes=[2, 3]"]),
        pytest.param(
            movielens_latest,
            ["source=text+collaborative", "codes=[4, 6]"],
            marks=pytest.mark.slow,
        ),
        pytest.param(ebnerd, ["source=collaborative", "codes=[4, 6]"], marks=pytest.mark.slow),
    ],
)
def test_whole_way(
    shared_data: Path,
    tmp_path: Path,
    files: Callable[[Path, Path], None],
    settings: list[str],
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    files(shared_data, raw)
    path = find_config("datasets", files.__name__)
    data = prepare(load_config(DatasetDefinition, path), tmp_path / "data", raw=raw)
    fit_semantic_ids(data, resolve_config(data, settings))
    config = small_config("train.max_candidates=1500", "loader.batch_tokens=20000")
    train_run(config, data, tmp_path / "run")
    predicted = predict_run(tmp_path / "run", data)
    assert len(predicted["label"]) == data.manifest.splits["test"].candidates
    assert 0 < auc(predicted["label"], predicted["logit"]) < 1
