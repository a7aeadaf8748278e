"""A model with a trained and a frozen embedding collection, and two steps of its training.

Imported by the fixtures here; run as a script under torchrun it shards by a saved plan,
trains and writes what it saw to ``<out>`` from rank 0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ROWS = {"item": 101, "category": 7, "user": 13}
FEATURES = {
    "item": ["history_item", "candidate_item"],
    "category": ["history_category"],
    "user": ["user"],
}
LENGTHS = {"history_item": 5, "candidate_item": 2, "history_category": 5, "user": 1}
POOLING = {**{key: float(value) for key, value in LENGTHS.items()}, "history_semantic": 5.0}
REQUESTS = 8
OPTIMIZERS = {"sgd": torch.optim.SGD, "rowwise_adagrad": RowWiseAdagrad}


def filled(value: float):
    return lambda weight: nn.init.constant_(weight, value)


class SmallModel(nn.Module):
    """Logit per request from sums of embeddings; weights start constant per table."""

    def __init__(
        self, device: str = "cpu", optimizer: str | None = "sgd", rows: dict[str, int] | None = None
    ) -> None:
        super().__init__()
        sizes = ROWS | (rows or {})
        self.trained = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name=name,
                    num_embeddings=sizes[name],
                    embedding_dim=16,
                    feature_names=FEATURES[name],
                    init_fn=filled(0.1 * (i + 1)),
                )
                for i, name in enumerate(ROWS)
            ],
            device=torch.device(device),
        )
        self.frozen = EmbeddingCollection(
            tables=[
                EmbeddingConfig(
                    name="semantic",
                    num_embeddings=sizes["item"],
                    embedding_dim=8,
                    feature_names=["history_semantic"],
                    data_type=DataType.FP16,
                    init_fn=filled(0.25),
                )
            ],
            device=torch.device(device),
        )
        self.head = nn.Linear(16 * 4 + 8, 1, device=device)
        if device != "meta":
            with torch.no_grad():
                self.head.weight.copy_(torch.linspace(-0.5, 0.6, 72)[None])
                self.head.bias.zero_()
        if optimizer is not None:
            apply_optimizer_in_backward(
                OPTIMIZERS[optimizer], self.trained.parameters(), {"lr": 0.5}
            )

    def forward(self, ids: KeyedJaggedTensor) -> Tensor:
        parts = list(self.trained(ids).values())
        semantic = [part.values().detach().float() for part in self.frozen(ids).values()]
        sums = [part.values().view(ids.stride(), -1, 16).sum(1) for part in parts]
        sums += [values.view(ids.stride(), -1, 8).sum(1) for values in semantic]
        return self.head(torch.cat(sums, 1)).squeeze(1)


def batch(first: int, last: int) -> tuple[KeyedJaggedTensor, Tensor]:
    """Requests first..last of a fixed set of REQUESTS."""
    random = torch.Generator().manual_seed(0)
    values, lengths = [], []
    for table, features in FEATURES.items():
        for feature in features:
            ids = torch.randint(ROWS[table], (REQUESTS, LENGTHS[feature]), generator=random)
            values.append(ids[first:last].flatten())
            lengths.append(torch.full((last - first,), LENGTHS[feature]))
    labels = torch.randint(2, (REQUESTS,), generator=random).float()[first:last]
    keys = [feature for features in FEATURES.values() for feature in features]
    ids = KeyedJaggedTensor(
        keys=[*keys, "history_semantic"],
        values=torch.cat([*values, values[0]]),
        lengths=torch.cat([*lengths, lengths[0]]),
    )
    return ids, labels


def train(plan_file: str, optimizer: str, out: str) -> None:
    from torchrec.distributed.model_parallel import DistributedModelParallel

    from hisac_rec.planning.check import check_plan
    from hisac_rec.planning.plan_io import load_plan
    from hisac_rec.planning.planner import default_sharders

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    plan = load_plan(Path(plan_file))
    model = SmallModel(optimizer=optimizer)
    check_plan(plan, model, world_size=world, source=plan_file)
    sharded = DistributedModelParallel(
        model,
        device=torch.device("cpu"),
        plan=plan.to_torchrec(),
        sharders=default_sharders(),
    )
    each = REQUESTS // world
    ids, labels = batch(rank * each, (rank + 1) * each)
    losses = []
    for _ in range(3):
        loss = nn.functional.binary_cross_entropy_with_logits(sharded(ids), labels)
        loss.backward()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / world)
    local = {
        name: list(shard.tensor.shape)
        for name, value in sharded.state_dict().items()
        if hasattr(value, "local_shards")
        for shard in value.local_shards()
    }
    frozen = [
        shard.tensor
        for name, value in sharded.state_dict().items()
        if "semantic" in name
        for shard in value.local_shards()
    ]
    seen = [None] * world
    dist.all_gather_object(
        seen, {"local": local, "frozen": all(bool((t == 0.25).all()) for t in frozen)}
    )
    if rank == 0:
        Path(out).write_text(json.dumps({"losses": losses, "ranks": seen}))
    dist.destroy_process_group()


if __name__ == "__main__":
    train(*sys.argv[1:])
