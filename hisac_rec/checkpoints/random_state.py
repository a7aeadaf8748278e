"""The state of each rank's random generators: dropout goes on as if nothing had happened.

Batches are drawn by generators of their own, seeded by epoch; what is here is torch's, of the
host and of the rank's GPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from hisac_rec.checkpoints.location import reader
from hisac_rec.checkpoints.manifest import CheckpointManifest


def current_random_state() -> dict[str, Tensor]:
    """Name in a checkpoint -> state of this rank's generators."""
    state = {_name("cpu"): torch.get_rng_state()}
    if torch.cuda.is_available():
        state[_name("cuda")] = torch.cuda.get_rng_state()
    return state


def load_random_state(path: Path, stored: Metadata, manifest: CheckpointManifest) -> None:
    """Set this rank's generators to what they were. Called on every rank.

    With another number of ranks, or on another kind of device, what is dropped cannot be the
    same: generators are then seeded by step and rank.
    """
    state = current_random_state()
    if manifest.world_size == dist.get_world_size() and all(
        key in stored.state_dict_metadata for key in state
    ):
        dcp.load(state, storage_reader=reader(path))
        torch.set_rng_state(state[_name("cpu")])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state[_name("cuda")])
    else:
        torch.manual_seed(manifest.position.step * 65_537 + dist.get_rank())


def _name(device: str) -> str:
    return f"random.{dist.get_rank()}.{device}"
