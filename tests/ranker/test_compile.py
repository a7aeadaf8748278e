"""``train.compile``: the same numbers, and a clear word where there is no compiler."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from training import predict_run, small_config, train_run

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.ranker.build import build_ranker
from hisac_rec.train.job import open_job


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(small_data: PreparedData, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler 'c++' on this machine")
    logits = {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        train_run(small_config(f"train.compile={compiled}"), small_data, run)
        logits[compiled] = predict_run(run, small_data)["logit"]
    np.testing.assert_allclose(logits["true"], logits["false"], atol=1e-4)


def test_without_a_compiler_it_is_refused(
    small_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    job = open_job(small_config("train.compile=true"), small_data)
    with pytest.raises(UserError, match="no C\\+\\+ compiler 'no-such-compiler'"):
        build_ranker(job.config, job.schema, "meta")
