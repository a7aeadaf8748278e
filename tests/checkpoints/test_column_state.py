"""Optimiser state across changes of column sharding; every other change: test_matrix.py."""

from __future__ import annotations

from pathlib import Path

import torch
from training import planner_of, small_config, train_run

from hisac_rec.checkpoints.column_state import column_shares
from hisac_rec.data.contract import PreparedData


def test_shares_of_columns() -> None:
    whole, halves = [(0, 8)], [(0, 4), (4, 4)]
    thirds = [(0, 2), (2, 3), (5, 3)]
    assert column_shares(whole, halves).tolist() == [[1.0], [1.0]]
    assert column_shares(halves, whole).tolist() == [[0.5, 0.5]]
    expected = [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]
    torch.testing.assert_close(column_shares(thirds, halves), torch.tensor(expected))
    assert column_shares(thirds, thirds).tolist() == torch.eye(3).tolist()


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
