"""Tiny searches: real training on the small data set, a second a trial."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = """\
name = "{name}"

[tables]
dim = 8
init_scale = 0.1

[history]
{history}

[ranker]
over_layers = [16]
dense_layers = [8]
dropout = 0.0

[loader]
batch_tokens = 60000
max_candidates = 4000

[train]
metric = "auc"
evaluations = 1
sparse_caution = 0
unknown_rate = 0
epochs = 1
warmup_steps = 2
sparse_lr = 0.3
dense_lr = 0.003
"""

METHODS = {
    "small_hisac": 'method = "hisac"\nkeep = [3, 2]',
    "small_recent": 'method = "recent"\nevents = 7',
    "small_none": 'method = "none"',
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files of a few weights. Read only."""
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.toml" for name in METHODS}
    for name, path in paths.items():
        path.write_text(TINY.format(name=name, history=METHODS[name]))
    return paths
