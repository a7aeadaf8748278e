"""Process groups: started by torchrun (and so by torchx), or one process on its own.

The environment that torchrun sets (RANK, WORLD_SIZE, ...) is its interface, not a setting
of ours; nothing else is read from the environment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hisac_rec.train.host_memory import keep_freed_memory
from hisac_rec.train.hosts import check_own_address

TIMEOUT = timedelta(minutes=10)
"""A collective that waits longer than this for a rank fails on all others."""

MARGIN = timedelta(minutes=1)
"""By how much collectives wait longer than a training, which can name the rank it waits for."""


@dataclass(frozen=True)
class Ranks:
    """A process among its peers.

    Args:
        rank: global rank.
        world_size: number of ranks.
        per_host: ranks on each host.
        device: where this rank computes.
        launched: when torchrun was started, seconds since 1970; None without it.
        restarts: how often torchrun has started the ranks again after a failure.
    """

    rank: int
    world_size: int
    per_host: int
    device: torch.device
    launched: float | None = None
    restarts: int = 0

    @property
    def first(self) -> bool:
        """True on rank 0, which talks and writes."""
        return self.rank == 0


@contextmanager
def process_group(timeout: timedelta = TIMEOUT) -> Iterator[Ranks]:
    """Join the job's process group, and leave it at the end.

    Args:
        timeout: how long a collective waits for a rank.

    GPUs use NCCL for device tensors; host tensors always go over gloo.
    """
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    local_rank = int(os.environ.get("LOCAL_RANK", 0)) if launched else 0
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if launched else 0
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
        keep_freed_memory()
    if launched:
        if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
            check_own_address()
        store, rank, ranks = next(iter(dist.rendezvous("env://", timeout=timeout)))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun's own store outlives the ranks: started again, they would find the addresses
            # of the dead in it. (Agents of several hosts count their restarts each for itself.)
            store = dist.PrefixStore(f"start{restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    else:
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
    if dist.get_rank() != 0:
        logging.getLogger().setLevel(logging.WARNING)
    try:
        world_size = dist.get_world_size()
        per_host = int(os.environ.get("LOCAL_WORLD_SIZE", world_size)) if launched else 1
        yield Ranks(
            dist.get_rank(),
            world_size,
            per_host,
            device,
            launched=psutil.Process(os.getppid()).create_time() if launched else None,
            restarts=restarts,
        )
    except BaseException:
        # Leaving together with ranks that may be gone could wait for them; the process ends.
        if dist.get_world_size() == 1:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def gather_numbers(mine: list[float]) -> Tensor:
    """[ranks, numbers] float64: a few host numbers of every rank, on all ranks."""
    every = torch.empty(dist.get_world_size() * len(mine), dtype=torch.float64)
    dist.all_gather_single(every, torch.tensor(mine, dtype=torch.float64))
    return every.view(-1, len(mine))
