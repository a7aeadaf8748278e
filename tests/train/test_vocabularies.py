"""Open vocabularies in a whole training: tables of few rows, pooled or not, started from others."""

from __future__ import annotations

from pathlib import Path

import pytest
from training import logged, predict_run, small_config, train_run

from hisac_rec.checkpoints.warm_start import WarmStart
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import auc
from hisac_rec.planning.plan_io import load_plan
from hisac_rec.train.run import RunFolder

HASHED = (
    'tables.vocabulary.item={kind="hashed",rows=40,hashes=2}',
    'tables.vocabulary.user={kind="hashed",rows=100}',
)


def test_fewer_rows_learn(small_data: PreparedData, tmp_path: Path) -> None:
    """Trained, planned, evaluated and started from; what another vocabulary has is not kept."""
    out = tmp_path / "hashed"
    train_run(small_config(*HASHED, "train.epochs=2"), small_data, out)
    tables = {name: table for _, name, table in load_plan(RunFolder(out).plan).tables()}
    assert (tables["item"].rows, tables["user"].rows) == (40, 100)
    assert max(logged(out, "train", "coverage/item").values()) > 0.9
    found = predict_run(out, small_data)
    assert auc(found["label"], found["score"]) > 0.55
    same = WarmStart(out)
    train_run(small_config(*HASHED), small_data, tmp_path / "same", warm=same)
    lines = (tmp_path / "same" / "warm_start.md").read_text()
    assert "| item | 40 | 40 | 40 | 0 | 0 | the same hashes of raw ids |" in lines
    other = (*HASHED[1:], 'tables.vocabulary.item={kind="hashed",rows=41}')
    train_run(small_config(*other), small_data, tmp_path / "other", warm=same)
    lines = (tmp_path / "other" / "warm_start.md").read_text()
    assert "another vocabulary: hashed (40 rows, 2 hashes) there, hashed (41 rows) here" in lines


def test_a_run_goes_on_with_its_own_vocabulary_alone(
    small_data: PreparedData, tmp_path: Path
) -> None:
    train_run(small_config(*HASHED), small_data, tmp_path / "run")
    other = small_config(*HASHED, "tables.vocabulary.item.rows=41", "train.epochs=2")
    with pytest.raises(UserError, match=r"vocabulary.item.rows = 40 there, 41"):
        train_run(other, small_data, tmp_path / "run", resume=True)
