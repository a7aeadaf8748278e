"""What a run says of itself afterwards, and while it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from training import small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.heartbeat import Heartbeat, Heartbeats
from hisac_rec.train.run import RunFolder
from hisac_rec.train.trainer import Trainer


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def test_a_finished_run(
    small_data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    best = train_run(small_config(), small_data, out)
    found = summary_of(out)
    assert (found["outcome"], found["error"]) == ("finished", "")
    assert found["progress"]["best"] == best
    assert found["progress"]["epoch"] == 1.0
    assert found["progress"]["candidates"] == small_data.manifest.splits["train"].candidates
    assert found["last_checkpoint"] == str(RunFolder(out).checkpoints().find("last"))
    (start,) = found["starts"]
    assert start["ended"] - start["started"] == found["seconds"] > 0
    assert start["step"] == found["progress"]["step"] > 10
    RunFolder(out).story().print()
    said = capsys.readouterr().out
    for expected in ("finished", "1.00 epochs", f"{best['auc']:.4f}", "last checkpoint"):
        assert expected in said
    beat = json.loads((out / "heartbeat.json").read_text())
    assert beat["step"] == start["step"]
    (rank,) = beat["ranks"]
    assert (rank["state"], rank["pid"], rank["error"]) == ("finished", os.getpid(), "")


def test_a_run_that_stopped_early(small_data: PreparedData, tmp_path: Path) -> None:
    still = ("train.dense_lr=1e-30", "train.sparse_lr=1e-30", "train.epochs=9")
    train_run(small_config(*still, "train.early_stop=1"), small_data, tmp_path / "run")
    assert summary_of(tmp_path / "run")["outcome"] == "stopped early"


def test_a_run_that_failed(small_data: PreparedData, tmp_path: Path) -> None:
    config = small_config("train.dense_lr=1e30", "train.clip_norm=0")
    with pytest.raises(UserError):
        train_run(config, small_data, tmp_path / "run")
    found = summary_of(tmp_path / "run")
    assert found["outcome"] == "failed"
    assert found["error"].startswith("the loss is not finite at step")
    (rank,) = json.loads((tmp_path / "run" / "heartbeat.json").read_text())["ranks"]
    assert rank["state"] == "failed"
    assert "hisac_rec/" in rank["at"]


def test_a_run_that_died_is_noted_by_the_next_start(
    small_data: PreparedData, tmp_path: Path
) -> None:
    """Killed with all its ranks, it could say nothing: files are as a kill leaves them."""
    out = tmp_path / "run"
    config = small_config()
    train_run(config, small_data, out)
    found = summary_of(out)
    found["starts"][0] |= {"outcome": "running", "ended": None, "started": 1000.0}
    (out / "summary.json").write_text(json.dumps(found | {"outcome": "running"}))
    together = json.loads((out / "heartbeat.json").read_text()) | {"step": 17, "time": 1042.0}
    (out / "heartbeat.json").write_text(json.dumps(together))
    train_run(config, small_data, out, resume=True)
    died, last = summary_of(out)["starts"]
    assert (died["outcome"], died["step"], died["ended"]) == ("died", 17, 1042.0)
    assert last["outcome"] == "finished"
    assert last["resumed_from"] == found["progress"]["step"]
    assert summary_of(out)["resumes"] == 1


def test_a_refused_start_leaves_the_summary_as_it_was(
    small_data: PreparedData, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train_run(small_config(), small_data, out)
    before = (out / "summary.json").read_text()
    with pytest.raises(UserError, match="holds a run already"):
        train_run(small_config(), small_data, out)
    with pytest.raises(UserError, match="no such plan"):
        train_run(small_config(), small_data, out, resume=True, plan=tmp_path / "nowhere")
    assert (out / "summary.json").read_text() == before


def test_heartbeats_of_more_ranks_are_dropped(tmp_path: Path) -> None:
    four = Heartbeats(tmp_path, 4)
    for rank in range(4):
        four.write(Heartbeat(rank=rank, host="here", pid=1, since=1.0, time=2.0))
    (tmp_path / "heartbeat" / "rank-00001.json").write_text("cut sho")
    assert sorted(four.read()) == [0, 2, 3]
    two = Heartbeats(tmp_path, 2)
    two.drop_others()
    assert sorted(four.read()) == [0]


def test_training_goes_on_where_heartbeats_cannot_be_written(
    small_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is where their folder should be."""
    out = tmp_path / "run"
    count = Trainer._count

    def block(self: Trainer, *arguments: Any) -> None:
        count(self, *arguments)
        if self.position.step == 1:
            for path in (out / "heartbeat").glob("*"):
                path.unlink()
            (out / "heartbeat").rmdir()
            (out / "heartbeat").write_text("")

    monkeypatch.setattr(Trainer, "_count", block)
    train_run(small_config(), small_data, out)
    assert summary_of(out)["outcome"] == "finished"
