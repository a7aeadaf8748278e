"""Four processes over gloo, in two groups of two and as two hosts: as good as one group."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training import logged, predict_run, read_predictions, torchrun

from hisac_rec.checkpoints.saving import read_manifest
from hisac_rec.data.contract import PreparedData
from hisac_rec.evaluation.metrics import auc
from hisac_rec.planning.plan_io import load_plan
from hisac_rec.train.run import RunFolder

pytestmark = pytest.mark.distributed

SHARDINGS = ("row_wise", "column_wise")


@pytest.fixture(scope="module")
def out(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one launch of ``four_ranks.py``."""
    folder = tmp_path_factory.mktemp("four_ranks")
    torchrun(Path(__file__).with_name("four_ranks.py"), small_data.root, folder, ranks=4)
    return folder


def test_replicas_are_equal_after_every_average(out: Path) -> None:
    """Averaged in steps 1 and 4 of five, and once more at the end."""
    for rank in range(4):
        seen = json.loads((out / f"rank{rank}.json").read_text())["drift"]
        assert seen["equal"] == [True, True, False, False, True, False, True]
        assert seen["frozen"]


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sgd_averaged_every_step_is_one_group_of_all(out: Path, sharding: str) -> None:
    """The mean of the groups' steps is the step of the mean gradient: only rounding differs."""
    run = RunFolder(out / f"{sharding}_sgd")
    plan = load_plan(run.plan)
    assert (plan.world_size, plan.group_size) == (4, 2)
    assert {table.sharding_type for *_, table in plan.tables()} == {sharding}
    losses = logged(out / "flat_sgd", "train", "loss")
    # Training starts at the base rate, so that a few steps of SGD have little to gain.
    assert max(losses.values()) - min(losses.values()) > 0.002
    assert logged(run.root, "train", "loss") == pytest.approx(losses, abs=5e-5)
    flat, grouped = (
        read_predictions(RunFolder(out / name).predictions("test"))
        for name in ("flat_sgd", f"{sharding}_sgd")
    )
    np.testing.assert_allclose(grouped["logit"], flat["logit"], atol=1e-3)


def test_columns_over_the_ranks_of_a_host_train_the_same(out: Path) -> None:
    run = RunFolder(out / "over_hosts")
    (item,) = [table for _, name, table in load_plan(run.plan).tables() if name == "item"]
    assert item.sharding_type == "table_column_wise"
    assert [shard.size[1] for shard in item.shards] == [4, 4]
    assert len({rank // 2 for rank in item.ranks}) == 1
    assert len(set(item.ranks)) == 2
    losses = logged(out / "flat_sgd", "train", "loss")
    assert logged(run.root, "train", "loss") == pytest.approx(losses, abs=5e-5)


def test_row_wise_adagrad_is_as_good(out: Path) -> None:
    """Its state differs: each group adds up the squares of its own gradients."""
    flat, grouped = (
        read_predictions(RunFolder(out / name).predictions("test")) for name in ("flat", "row_wise")
    )
    found = [auc(one["label"], one["logit"]) for one in (flat, grouped)]
    assert found[1] == pytest.approx(found[0], abs=0.02)
    assert min(found) > 0.55


def test_a_checkpoint_of_replicas_is_like_any_other(out: Path, small_data: PreparedData) -> None:
    """It evaluates on one rank, and was resumed in groups of another sharding."""
    run = RunFolder(out / "column_wise_sgd")
    on_four = read_predictions(run.predictions("test"))["logit"]
    on_one = predict_run(run.root, small_data, checkpoint="last")["logit"]
    np.testing.assert_allclose(on_one, on_four, atol=1e-5)
    resumed = RunFolder(out / "row_wise")
    assert read_manifest(resumed.checkpoints().find("last")).position.epoch == 5
    losses = list(logged(resumed.root, "train", "loss").values())
    assert losses[-1] < losses[-2] + 0.01
