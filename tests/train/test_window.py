"""What a log line says: sums over steps, the share of rows touched, the dense gradient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from builders import write_prepared
from training import logged, one_process, small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.inputs import InputConfig, build_input_spec
from hisac_rec.data.items import load_items
from hisac_rec.data.loader import LoaderConfig, RequestBatches
from hisac_rec.train import coverage
from hisac_rec.train.coverage import Coverage
from hisac_rec.train.job import open_job

KEYS = ("user", "item")


@pytest.mark.parametrize("sample", [1 << 16, 7])
def test_the_share_of_rows_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    """Exact for small tables; of large ones, that of the rows that are watched."""
    monkeypatch.setattr(coverage, "SAMPLE", sample)
    data = write_prepared(tmp_path)
    spec = build_input_spec(InputConfig(candidate=["id"], history=["id"]), data.manifest, ())
    items = load_items(data, spec, None)
    batches = list(RequestBatches(data, "train", spec, items, LoaderConfig(max_candidates=20)))
    counted = Coverage(spec)
    touched: dict[str, set[int]] = {table: set() for table in spec.tables()}
    with one_process():
        assert set(counted.shares().values()) == {0.0}
        for batch in batches[:2]:
            counted.note(batch)
            for lookup in spec.lookups:
                touched[lookup.table] |= set(batch.features[lookup.key].values().tolist())
        found = counted.shares()
        counted.clear()
        assert set(counted.shares().values()) == {0.0}
    for table, lookups in spec.tables().items():
        watched = range(0, lookups[0].rows, -(-lookups[0].rows // sample))
        expected = len(touched[table] & set(watched)) / len(watched)
        assert found[table] == pytest.approx(expected)
    assert 0 < found["item"] <= 1


def test_a_log_line(small_data: PreparedData, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = small_config("train.log_every=2", "train.epochs=2")
    train_run(config, small_data, out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["group"] == "train"]
    job = open_job(config, small_data)
    tables = {f"coverage/{table}" for table in job.spec.tables()}
    for line in train:
        assert tables <= line.keys()
        assert 0 < line["gradient_norm"] <= line["gradient_norm_max"] < 100
        assert 0 <= line["data_wait_share"] <= line["data_wait_share_max"] <= 1
        assert line["work_imbalance"] == 1.0  # one rank
        assert 0.1 < line["memory_gib"] < 100
    # Rows only become more within an epoch, and the next begins with none.
    shares = np.array([line["coverage/user"] for line in train])
    falls = np.flatnonzero(np.diff(shares) < 0)
    assert len(falls) == 1
    assert shares[-1] == shares[falls[0]]  # the same requests, the same rows


def test_the_gradient_is_measured_whether_it_is_cut_or_not(
    small_data: PreparedData, tmp_path: Path
) -> None:
    norms, losses = [], []
    for cut in (0.0, 1e6, 1e-3):
        out = tmp_path / str(cut)
        train_run(small_config(f"train.clip_norm={cut}"), small_data, out)
        norms.append(logged(out, "train", "gradient_norm"))
        losses.append(logged(out, "train", "loss"))
    assert norms[0] == norms[1]
    assert losses[0] == losses[1]
    first = min(norms[0])
    assert norms[2][first] == norms[0][first]  # before it is cut
    assert losses[2] != losses[0]
