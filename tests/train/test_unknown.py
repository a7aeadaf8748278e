"""New ids read what training has made of unknown ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from builders import write_prepared
from training import logged, one_process, small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.run import RunFolder
from hisac_rec.train.trainer import Trainer
from hisac_rec.train.unknown import fill_untouched

ITEMS, NEW = 60, 7
NO_CODES = ('inputs.candidate=["id"]', 'inputs.history=["id"]', 'history={method="mean"}')


def data_with_new_items(root: Path) -> PreparedData:
    """The last items occur in valid and test alone."""
    rng = np.random.default_rng(0)

    def rows(most: int) -> list[dict]:
        return [
            {
                "user": user,
                "history_item": rng.integers(1, ITEMS - NEW, 9).tolist(),
                "history_type": [0] * 9,
                "history_time": list(range(9)),
                "requests": [
                    {
                        "time": 9 + number,
                        "history_end": 9,
                        "items": rng.integers(1, most, 4).tolist(),
                        "labels": rng.integers(0, 2, 4).astype(float).tolist(),
                    }
                    for number in range(3)
                ],
            }
            for user in range(1, 60)
        ]

    known, every = ITEMS - NEW, ITEMS
    return write_prepared(
        root,
        items=ITEMS,
        rows={"train": rows(known), "valid": rows(every), "test": rows(every)},
    )


def item_rows(data: PreparedData, out: Path, *overrides: str) -> np.ndarray:
    """[items, d] after a training."""
    config = small_config(*NO_CODES, *overrides)
    with one_process() as ranks:
        job = open_job(config, data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        trainer = Trainer(job, ranks, RunFolder(out), model, Optimizers(model, config.train))
        trainer.run()
        state = model.state_dict()["tables.embeddings.item.weight"]
        rows = state.local_shards()[0].tensor.clone().numpy()
        trainer.close()
    return rows


def test_untouched_rows_hold_the_unknown_row(tmp_path: Path) -> None:
    data = data_with_new_items(tmp_path / "data")
    rows = item_rows(data, tmp_path / "run", "train.unknown_rate=1")
    new = rows[ITEMS - NEW :]
    assert (new == rows[0]).all()
    assert not (rows[1 : ITEMS - NEW] == rows[0]).all(axis=1).any()


def test_without_a_rate_they_hold_what_they_began_with(tmp_path: Path) -> None:
    data = data_with_new_items(tmp_path / "data")
    rows = item_rows(data, tmp_path / "run", "train.unknown_rate=0")
    assert len(np.unique(rows[ITEMS - NEW :], axis=0)) == NEW


def test_nothing_is_filled_before_the_unknown_row_was_trained(tmp_path: Path) -> None:
    data = data_with_new_items(tmp_path / "data")
    config = small_config(*NO_CODES)
    with one_process() as ranks:
        job = open_job(config, data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        key = "tables.embeddings.item.weight"
        before = model.state_dict()[key].local_shards()[0].tensor.clone()
        fill_untouched(model, Optimizers(model, config.train))
        after = model.state_dict()[key].local_shards()[0].tensor
        assert torch.equal(before, after)


def test_caution_moves_a_row_by_how_often_it_was_met(tmp_path: Path) -> None:
    """Of the same rates, a cautious training moves rare rows less, compared with frequent ones."""
    data = data_with_new_items(tmp_path / "data")
    frequent = {}
    for caution in ("0", "1"):
        keys = (f"train.sparse_caution={caution}", "train.unknown_rate=0")
        rows = item_rows(data, tmp_path / caution, *keys)
        frequent[caution] = np.linalg.norm(rows[1 : ITEMS - NEW], axis=1).mean()
    assert frequent["1"] < frequent["0"]


def test_five_evaluations_however_short(small_data: PreparedData, tmp_path: Path) -> None:
    train_run(small_config("train.evaluations=5"), small_data, tmp_path / "run")
    seen = logged(tmp_path / "run", "valid", "logloss")
    assert len(seen) == 5
    assert len(logged(tmp_path / "run", "train_sample", "logloss")) == 5
    steps = sorted(seen)
    gaps = np.diff([0, *steps])
    assert gaps.max() <= gaps.min() + 2
