"""Started by torchrun on every rank: bytes and seconds of a training step, by how rows travel.

Arguments: prepared data, file for rank 0's results. Bytes are counted from the collectives as
they are called, without what a rank sends to itself.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches, Shard
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.distributed import Ranks, gather_numbers, process_group
from hisac_rec.train.job import Job, open_job, resolve_plan, shard

FORMS = {
    "rows": ("tables.pool=false",),
    "leaves": ("tables.pool=true",),
    **{
        f"agents, reach {reach}": ("tables.pool=true", f"history.reach={reach}")
        for reach in (1, 2, 4, 8, 16, 32)
    },
}
"""How events travel: their rows, or sums of them."""
SHARED = (
    "tables.dim=64",
    "history.keep=[20, 10]",  # 200 agents
    "loader.batch_tokens=330000",
    "loader.shuffle_requests=1",
)
BATCHES = 2
TURNS = 5


class SentBytes(TorchDispatchMode):
    """Counts what all-to-all collectives send to other ranks."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size, self.sent = rank, world_size, 0.0

    def __torch_dispatch__(  # torch's own name
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if "alltoall_base" in str(func):
            self.sent += self._sent(args[1], args[4])
        elif "c10d" in str(func) and "allreduce" not in str(func):
            raise RuntimeError(f"a collective that is not counted: {func}")
        return func(*args, **(kwargs or {}))

    def _sent(self, given: Tensor, splits: Sequence[int]) -> float:
        whole = given.numel() * given.element_size()
        if not splits:
            return whole * (self.world_size - 1) / self.world_size
        return whole * (1 - splits[self.rank] / max(1, sum(splits)))


def main(data: PreparedData, out: Path) -> None:
    """Measure all forms and write them from rank 0."""
    with process_group() as ranks:
        steps: dict[str, Callable[[int], None]] = {}
        found: dict[str, dict[str, Any]] = {}
        for name, keys in FORMS.items():
            config = load_model_config(Path("models/hisac.toml"), [*SHARED, *keys])
            job = open_job(config, data)
            batches = _batches(job, ranks)
            steps[name] = _stepper(job, ranks, batches)
            counter = SentBytes(ranks.rank, ranks.world_size)
            with counter:
                for number in range(len(batches)):
                    steps[name](number)
            requests = sum(batch.num_requests for batch in batches)
            sent, asked = gather_numbers([counter.sent, float(requests)]).sum(0).tolist()
            found[name] = {"bytes": sent / asked, "requests": asked, "seconds": []}
        for turn in range(TURNS):
            for name, step in steps.items():
                dist.barrier()
                begin = time.perf_counter()
                step(turn % BATCHES)
                dist.barrier()
                found[name]["seconds"].append(time.perf_counter() - begin)
        if ranks.first:
            out.write_text(json.dumps(found))
        dist.barrier()


def _batches(job: Job, ranks: Ranks) -> list[RequestBatch]:
    every = RequestBatches(
        job.data,
        "train",
        job.spec,
        job.items,
        job.config.loader,
        rank=Shard(ranks.rank, ranks.world_size),
    )
    return list(islice(every, BATCHES))


def _stepper(job: Job, ranks: Ranks, batches: list[RequestBatch]) -> Callable[[int], None]:
    """A step on one of the batches: forward, backward and the sparse optimiser in it."""
    planner = PlannerConfig.model_validate(
        {
            "topology": {"devices_per_host": ranks.world_size, "device": "cpu", "ddr_gib": 16},
            "defaults": {"sharding_types": ["table_wise"]},
        }
    )
    model = shard(job, resolve_plan(job, ranks, planner), ranks)

    def step(number: int) -> None:
        loss, _ = model(batches[number].with_loss_scale(1.0 / batches[number].num_candidates))
        loss.backward()

    return step


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(PreparedData(Path(sys.argv[1])), Path(sys.argv[2]))
