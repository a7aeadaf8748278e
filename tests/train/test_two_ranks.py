"""Two processes over gloo: as good as one, in any sharding, and no rank waits forever."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed.checkpoint as dcp
from builders import random_rows, write_prepared
from planted_tasks import TASKS, planted_data
from training import (
    WHOLE_EPOCH_A_STEP,
    logged,
    one_process,
    planner_of,
    predict_run,
    read_predictions,
    record_requests,
    small_config,
    torchrun,
    train_run,
)

from hisac_rec.checkpoints.managed_state import stored_mapping
from hisac_rec.checkpoints.saving import read_manifest
from hisac_rec.checkpoints.stored_tensors import StoredTensors
from hisac_rec.data.contract import SPLITS, PreparedData
from hisac_rec.evaluation.metrics import auc
from hisac_rec.managed.mapping import FREE
from hisac_rec.planning.plan_io import load_plan
from hisac_rec.train.job import open_job
from hisac_rec.train.reading import Reading
from hisac_rec.train.run import RunFolder

pytestmark = pytest.mark.distributed

SHARDINGS = ("row_wise", "column_wise", "table_wise")


@dataclass(frozen=True)
class Results:
    out: Path
    lonely: PreparedData
    planted: PreparedData
    ranks: list[dict[str, Any]]


@pytest.fixture(scope="module")
def results(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The one launch of ``two_ranks.py``."""
    out = tmp_path_factory.mktemp("two_ranks")
    rows = {split: random_rows(np.random.default_rng(0), 1, 20) for split in SPLITS}
    lonely = write_prepared(out / "lonely_data", rows=rows, files_per_split=1)
    planted = planted_data(out, *TASKS, out="planted_data")
    folders = (small_data.root, lonely.root, planted.root, out)
    torchrun(Path(__file__).with_name("two_ranks.py"), *folders)
    return Results(
        out,
        lonely,
        planted,
        [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)],
    )


def test_ranks_with_unequal_data_stay_in_step(results: Results) -> None:
    first, second = (rank["fed"] for rank in results.ranks)
    assert len(first) == len(second) == 4
    assert [own for own, _, _ in first][2:] == [0, 0]
    for (own, total, scale), (other, same, same_scale) in zip(first, second, strict=True):
        assert total == same == own + other
        assert scale == same_scale == pytest.approx(2 / total)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_initial_rows_do_not_depend_on_the_sharding(results: Results, sharding: str) -> None:
    for rank in results.ranks:
        assert rank["shards"][sharding]["equal"]
        assert rank["shards"][sharding]["held"] > 0


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_every_sharding_trains(results: Results, sharding: str) -> None:
    run = RunFolder(results.out / sharding)
    assert {table.sharding_type for *_, table in load_plan(run.plan).tables()} == {sharding}
    path = run.checkpoints().find("last")
    assert read_manifest(path).world_size == 2
    stored = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    assert {"random.0.cpu", "random.1.cpu"} <= stored.keys()
    losses = list(logged(run.root, "train", "loss").values())
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.01


def test_shardings_agree(results: Results) -> None:
    """The same model, batches and steps: only rounding differs. Row-wise Adagrad keeps one
    number a shard's row, so columns on two ranks adapt on their own."""
    row, column, table = (
        read_predictions(RunFolder(results.out / sharding).predictions("test"))["logit"]
        for sharding in SHARDINGS
    )
    np.testing.assert_allclose(row, table, atol=1e-3)
    assert np.corrcoef(column, table)[0, 1] > 0.9


def test_ranks_agree_after_a_group_of_batches_that_is_cut_short(results: Results) -> None:
    first, second = (rank["grouped"] for rank in results.ranks)
    assert first["batches"] % 3  # of accumulate = 3
    assert first == second


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_checkpoint_of_two_ranks_evaluates_on_one(
    results: Results, small_data: PreparedData, sharding: str
) -> None:
    run = RunFolder(results.out / sharding)
    on_two = read_predictions(run.predictions("test"))
    on_one = predict_run(run.root, small_data, checkpoint="last")
    for key in ("user", "request", "item", "label", "history_length"):
        assert np.array_equal(on_one[key], on_two[key]), key
    np.testing.assert_allclose(on_one["logit"], on_two["logit"], atol=1e-5)


def test_a_run_of_two_ranks_goes_on_on_one_in_another_sharding(
    results: Results, small_data: PreparedData, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(results.out / "column_wise", tmp_path / "run"))
    run = RunFolder(out)
    before = read_manifest(run.checkpoints().find("last"))
    config = run.config()
    longer = config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": 3, "early_stop": 0})}
    )
    train_run(longer, small_data, out, plan=planner_of(1, "row_wise"), resume=True)
    after = read_manifest(run.checkpoints().find("last"))
    assert (before.world_size, after.world_size) == (2, 1)
    assert after.position.epoch == 3
    assert after.metrics["auc"] > before.metrics["auc"] - 0.02
    losses = logged(out, "train", "loss")
    earlier = [loss for step, loss in losses.items() if step <= before.position.step]
    later = [loss for step, loss in losses.items() if step > before.position.step]
    assert np.mean(later) < np.mean(earlier)


def test_the_rest_of_an_epoch_of_two_ranks_is_read_on_one(
    results: Results, small_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is lost or trained on twice when the number of ranks changes."""
    out = Path(shutil.copytree(results.out / "part", tmp_path / "run"))
    path = RunFolder(out).checkpoints().find("last")
    with one_process():
        by_two = Reading.load(path, dealt_anew=True).before
    whole = small_data.manifest.splits["train"]
    assert 0 < len(by_two) < whole.requests
    trained = record_requests(monkeypatch)
    config = small_config("train.early_stop=0")
    train_run(config, small_data, out, plan=planner_of(1, "column_wise"), resume=True)
    assert len(trained) == len(set(trained)) == whole.requests - len(by_two)
    assert not by_two.holds(np.array(trained)).any()
    after = read_manifest(RunFolder(out).checkpoints().find("last"))
    assert after.position.epoch == 1


def test_one_process_learns_the_same(
    results: Results, small_data: PreparedData, tmp_path: Path
) -> None:
    """With the whole epoch as one step, ranks change nothing but the order of sums."""
    train_run(small_config(*WHOLE_EPOCH_A_STEP), small_data, tmp_path / "one")
    one = predict_run(tmp_path / "one", small_data, checkpoint="last")
    assert np.ptp(one["logit"]) > 0.2
    losses = logged(tmp_path / "one", "train", "loss")
    for sharding in ("row_wise", "table_wise"):
        run = RunFolder(results.out / f"whole_{sharding}")
        assert logged(run.root, "train", "loss") == pytest.approx(losses, abs=1e-4)
        two = read_predictions(run.predictions("test"))
        np.testing.assert_allclose(two["logit"], one["logit"], atol=1e-2)
        aucs = [auc(found["label"], found["logit"]) for found in (one, two)]
        assert aucs[0] == pytest.approx(aucs[1], abs=0.002)


def test_one_process_learns_the_same_of_several_tasks(results: Results, tmp_path: Path) -> None:
    config = small_config(*WHOLE_EPOCH_A_STEP, 'tasks.train=["*"]')
    train_run(config, results.planted, tmp_path / "one")
    one = predict_run(tmp_path / "one", results.planted, checkpoint="last")
    run = RunFolder(results.out / "tasks")
    for group, name in (
        *(("train", f"loss/{task}") for task in ("click", "like", "purchase")),
        *(("valid", f"{task}/auc") for task in ("like", "purchase")),
    ):
        alone = logged(tmp_path / "one", group, name)
        assert logged(run.root, group, name) == pytest.approx(alone, abs=2e-3), name
    two = read_predictions(run.predictions("test"))
    for column in ("logit", "logit_like", "logit_purchase"):
        np.testing.assert_allclose(two[column], one[column], atol=1e-2)


@pytest.mark.parametrize("sharding", ["column_wise", "table_wise"])
def test_sums_at_the_shard_train_the_same(results: Results, sharding: str) -> None:
    pooled, apart = (RunFolder(results.out / f"{how}_{sharding}") for how in ("pooled", "whole"))
    shardings = {name: table.sharding_type for _, name, table in load_plan(pooled.plan).tables()}
    assert shardings["item"] == sharding
    losses = logged(apart.root, "train", "loss")
    assert logged(pooled.root, "train", "loss") == pytest.approx(losses, abs=1e-4)
    found, wanted = (read_predictions(run.predictions("test"))["logit"] for run in (pooled, apart))
    # The order of sums differs, and a few rows drift apart by it.
    np.testing.assert_allclose(found, wanted, atol=2e-2)
    assert np.abs(found - wanted).mean() < 2e-3


def test_a_checkpoint_of_sums_at_the_shard_evaluates_on_one(
    results: Results, small_data: PreparedData
) -> None:
    run = RunFolder(results.out / "pooled_table_wise")
    on_two = read_predictions(run.predictions("test"))["logit"]
    on_one = predict_run(run.root, small_data, checkpoint="last")["logit"]
    np.testing.assert_allclose(on_one, on_two, atol=1e-5)


def test_managed_rows_are_learned_and_move_with_their_ids(
    results: Results, small_data: PreparedData, tmp_path: Path
) -> None:
    """Each rank gives its rows to its ids; on one rank every id that had a row has it still."""
    out = Path(shutil.copytree(results.out / "managed", tmp_path / "run"))
    run = RunFolder(out)
    last = run.checkpoints().find("last")
    mapping = stored_mapping(StoredTensors(last), "item")
    assert mapping is not None
    assert mapping.segments.tolist() == [0, 50, 100]
    given = mapping.keys != FREE
    assert given[:50].sum() == given[50:].sum() == 49
    losses = list(logged(run.root, "train", "loss").values())
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.01
    config = run.config()
    keys = open_job(config, small_data).items.rows["item"]
    known = np.isin(keys, mapping.keys[given])
    on_two = read_predictions(run.predictions("test"))
    on_one = predict_run(out, small_data)
    off = np.abs(on_one["logit"] - on_two["logit"])
    owned_by_first = mapping.rows_of(keys) < 50  # whose shared row is kept
    exact = (known | owned_by_first)[on_two["item"]]
    assert 0.3 < exact.mean() < 1
    # Histories hold ids of either kind.
    assert np.median(off[exact]) < np.median(off[~exact])
    assert np.corrcoef(on_one["logit"], on_two["logit"])[0, 1] > 0.99
    longer = config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": 3, "early_stop": 0})}
    )
    train_run(longer, small_data, out, plan=planner_of(1, "row_wise"), resume=True)
    after = stored_mapping(StoredTensors(run.checkpoints().find("last")), "item")
    assert after is not None
    assert after.segments.tolist() == [0, 100]
    assert (after.keys != FREE).sum() == 99
    assert np.isin(mapping.keys[given], after.keys).mean() > 0.5


def test_rows_that_travel_in_16_bits_train_as_well(results: Results) -> None:
    halved = logged(results.out / "fp16", "train", "loss")
    whole = logged(results.out / "whole_row_wise", "train", "loss")
    assert halved != whole
    assert halved == pytest.approx(whole, abs=2e-3)


def test_one_process_is_as_good(results: Results, small_data: PreparedData, tmp_path: Path) -> None:
    """In small steps batches differ, and so do models of so little data: by 0.02 AUC, as seen."""
    config = small_config("history.semantics=vectors", "train.epochs=2")
    train_run(config, small_data, tmp_path / "one")
    one = predict_run(tmp_path / "one", small_data, checkpoint="last")
    for sharding in SHARDINGS:
        two = read_predictions(RunFolder(results.out / sharding).predictions("test"))
        aucs = [auc(found["label"], found["logit"]) for found in (one, two)]
        assert aucs[0] == pytest.approx(aucs[1], abs=0.05)
        assert min(aucs) > 0.6


def test_a_rank_without_any_data_ends_cleanly(results: Results) -> None:
    run = RunFolder(results.out / "lonely")
    assert len(run.checkpoints().steps()) == 1
    assert (results.out / "checkpoints_of_lonely").is_dir()  # both ranks wrote to a URL
    assert not (run.root / "checkpoints").exists()
    predictions = read_predictions(run.predictions("test"))
    assert len(predictions["label"]) == results.lonely.manifest.splits["test"].candidates
