"""The GPU benchmark is rehearsed on a CPU, so that it runs where a GPU is lent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


def test_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "TURNS", 1)
    path = tmp_path / "rows.json"
    shape = ["--requests", "2", "--events", "80", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["gpu", *shape, "--json", str(path)])
    gpu.main()
    rows = json.loads(path.read_text())
    assert rows["device"] == "CPU: a rehearsal"
    assert len(rows) == 16
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_says_what_to_do_without_a_gpu() -> None:
    words = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "make bench" in done.stderr


def test_needs_neither_fbgemm_nor_torchrec() -> None:
    """It is carried to machines that have torch and Triton alone."""
    absent = "import sys; sys.modules.update(dict.fromkeys(('torchrec', 'fbgemm_gpu', 'pydantic')))"
    words = [sys.executable, "-c", f"{absent}; import benchmarks.gpu"]
    subprocess.run(words, cwd=ROOT, check=True)
