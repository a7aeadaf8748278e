"""An exported model in an environment that holds what serving needs and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_model_is_served_without_the_training_stack(served: Any, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    installer = [python, ROOT / "requirements" / "install.py", "serving", "--device", "cpu"]
    subprocess.run(installer, check=True)
    served.store(tmp_path / "store").close()
    user, time, items, expected = served.last_requests(1)[0]
    model, store = str(served.root / "model"), str(tmp_path / "store")
    program = f"""
import importlib.util, json
from pathlib import Path
from hisac_rec.scorer import LmdbStore, Scorer
scorer = Scorer.load(Path({model!r}), LmdbStore(Path({store!r}), read_only=True))
print(json.dumps({{
    "off": scorer.artefact.self_test(),
    "scores": scorer.score({user!r}, {items!r}, time={time}).tolist(),
    "training": [n for n in ("torchrec", "fbgemm_gpu", "duckdb") if importlib.util.find_spec(n)],
}}))
"""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=clean,
        cwd=tmp_path,
    )
    found = json.loads(done.stdout)
    assert found["training"] == []
    assert found["off"] <= 1e-5
    np.testing.assert_allclose(found["scores"], expected, atol=1e-6)
    helped = [venv / "bin" / "hisac-rec", "serve", "--help"]
    subprocess.run(helped, check=True, capture_output=True, env=clean, cwd=tmp_path)
