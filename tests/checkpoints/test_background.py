"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import shutil
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from training import logged, one_process, predict_run, small_config, torchrun, train_run

from hisac_rec.checkpoints.restore import flat_state
from hisac_rec.checkpoints.saving import MANIFEST, Checkpoints
from hisac_rec.checkpoints.staging import Staging
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.run import RunFolder
from hisac_rec.train.trainer import Trainer


class Gate:
    """Holds every writing of tensors back until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        write = FileSystemWriter.write_data

        def held(writer: Any, *arguments: Any) -> Any:
            self.reached.set()
            assert self.open.wait(60)
            return write(writer, *arguments)

        patch.setattr(FileSystemWriter, "write_data", held)


def at_step(patch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Do something right after a step was counted."""
    count = Trainer._count

    def counted(self: Trainer, *arguments: Any) -> None:
        count(self, *arguments)
        if self.position.step == step:
            action(self)

    patch.setattr(Trainer, "_count", counted)


def test_what_is_written_is_the_state_at_the_step(
    small_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps are trained while the checkpoint of step 5 waits to be written."""
    config = small_config("train.checkpoint_every=5", "train.keep_checkpoints=9")
    train_run(
        config.model_copy(
            update={"train": config.train.model_copy(update={"checkpoint_async": False})}
        ),
        small_data,
        tmp_path / "waits",
    )
    seen: list[int] = []
    with monkeypatch.context() as patch:
        gate = Gate(patch)
        checkpoints = RunFolder(tmp_path / "goes_on").checkpoints()

        def open_gate(trainer: Trainer) -> None:
            assert gate.reached.wait(60)
            seen.extend(checkpoints.steps())
            assert list(checkpoints.folder.glob(".step-00000005.partial"))
            gate.open.set()

        at_step(patch, 9, open_gate)
        train_run(config, small_data, tmp_path / "goes_on")
    assert seen == []
    one, other = (
        predict_run(tmp_path / how, small_data, checkpoint="5")["logit"]
        for how in ("waits", "goes_on")
    )
    assert (one == other).all()
    five, ten = (checkpoint_tensors(tmp_path / "goes_on", small_data, step) for step in ("5", "10"))
    again = checkpoint_tensors(tmp_path / "waits", small_data, "5")
    assert five.keys() == again.keys()
    assert all(torch.equal(five[key], again[key]) for key in five)
    assert any(not torch.equal(five[key], ten[key]) for key in five)


def checkpoint_tensors(out: Path, data: PreparedData, step: str) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, whole."""
    path = RunFolder(out).checkpoints().find(step)
    stored = dcp.FileSystemReader(str(path)).read_metadata().state_dict_metadata
    found = {key: torch.empty(one.size, dtype=one.properties.dtype) for key, one in stored.items()}
    dcp.load(found, checkpoint_id=str(path), no_dist=True)
    return found


def test_one_at_a_time(
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next checkpoint waits for the one before, says so, and none is lost."""
    gate = Gate(monkeypatch)
    wait = Checkpoints.wait

    def waited(self: Checkpoints) -> None:
        if self._writing is not None:
            threading.Timer(0.2, gate.open.set).start()
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", waited)
    config = small_config("train.checkpoint_every=5", "train.keep_checkpoints=9")
    with caplog.at_level("INFO"):
        train_run(config, small_data, tmp_path / "run")
    assert "waiting for the checkpoint of step 5 to be written" in caplog.text
    steps = RunFolder(tmp_path / "run").checkpoints().steps()
    assert steps[:4] == [5, 10, 15, 20]


def test_a_failed_checkpoint_stops_the_training(
    small_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next step; the one before is kept and nothing of the failed one counts."""
    config = small_config("train.checkpoint_every=5", "train.keep_checkpoints=9")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    write = FileSystemWriter.write_data

    def once(writer: Any, *arguments: Any) -> Any:
        return full() if "00000010" in str(writer.path) else write(writer, *arguments)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", once)
        at_step(patch, 12, lambda trainer: trainer.checkpoints._writing[1].exception())
        message = r"step-00000010: the checkpoint could not be written: .*No space left on device"
        with pytest.raises(UserError, match=message):
            train_run(config, small_data, out)
    assert max(logged(out, "train", "loss")) <= 12
    assert RunFolder(out).checkpoints().steps() == [5]
    train_run(config, small_data, out, resume=True)
    assert RunFolder(out).checkpoints().steps()[:2] == [5, 10]
    assert not list(out.rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_cannot_write_stops_all(small_data: PreparedData, tmp_path: Path) -> None:
    """Two ranks go on while one of them is writing; where it fails, none waits for ever."""
    out = tmp_path / "run"
    torchrun(Path(__file__).with_name("unable_to_write.py"), small_data.root, out)
    errors = [path.read_text() for path in out.glob("error-*.txt")]
    assert errors
    for error in errors:
        assert "step-00000010: the checkpoint could not be written" in error
        assert "No space left on device" in error
    assert len(errors) + len(list(out.glob("left-*.txt"))) == 2
    assert RunFolder(out).checkpoints().steps() == [5]


def test_a_rank_that_is_gone_is_not_waited_for(
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its part never comes; the training ends with what it met first."""

    def lost(trainer: Trainer) -> None:
        raise RuntimeError("Connection closed by peer")

    gate = Gate(monkeypatch)
    monkeypatch.setattr("hisac_rec.checkpoints.saving.LINGER", timedelta(seconds=0.2))
    at_step(monkeypatch, 7, lost)
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        train_run(small_config("train.checkpoint_every=5"), small_data, tmp_path / "run")
    assert "is left unfinished: no word of a rank" in caplog.text
    assert RunFolder(tmp_path / "run").checkpoints().steps() == []
    gate.open.set()


def test_an_exception_waits_for_the_checkpoint(
    small_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    def stop(trainer: Trainer) -> None:
        threading.Timer(0.3, gate.open.set).start()
        raise StopError

    gate = Gate(monkeypatch)
    at_step(monkeypatch, 7, stop)
    with pytest.raises(StopError):
        train_run(small_config("train.checkpoint_every=5"), small_data, tmp_path / "run")
    assert RunFolder(tmp_path / "run").checkpoints().steps() == [5]


def test_without_memory_for_a_copy_training_waits(
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("hisac_rec.checkpoints.staging.SPARE", 1e9)
    config = small_config("train.checkpoint_every=20")
    with caplog.at_level("WARNING"):
        train_run(config, small_data, tmp_path / "run")
    assert "step 20: no memory for a copy of the state, training waits" in caplog.text
    assert RunFolder(tmp_path / "run").checkpoints().steps()[0] == 20


def test_buffers_are_used_again(small_data: PreparedData) -> None:
    with one_process() as ranks:
        job = open_job(small_config(), small_data)
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        state = flat_state(model, Optimizers(model, job.config.train))
        staging = Staging()
        first = staging.copy(state)
        buffers = {name: buffer.data_ptr() for name, buffer in staging._buffers.items()}
        second = staging.copy(state)
    assert first.keys() == second.keys() == state.keys()
    assert buffers == {name: buffer.data_ptr() for name, buffer in staging._buffers.items()}
    assert len(buffers) == len(state)  # every tensor has been copied


def test_a_checkpoint_folder_removed_under_the_run(
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Training goes on with new ones, and says what is gone."""
    out = tmp_path / "run"

    def remove(trainer: Trainer) -> None:
        trainer.checkpoints.wait()
        shutil.rmtree(out / "checkpoints")

    at_step(monkeypatch, 12, remove)
    config = small_config("train.checkpoint_every=5", "train.keep_checkpoints=9")
    with caplog.at_level("WARNING"):
        train_run(config, small_data, out)
    run = RunFolder(out)
    assert "the checkpoints of steps 5, 10 are no longer there" in caplog.text
    assert run.checkpoints().steps()[:2] == [15, 20]
    assert (run.checkpoints().find("last") / MANIFEST).is_file()
    predict_run(out, small_data)
