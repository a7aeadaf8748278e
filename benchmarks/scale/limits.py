"""Run a command on few cores under a real limit of memory, and watch its folder grow."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
WATCH_SECONDS = 1.0


@dataclass
class Watched:
    """How a command went."""

    code: int
    seconds: float
    limited_by: str
    """What held the memory: in words, for the page."""
    peak_bytes: int
    """Most memory of the group, page cache included; without a group, of the process."""
    disk_bytes: int
    """Largest size of the watched folders."""


def run_limited(
    command: list[str], memory: int, cores: int, sizes: Callable[[], int], log: Path
) -> Watched:
    """Run a command until it ends.

    Args:
        command: what to run.
        memory: bytes that it may use, where control groups can be made.
        cores: processors that it may use.
        sizes: how large its folders are now.
        log: file that takes what it says.
    """
    group = _make_group(memory)
    mine = sorted(os.sched_getaffinity(0))[:cores]

    def enter() -> None:
        os.sched_setaffinity(0, mine)
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    started, disk, resident = time.monotonic(), 0, 0
    with (
        log.open("w") as out,
        subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=enter) as process,
    ):
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            disk = max(disk, sizes())
            try:
                resident = max(resident, watched.memory_info().rss)
            except psutil.Error:
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(WATCH_SECONDS)
    seconds = time.monotonic() - started
    if group is None:
        words = "nothing: control groups cannot be made here, so its peak was watched alone"
        return Watched(process.returncode, seconds, words, resident, disk)
    old = group / "memory.max_usage_in_bytes"
    peak = int((old if old.is_file() else group / "memory.peak").read_text())
    group.rmdir()
    words = "a control group of the kernel, page cache included"
    return Watched(process.returncode, seconds, words, peak, disk)


def _make_group(memory: int) -> Path | None:
    """A control group with a memory limit and no swap, of either version; None where refused."""
    name = f"hisac-rec-benchmark-{os.getpid()}"
    for group, keys in (
        (CGROUPS / "memory" / name, ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")),
        (CGROUPS / name, ("memory.max", "memory.swap.max")),
    ):
        if not group.parent.is_dir():
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / keys[0]).write_text(str(memory))
            swap = group / keys[1]
            if swap.is_file():
                swap.write_text("0" if keys[1] == "memory.swap.max" else str(memory))
        except OSError:
            group.rmdir()
            continue
        return group
    return None


def folder_bytes(*folders: Path) -> int:
    """Size of all files in some folders, which may change meanwhile."""
    total = 0
    for folder in folders:
        for root, _, files in os.walk(folder):
            for name in files:
                try:
                    total += (Path(root) / name).stat().st_size
                except OSError:  # gone since
                    continue
    return total
