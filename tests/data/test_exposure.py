"""Which ids a training batch reads as unknown: by how often training meets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import write_prepared

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.contract import Feature, PreparedData
from hisac_rec.data.exposure import Forgetting, forgetting
from hisac_rec.data.inputs import InputConfig, InputSpec, build_input_spec
from hisac_rec.data.items import ItemStore, load_items
from hisac_rec.data.loader import LoaderConfig, RequestBatches, Shard

ITEMS = 30
FEATURES = [Feature(name="brand", rows=7), Feature(name="tags", rows=5, multi=True)]


@pytest.fixture
def made(tmp_path: Path) -> tuple[PreparedData, InputSpec, ItemStore]:
    data = write_prepared(tmp_path, items=ITEMS, users=40, item_features=FEATURES)
    spec = build_input_spec(
        InputConfig(candidate=["id", "*"], history=["id"]), data.manifest, code_counts=()
    )
    return data, spec, load_items(data, spec, None)


def test_chances_follow_what_training_meets(
    made: tuple[PreparedData, InputSpec, ItemStore],
) -> None:
    data, spec, items = made
    found = forgetting(data, spec, items, rate=2.0).chances
    met = np.zeros(ITEMS, int)
    by_user = np.zeros(data.manifest.users, int)
    tags = np.zeros(5, int)
    for path in data.split_files("train"):
        for row in data.read_parquet(str(path.relative_to(data.root))).to_pylist():
            np.add.at(met, row["history_item"], 1)
            for request in row["requests"]:
                np.add.at(met, request["items"], 1)
                by_user[row["user"]] += len(request["items"])
    for item, values in enumerate(data.items["tags"].to_pylist()):
        for value in values:
            tags[value] += met[item]
    np.testing.assert_allclose(found["item"], 2 / (2 + met), rtol=1e-6)
    np.testing.assert_allclose(found["user"], 2 / (2 + by_user), rtol=1e-6)
    np.testing.assert_allclose(found["tags"], 2 / (2 + tags), rtol=1e-6)
    assert set(found) == {"user", "item", "brand", "tags"}


def test_a_share_of_each_id_is_left_out() -> None:
    forget = Forgetting({"item": np.array([1.0, 0.25, 0.0], np.float32)})
    ids = np.tile([1, 2], 4000)
    read = forget("item", ids, np.random.default_rng(0))
    assert set(read) == {0, 1, 2}
    assert 0.22 < (read[ids == 1] == 0).mean() < 0.28
    assert (read[ids == 2] == 2).all()
    assert forget("brand", ids, np.random.default_rng(0)) is ids


def test_batches_draw_anew_and_alike_when_resumed(
    made: tuple[PreparedData, InputSpec, ItemStore],
) -> None:
    data, spec, items = made
    forget = forgetting(data, spec, items, rate=20.0)

    def ids(skip: int, epoch: int = 0) -> list[list[int]]:
        batches = RequestBatches(
            data,
            "train",
            spec,
            items,
            LoaderConfig(max_candidates=20),
            rank=Shard(),
            seed=3,
            epoch=epoch,
            skip=skip,
            forget=forget,
        )
        return [batch.features.values().tolist() for batch in batches]

    whole = ids(0)
    assert ids(2) == whole[2:]
    assert ids(0, epoch=1) != whole
    plain = BatchAssembler(spec, items)
    assert plain._forget is None
