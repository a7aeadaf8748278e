"""Checkpoints at a URL: written, found, resumed, and never half there."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torch.distributed.checkpoint import FileSystemWriter
from training import logged, predict_run, small_config, train_run
from upath import UPath

from hisac_rec.checkpoints.location import is_remote, locate
from hisac_rec.checkpoints.manifest import MANIFEST
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.train.run import RunFolder

CONFIG = ("train.checkpoint_every=10", "train.keep_checkpoints=2")


@pytest.fixture
def memory() -> Iterator[str]:
    """An object store in this process."""
    yield "memory://bucket/runs/x"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs.clear()


def through_a_store(url: str, data: PreparedData, out: Path) -> None:
    """Train, evaluate, lose the machine, go on elsewhere."""
    config = small_config(*CONFIG)
    local = train_run(config, data, out / "local")
    assert train_run(config, data, out / "run", checkpoints=url, resume=True) == local
    run = RunFolder(out / "run")
    steps = run.checkpoints().steps()
    assert steps == RunFolder(out / "local").checkpoints().steps()
    assert not (out / "run" / "checkpoints").exists()
    assert str(run.checkpoints().find("best")).startswith(url)
    there, here = (predict_run(out / how, data)["logit"] for how in ("run", "local"))
    assert (there == here).all()
    longer = small_config(*CONFIG, "train.epochs=2")
    shutil.rmtree(out / "run")
    with pytest.raises(UserError, match="holds checkpoints already; choose another place"):
        train_run(longer, data, out / "run", checkpoints=url)
    train_run(longer, data, out / "run", checkpoints=url, resume=True)
    assert min(logged(out / "run", "train", "loss")) == steps[-1] + 1
    assert run.checkpoints().steps()[-1] > steps[-1]
    kept = {path.name for path in locate(url).iterdir()}
    assert kept == {run.checkpoints().path(step).name for step in run.checkpoints().steps()}


def test_a_run_with_its_checkpoints_at_a_url(
    small_data: PreparedData, tmp_path: Path, memory: str
) -> None:
    through_a_store(memory, small_data, tmp_path)


def test_what_was_not_finished_does_not_count(
    small_data: PreparedData, tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is renamed there: the manifest, written last, is what counts."""
    finish = FileSystemWriter.finish

    def cut(writer: Any, *arguments: Any, **named: Any) -> None:
        finish(writer, *arguments, **named)
        if "00000020" in str(writer.path):
            raise OSError("connection reset by peer")

    monkeypatch.setattr(FileSystemWriter, "finish", cut)
    with pytest.raises(UserError, match=r"step-00000020: the checkpoint could not be written"):
        train_run(small_config(*CONFIG), small_data, tmp_path / "run", checkpoints=memory)
    checkpoints = RunFolder(tmp_path / "run").checkpoints()
    assert any((checkpoints.folder / "step-00000020").iterdir())
    assert checkpoints.steps() == [10]
    assert checkpoints.find("last").name == "step-00000010"
    monkeypatch.undo()
    train_run(small_config(*CONFIG), small_data, tmp_path / "run", resume=True)
    assert (checkpoints.folder / "step-00000020" / MANIFEST).exists()


def test_a_damaged_object_is_named(small_data: PreparedData, tmp_path: Path, memory: str) -> None:
    train_run(small_config(), small_data, tmp_path / "run", checkpoints=memory)
    path = RunFolder(tmp_path / "run").checkpoints().find("last")
    (damaged,) = path.glob("*.distcp")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"\.distcp is not what was written"):
        predict_run(tmp_path / "run", small_data)


def test_places(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path
    assert not is_remote(locate(str(tmp_path)))
    assert is_remote(locate("memory://bucket/x"))
    with pytest.raises(UserError, match=r"nowhere://x: .*pip install s3fs for s3://"):
        locate("nowhere://x")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server that speaks S3, a process of its own."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (pip install s3fs)")
    pytest.importorskip("moto", reason="moto is not installed (pip install 'moto[server]')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        # What a user's own set-up of s3fs says; none of it is ours.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        UPath("s3://bucket").fs.mkdir("bucket")
        yield "s3://bucket/runs/x"
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.slow
def test_a_server_that_speaks_s3(small_data: PreparedData, tmp_path: Path, s3: str) -> None:
    through_a_store(s3, small_data, tmp_path)
