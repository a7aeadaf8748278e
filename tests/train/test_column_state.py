"""A checkpoint of any sharding goes on in any other, the optimiser's state included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from training import one_process, planner_of, small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.train.checkpoint import load_checkpoint, read_manifest
from hisac_rec.train.column_state import column_shares
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.run import RunFolder

SHARDINGS = ("row_wise", "column_wise", "table_wise")


def test_shares_of_columns() -> None:
    whole, halves = [(0, 8)], [(0, 4), (4, 4)]
    thirds = [(0, 2), (2, 3), (5, 3)]
    assert column_shares(whole, halves).tolist() == [[1.0], [1.0]]
    assert column_shares(halves, whole).tolist() == [[0.5, 0.5]]
    expected = [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]
    torch.testing.assert_close(column_shares(thirds, halves), torch.tensor(expected))
    assert column_shares(thirds, thirds).tolist() == torch.eye(3).tolist()


@pytest.fixture(scope="module", params=SHARDINGS)
def trained(
    request: pytest.FixtureRequest,
    small_data: PreparedData,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A short run of one sharding; columns of 4 make two shards of a row."""
    out = tmp_path_factory.mktemp("run") / request.param
    config = small_config("train.max_candidates=1200")
    train_run(config, small_data, out, plan=planner_of(1, request.param))
    return request.param, out


def restored(out: Path, data: PreparedData, sharding: str) -> dict[str, Any]:
    """Weights, and each row's optimiser state, of the last checkpoint in another sharding."""
    run = RunFolder(out)
    path = run.checkpoints().find("last")
    with one_process() as ranks:
        job = open_job(run.config(), data)
        model = shard(job, resolve_plan(job, ranks, planner_of(1, sharding)), ranks)
        optimizers = Optimizers(model, job.config.train)
        load_checkpoint(path, model, optimizers, read_manifest(path))
        found: dict[str, Any] = {}
        for key, value in model.state_dict().items():
            if isinstance(value, ShardedTensor):
                found[key] = torch.empty(tuple(value.size()))
                for piece in value.local_shards():
                    (row, column), (rows, columns) = (
                        piece.metadata.shard_offsets,
                        piece.metadata.shard_sizes,
                    )
                    found[key][row : row + rows, column : column + columns] = piece.tensor
        for key, state in optimizers.sparse.state_dict()["state"].items():
            for name, value in state.items():
                pieces = [piece.tensor.flatten() for piece in value.local_shards()]
                rows = found[key].shape[0] if key in found else len(torch.cat(pieces))
                found[f"{key}/{name}"] = torch.cat(pieces).view(-1, rows)
    return found


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_any_sharding_to_any_other(
    trained: tuple[str, Path], small_data: PreparedData, sharding: str
) -> None:
    before, out = trained
    there, here = restored(out, small_data, before), restored(out, small_data, sharding)
    assert there.keys() == here.keys()
    states = [key for key in there if key.endswith("momentum1")]
    assert states
    for key, value in there.items():
        if key in states:  # a row's state is the mean over its columns, in any layout
            torch.testing.assert_close(here[key].mean(0), value.mean(0))
            assert value.any()
        else:
            assert torch.equal(here[key], value), key
    shards = {len(here[key]) for key in states}
    assert shards == ({2} if sharding == "column_wise" else {1})


def test_training_goes_on_in_another_sharding(small_data: PreparedData, tmp_path: Path) -> None:
    """Row-wise to column-wise, where plain re-sharding fails; the loss goes on falling."""
    config = small_config("train.epochs=1", "train.warmup_steps=0")
    first = train_run(config, small_data, tmp_path / "run", plan=planner_of(1, "row_wise"))
    longer = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    second = train_run(
        longer, small_data, tmp_path / "run", plan=planner_of(1, "column_wise"), resume=True
    )
    assert second["auc"] > first["auc"] - 0.01
    assert second["auc"] > 0.6
