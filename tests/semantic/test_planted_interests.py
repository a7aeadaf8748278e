"""The shipped synthetic data: do its shipped codes find the interests planted in it?"""

from __future__ import annotations

import numpy as np
import torch

from hisac_rec.config import read_toml
from hisac_rec.preparation.synthetic import SyntheticSource
from hisac_rec.preparation.synthetic_config import SyntheticConfig
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.fit import make_quantiser
from hisac_rec.semantic.store import prefix_ids
from hisac_rec.shipped import find_config


def pairs(groups: np.ndarray) -> float:
    _, sizes = np.unique(groups, return_counts=True, axis=-1)
    return float((sizes * (sizes - 1) / 2).sum())


def test_items_on_one_path_are_of_one_interest() -> None:
    definition = read_toml(find_config("datasets", "synthetic"))
    source = SyntheticSource(SyntheticConfig(**definition["synthetic"]))
    config = SemanticIdConfig(**definition["semantic_ids"])
    vectors = torch.nn.functional.normalize(torch.from_numpy(source.content[1:]))
    quantiser = make_quantiser(config)
    quantiser.fit(vectors)
    codes, leaf = quantiser.encode(vectors).numpy(), source.leaf[1:]

    branch = np.stack([leaf // source.config.branches[-1], codes[:, 0]])
    assert pairs(branch) / pairs(branch[0]) > 0.95  # the top level is the branches
    assert pairs(branch) / pairs(branch[1]) > 0.95
    path = np.stack([leaf, prefix_ids(codes, config.codes)[:, -1]])
    assert pairs(path) / pairs(path[1]) > 0.9
    assert pairs(path) / pairs(path[0]) > 0.9
