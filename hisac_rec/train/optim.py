"""Optimisers: a fused sparse one inside the backward pass, Adam for the dense part."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.optim import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import SGD, Adagrad, in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from hisac_rec.train.config import TrainConfig

_SPARSE: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": Adagrad,
    "sgd": SGD,
}

LONGEST_WARM_UP = 100
"""Steps of the warm-up where none are asked for."""

WARM_UP_SHARE = 0.1
"""And the most of a training that it may take."""


def attach_sparse_optimizer(tables: nn.Module, config: TrainConfig, candidates: float) -> None:
    """Fuse the sparse optimiser into the backward pass of trained tables.

    Args:
        tables: an embedding collection.
        config: rates and decay.
        candidates: of a mean step over all ranks: the gradient that one candidate gives a row is
            in proportion to 1 / candidates, and so is what ``sparse_caution`` is measured by.
    """
    options: dict[str, Any] = {"lr": config.sparse_lr}
    if config.sparse_caution and config.sparse_optimizer != "sgd":
        options["eps"] = config.sparse_caution / max(1.0, candidates)
    if config.sparse_weight_decay:
        options["weight_decay"] = config.sparse_weight_decay
    apply_optimizer_in_backward(
        _SPARSE[config.sparse_optimizer], list(tables.parameters()), options
    )


class Optimizers:
    """Both optimisers of a sharded model, their schedule and their states.

    Args:
        model: the sharded model.
        config: rates, clipping, decay.
    """

    def __init__(self, model: DistributedModelParallel, config: TrainConfig) -> None:
        self._config = config
        self.factor = 1.0
        dense = dict(in_backward_optimizer_filter(model.named_parameters()))
        self.dense: KeyedOptimizer = KeyedOptimizerWrapper(
            dense,
            # Fused: a ranker has many small parameters, and one loop over all of them.
            lambda parameters: torch.optim.AdamW(
                parameters,
                lr=config.dense_lr,
                weight_decay=config.dense_weight_decay,
                fused=True,
            ),
        )
        # The state is lazy in torch; a checkpoint can only be loaded into one that exists.
        # Zero gradients at rate zero leave the weights as they are.
        self._set_rate(self.dense, 0.0)
        self.dense.init_state()
        for state in self.dense.state.values():
            state["step"].zero_()
        self.dense.zero_grad(set_to_none=True)
        self.sparse: KeyedOptimizer = model.fused_optimizer
        self._no_gradient = torch.zeros((), device=next(iter(dense.values())).device)
        # Cut to infinity it is only measured.
        self._clipped = GradientClippingOptimizer(
            self.dense,
            clipping=GradientClipping.NORM,
            max_gradient=config.clip_norm or math.inf,
        )
        self.combined = CombinedOptimizer([("dense", self._clipped), ("sparse", self.sparse)])
        self.set_progress(0, 0.0)

    def set_progress(self, step: int, progress: float) -> None:
        """Set both learning rates for step ``step`` (from 0) at ``progress`` (0 to 1)."""
        self.factor = learning_rate_factor(step, progress, self._config)
        self._set_rate(self.dense, self.factor * self._config.dense_lr)
        self._set_rate(self.sparse, self.factor * self._config.sparse_lr)

    @property
    def gradient_norm(self) -> Tensor:
        """[] of the dense parameters at the last step, before it was cut; on the device."""
        norm = self._clipped.last_total_grad_norm
        return self._no_gradient if norm is None else norm.detach()

    def state(self) -> dict[str, Any]:
        """Tensors of both states, by parameter name; loading writes into them in place.

        A frozen table has no state: left in, its empty entry would be known to the ranks that
        hold the table alone, and a checkpoint keeps entries without tensors of rank 0 only.
        """
        sparse = self.sparse.state_dict()["state"]
        return {
            "dense": self.dense.state_dict()["state"],
            "sparse": {name: state for name, state in sparse.items() if state},
        }

    @staticmethod
    def _set_rate(optimizer: KeyedOptimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate


def learning_rate_factor(step: int, progress: float, config: TrainConfig) -> float:
    """Share of the peak rates: linear warm-up, times decay over progress.

    Progress is counted in candidates, so it is exact however batches are cut.
    """
    warm = _warm_up(step, progress, config.warmup_steps)
    if config.decay == "none":
        return warm
    done = min(1.0, progress)
    if config.decay == "cosine":
        done = 0.5 - 0.5 * math.cos(math.pi * done)
    return warm * (1.0 - (1.0 - config.final_lr) * done)


def _warm_up(step: int, progress: float, steps: int | None) -> float:
    if steps is None:
        return min(1.0, max((step + 1) / LONGEST_WARM_UP, progress / WARM_UP_SHARE))
    return min(1.0, (step + 1) / steps) if steps else 1.0
