"""Really run torch, fbgemm, torchrec and the collectives; the child process of the doctor.

Writes one JSON object a line: ``{"name", "ok", "detail"}``, first with ``ok`` null when a
stage begins, so that a crash can be put down to the stage in which it happened.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from hisac_rec.doctor import gpu_files


def torch_devices() -> str:
    """Import torch; name each device and its memory."""
    import torch

    if torch.version.cuda and gpu_files():
        torch.cuda.init()  # says why, where a GPU is there and cannot be used
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.cuda.get_device_properties(i) for i in range(count)]
    names = [f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in devices]
    cuda = torch.version.cuda or "none"
    threads = torch.get_num_threads()
    return f"CUDA {cuda}; {'; '.join(names) or f'CPU only, {threads} threads'}"


def fbgemm_operator() -> str:
    """Run one jagged operator on each kind of device and check its result."""
    import fbgemm_gpu  # noqa: F401
    import torch

    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for kind in kinds:
        lengths = torch.tensor([2, 0, 3], device=kind)
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        if offsets.tolist() != [0, 2, 2, 5]:
            raise RuntimeError(f"asynchronous_complete_cumsum on {kind} gave {offsets.tolist()}")
    return f"asynchronous_complete_cumsum on {', '.join(kinds)}"


def torchrec_forward() -> str:
    """Look up a jagged batch in an EmbeddingCollection."""
    import torch
    from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

    table = EmbeddingConfig(
        name="item", num_embeddings=8, embedding_dim=4, feature_names=["history"]
    )
    batch = KeyedJaggedTensor(
        keys=["history"],
        values=torch.tensor([1, 7, 3]),
        lengths=torch.tensor([2, 0, 1]),
    )
    rows = EmbeddingCollection(tables=[table])(batch)["history"].values()
    if tuple(rows.shape) != (3, 4):
        raise RuntimeError(f"EmbeddingCollection gave shape {tuple(rows.shape)}, expected (3, 4)")
    return "EmbeddingCollection forward"


def gloo_collective() -> str:
    """Sum a tensor over a group of one process through gloo."""
    return _all_reduce("gloo", "cpu")


def nccl_collective() -> str:
    """Sum a tensor over a group of one process through NCCL, where there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        return "not needed: no GPU"
    return _all_reduce("nccl", "cuda:0")


def _all_reduce(backend: str, device: str) -> str:
    import torch
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            ones = torch.ones(4, device=device)
            dist.all_reduce(ones)
            if ones.sum().item() != 4.0:
                raise RuntimeError(f"all_reduce over one process changed the data: {ones}")
        finally:
            dist.destroy_process_group()
    return f"all_reduce through {backend} on {device}"


STAGES: dict[str, Callable[[], str]] = {
    "torch": torch_devices,
    "fbgemm": fbgemm_operator,
    "torchrec": torchrec_forward,
    "gloo": gloo_collective,
    "nccl": nccl_collective,
}
"""In the order in which one builds on the other."""


def main() -> None:
    """Try every stage; a Python error fails its stage only."""

    def say(name: str, ok: bool | None, detail: str = "") -> None:
        sys.stdout.write(json.dumps({"name": name, "ok": ok, "detail": detail}) + "\n")
        sys.stdout.flush()

    for name, run in STAGES.items():
        say(name, None)
        try:
            say(name, True, run())
        except Exception as error:
            say(name, False, "".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main()
