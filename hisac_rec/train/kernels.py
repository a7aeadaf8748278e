"""The embedding kernels of a sharded model on this rank, and what they hold."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from hisac_rec.planning.plan_io import Plan
from hisac_rec.planning.units import human_bytes
from hisac_rec.train.distributed import Ranks, gather_numbers

log = logging.getLogger(__name__)

CLOSE = 0.05
"""Share by which what a rank holds may differ from the plan before it is worth a warning."""

_MEMORIES = ("dev", "host", "uvm")


def embedding_kernels(model: nn.Module) -> Iterator[SplitTableBatchedEmbeddingBagsCodegen]:
    """Every fused kernel of a sharded model, each once.

    Sharded modules keep them in ``_lookups``, which is not a list of submodules.
    """
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen):
            yield module
        waiting += [*module.children(), *getattr(module, "_lookups", ())]


def held_bytes(model: nn.Module) -> int:
    """Bytes of table weights and their optimiser state that this rank has allocated.

    Counted are the kernels' own buffers, caches of tables in main memory left out.
    """
    buffers = kernel_buffers(model, ("weights", "momentum1", "momentum2"))
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers)


def kernel_buffers(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    """The buffers of the kernels of a sharded model: "weights", "momentum1", "momentum2"."""
    found: list[Tensor] = []
    for kernel in embedding_kernels(model):
        for name in names:
            buffers = [getattr(kernel, f"{name}_{memory}", None) for memory in _MEMORIES]
            # One number stands for none.
            found += [buffer for buffer in buffers if buffer is not None and buffer.numel() > 1]
    return found


def planned_bytes(plan: Plan, rank: int) -> int:
    """Bytes of weights and optimiser state that the plan gives to a rank."""
    return sum(
        shard.weight_bytes + shard.state_bytes
        for _, _, table in plan.tables()
        for shard in table.shards
        if shard.rank == rank % plan.group_size
    )


def compare_with_plan(plan: Plan, model: nn.Module, ranks: Ranks) -> list[float]:
    """Log planned beside held bytes of the fullest and the most different rank.

    Called on every rank.

    Returns:
        Held over planned, less one, of every rank.
    """
    held = gather_numbers([float(held_bytes(model))])[:, 0].tolist()
    planned = [planned_bytes(plan, rank) for rank in range(ranks.world_size)]
    off = [h / p - 1 if p else float(h > 0) for h, p in zip(held, planned, strict=True)]
    fullest = held.index(max(held))
    worst = max(range(ranks.world_size), key=lambda rank: abs(off[rank]))
    log.info(
        "tables and their optimiser state: %s on the fullest rank (%d), %s planned; "
        "%s in all, %s planned",
        human_bytes(held[fullest]),
        fullest,
        human_bytes(planned[fullest]),
        human_bytes(sum(held)),
        human_bytes(sum(planned)),
    )
    if abs(off[worst]) > CLOSE:
        log.warning(
            "rank %d holds %s of tables and optimiser state where the plan says %s (%+.0f %%)",
            worst,
            human_bytes(held[worst]),
            human_bytes(planned[worst]),
            100 * off[worst],
        )
    return off
