"""Every model that is shipped trains: pipelined on one rank, in step on two."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from every_model import FEW_STEPS, every_model, shipped_model
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardedModule
from training import logged, one_process, torchrun

from hisac_rec.data.contract import PreparedData
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, steps

MODELS = every_model()
STEPS = 3


@pytest.mark.parametrize("name", MODELS)
def test_trains_pipelined(small_data: PreparedData, name: str) -> None:
    job = open_job(shipped_model(name, FEW_STEPS), small_data)
    torch.manual_seed(0)
    with one_process() as ranks:
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        optimizers = Optimizers(model, job.config.train)
        before = method_weights(model)
        pipeline = make_pipeline(model, optimizers, ranks)
        first = islice(steps(pipeline, Batches(job, ranks).train(0)), STEPS)
        losses = [float(loss) for _, loss, _ in first]
        sharded = [module for module in model.modules() if isinstance(module, ShardedModule)]
        assert len(pipeline._pipelined_modules) == len(sharded) > 0
        after = method_weights(model)
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert all(weights.isfinite().all() for weights in after.values())
    # A method without a single weight that moves does not take part in the model.
    assert not after or any(not torch.equal(before[key], after[key]) for key in after)


def method_weights(model: DistributedModelParallel) -> dict[str, Tensor]:
    """Copies of the history method's trained parameters."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if ".method." in name
    }


@pytest.fixture(scope="module")
def two_ranks(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one launch of ``every_model.py``: a run folder for each model, or its error."""
    out = tmp_path_factory.mktemp("every_model")
    torchrun(Path(__file__).parents[1] / "every_model.py", small_data.root, out)
    return out


@pytest.mark.distributed
@pytest.mark.parametrize("name", MODELS)
def test_trains_and_evaluates_on_two_ranks(two_ranks: Path, name: str) -> None:
    errors = [file.read_text() for file in two_ranks.glob(f"{name}.?.error")]
    assert not errors, errors[0]
    losses = list(logged(two_ranks / name, "train", "loss").values())
    assert len(losses) >= STEPS
    assert np.isfinite(losses).all()
    seen = logged(two_ranks / name, "valid", "auc").values()
    assert len(seen) > 1  # also in the midst of the epoch
    assert all(0.3 < auc < 0.9 for auc in seen)
