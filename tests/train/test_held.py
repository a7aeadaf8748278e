"""Planned and actual bytes of weights and optimiser state, rank by rank, over gloo."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from training import one_process, planner_of, small_config, torchrun

from hisac_rec.data.contract import PreparedData
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.kernels import compare_with_plan, held_bytes


@pytest.fixture(scope="module")
def ranks(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The one launch of ``held.py``."""
    out = tmp_path_factory.mktemp("held")
    torchrun(Path(__file__).with_name("held.py"), small_data.root, out)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.distributed
def test_ranks_hold_what_is_planned(ranks: list[dict]) -> None:
    names = ranks[0]["held"].keys()
    for sharding in ("row_wise", "column_wise", "table_wise"):
        assert sum(name.endswith(sharding) for name in names) >= 4
    for name in names:
        both = [rank["held"][name] for rank in ranks]
        assert sum(held for _, held in both) > 0
        for planned, held in both:
            assert held == pytest.approx(planned, rel=0.05), name


@pytest.mark.distributed
def test_ranks_of_unequal_memory_train_the_same(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["less"] == pytest.approx(rank["alike"], abs=1e-6)


def test_a_model_that_holds_other_than_planned_is_told(
    small_data: PreparedData, caplog: pytest.LogCaptureFixture
) -> None:
    with one_process() as ranks, caplog.at_level(logging.INFO, "hisac_rec"):
        job = open_job(small_config(), small_data)
        plan = resolve_plan(job, ranks, planner_of(1, "row_wise"))
        model = shard(job, plan, ranks)
        assert "tables and their optimiser state: " in caplog.text
        assert "where the plan says" not in caplog.text
        assert held_bytes(model) > 0
        sgd = open_job(small_config("train.sparse_optimizer=adagrad"), small_data)
        (off,) = compare_with_plan(
            resolve_plan(sgd, ranks, planner_of(1, "row_wise")), model, ranks
        )
    assert off < -0.3
    assert "rank 0 holds" in caplog.text
