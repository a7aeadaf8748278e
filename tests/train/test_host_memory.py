"""Freed memory stays with the process: large tensors cost no page faults the second time."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import resource, sys
import torch
from hisac_rec.train.host_memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    print("none")
    sys.exit()
def fill():
    for _ in range(3):  # steps, each of which ends by freeing all it made
        made = [torch.ones(4 << 20) for _ in range(8)]  # 16 MiB each
        del made
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


# What glibc starts with. Left alone it learns from what is freed, and then keeps some of it or
# not, depending on what happens to lie behind it: nothing to compare with.
AS_AT_THE_START = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def faults(how: str) -> int | None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | AS_AT_THE_START,
    )
    text = run.stdout.strip()
    return None if text == "none" else int(text)


def test_large_tensors_are_mapped_once() -> None:
    kept = faults("keep")
    if kept is None:  # another C library: nothing was promised
        return
    assert kept < 1_000  # pages; 24 tensors of 4,096 each
    assert faults("default") > 10 * max(1, kept)
