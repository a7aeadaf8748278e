"""Fixtures that every test may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Triton asks when it is first imported, which torchrec does: without a GPU its kernels are
# interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from hisac_rec.data.contract import PreparedData

# Small tensors on a busy machine: threads that wait for each other cost more than they bring.
torch.set_num_threads(1)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def no_loader_is_left() -> Iterator[None]:
    """The test that leaves a thread reading is the one that fails, not one after it."""
    yield
    left = [thread for thread in threading.enumerate() if thread.name == "loader"]
    assert not left, f"threads of loaders still run: {left}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data not found: {SHARED_DATA.name} folder beside the checkout is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """200 synthetic users with 20 to 120 events, semantic ids of 4 x 6 codes. Read only."""
    from hisac_rec.preparation.definition import DatasetDefinition
    from hisac_rec.preparation.prepare import prepare
    from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config

    synthetic = {
        "users": 200,
        "items": 150,
        "branches": [4, 6],
        "length_min": 20,
        "length_median": 40,
        "length_max": 120,
        "content_dim": 8,
    }
    codes = {"source": "content", "codes": [4, 6]}
    definition = DatasetDefinition.model_validate(
        {"name": "small", "synthetic": synthetic, "semantic_ids": codes}
    )
    data = prepare(definition, tmp_path_factory.mktemp("small") / "data")
    fit_semantic_ids(data, resolve_config(data))
    return data
