"""What is installed, whether it works together, and how to mend what does not.

Three steps that tests can run apart: :func:`installed_stack` reads versions from package
metadata, :func:`judge_stack` and :func:`explain_failure` turn facts into findings without
importing anything heavy, and :func:`probe` really runs torch, fbgemm, torchrec and the
collectives in a child process, so that a crash there is a finding and not our end.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from hisac_rec.errors import UserError

Build = Literal["cpu", "cuda"]

PROBE = (sys.executable, "-m", "hisac_rec.doctor_probe")
PROBE_SECONDS = 180.0
"""A probe that takes longer hangs: importing everything takes seconds."""


@dataclass(frozen=True)
class Triple:
    """Releases of the three binary packages that share one C++ interface."""

    torch: str
    fbgemm: str
    torchrec: str

    def __str__(self) -> str:
        return f"torch {self.torch} + fbgemm {self.fbgemm} + torchrec {self.torchrec}"


VERIFIED = (Triple(torch="2.13.0", fbgemm="1.8.0", torchrec="1.8.0"),)
"""Triples on which the test suite of this version passes."""


@dataclass(frozen=True)
class Stack:
    """What the package metadata says is installed; None is absent."""

    torch: str | None
    fbgemm_gpu: str | None
    """The CUDA build of fbgemm."""
    fbgemm_gpu_cpu: str | None
    """The CPU build of fbgemm; it installs the same module as the CUDA build."""
    torchrec: str | None

    @property
    def torch_build(self) -> Build:
        """PyPI's plain ``torch`` on Linux is a CUDA build; CPU builds say ``+cpu``."""
        return "cpu" if (self.torch or "").endswith("+cpu") else "cuda"

    @property
    def fbgemm(self) -> str | None:
        """The version of fbgemm, whichever build."""
        return self.fbgemm_gpu or self.fbgemm_gpu_cpu

    @property
    def fbgemm_build(self) -> Build:
        """Which build of fbgemm is there; the CUDA one where both are."""
        return "cuda" if self.fbgemm_gpu else "cpu"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or worth knowing, and how to mend it."""

    what: str
    meaning: str
    mend: str
    wrong: bool = True
    """False: works, but worse than it could."""


@dataclass(frozen=True)
class Stage:
    """One thing that was tried."""

    name: str
    ok: bool
    detail: str
    """What was seen; of a failure, the error."""


def installed_version(package: str) -> str | None:
    """The installed version of a distribution, or None; imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def installed_stack() -> Stack:
    """Read the versions of torch, fbgemm and torchrec from package metadata. Milliseconds."""
    return Stack(
        torch=installed_version("torch"),
        fbgemm_gpu=installed_version("fbgemm-gpu"),
        fbgemm_gpu_cpu=installed_version("fbgemm-gpu-cpu"),
        torchrec=installed_version("torchrec"),
    )


def gpu_files() -> list[str]:
    """The device files of NVIDIA GPUs that the driver shows."""
    return sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))


def install_command(build: Build) -> str:
    """The command that installs the verified triple into this Python."""
    good = VERIFIED[-1]
    script = Path(__file__).resolve().parent.parent / "requirements" / "install.py"
    if script.is_file():
        return f"{sys.executable} {script} runtime --device {build}"
    pip = f"{sys.executable} -m pip"
    clear = f"{pip} uninstall --yes fbgemm-gpu fbgemm-gpu-cpu"
    if build == "cuda":
        exact = f"torch=={good.torch} fbgemm-gpu=={good.fbgemm} torchrec=={good.torchrec}"
        return f"{clear}; {pip} install {exact}"
    # torchrec declares the CUDA build of fbgemm, which a CPU machine must not get.
    exact = f"fbgemm-gpu-cpu=={good.fbgemm} torchrec=={good.torchrec}"
    return f"{clear}; {pip} install torch=={good.torch}; {pip} install --no-deps {exact}"


def judge_stack(stack: Stack, gpus: int) -> list[Finding]:
    """Say what is wrong with a set of versions and builds.

    Args:
        stack: what is installed.
        gpus: how many GPUs the driver shows.
    """
    mend = install_command("cuda" if gpus else "cpu")
    absent = [
        name
        for name, found in (
            ("torch", stack.torch),
            ("fbgemm-gpu", stack.fbgemm),
            ("torchrec", stack.torchrec),
        )
        if found is None
    ]
    if absent:
        return [Finding(f"{', '.join(absent)} not installed", "nothing can train without", mend)]
    found: list[Finding] = []
    triple = Triple(
        torch=str(stack.torch).partition("+")[0],
        fbgemm=str(stack.fbgemm).partition("+")[0],
        torchrec=str(stack.torchrec).partition("+")[0],
    )
    if triple not in VERIFIED:
        found.append(
            Finding(
                f"{triple} is not a verified set",
                f"the three share one C++ interface and must be released together, else "
                f"operators are missing or symbols undefined; verified: "
                f"{'; '.join(map(str, VERIFIED))}",
                mend,
            )
        )
    if stack.fbgemm_gpu and stack.fbgemm_gpu_cpu:
        found.append(
            Finding(
                "both fbgemm-gpu and fbgemm-gpu-cpu are installed",
                "they write the same files, the later one over the earlier one's",
                mend,
            )
        )
    elif stack.torch_build == "cpu" and stack.fbgemm_build == "cuda":
        found.append(
            Finding(
                "torch is a CPU build, fbgemm a CUDA build",
                "fbgemm looks for CUDA symbols that this torch does not have",
                mend,
            )
        )
    elif gpus and "cpu" in (stack.torch_build, stack.fbgemm_build):
        found.append(
            Finding(
                f"{gpus} GPU(s) here, but torch is a {stack.torch_build} build and fbgemm a "
                f"{stack.fbgemm_build} build",
                "training leaves the GPUs idle",
                mend,
                wrong=stack.torch_build != stack.fbgemm_build,
            )
        )
    elif not gpus and stack.fbgemm_build == "cuda":
        found.append(
            Finding(
                "fbgemm is a CUDA build, but there is no NVIDIA driver here",
                "it cannot be loaded without the driver's libraries",
                mend,
            )
        )
    return found


def check_stack() -> None:
    """Refuse to go on with versions that are known not to fit; milliseconds, no imports.

    Raises:
        UserError: torch, fbgemm or torchrec is absent or they are not a verified set;
            names what is there, what was expected and the command that mends it.
    """
    wrong = [one for one in judge_stack(installed_stack(), len(gpu_files())) if one.wrong]
    if wrong:
        lines = [f"{one.what}: {one.meaning}. To mend it: {one.mend}" for one in wrong]
        raise UserError("\n".join([*lines, "`hisac-rec doctor` tells more"]))


FAILURES: tuple[tuple[str, str, str], ...] = (
    (
        r"undefined symbol",
        "a compiled package was built against another torch: the versions of torch and fbgemm "
        "differ",
        "{install}",
    ),
    (
        r"libnvidia-ml\.so|libcuda\.so",
        "a CUDA build on a machine without the NVIDIA driver",
        "{install_cpu}",
    ),
    (
        r"lib(c10|torch)_cuda\S*\.so",
        "fbgemm is a CUDA build and torch a CPU build",
        "{install}",
    ),
    (
        r"CUDA driver version is insufficient|driver .* too old",
        "the NVIDIA driver is older than the CUDA that torch was built with",
        "update the NVIDIA driver, or install a torch built for an older CUDA",
    ),
    (
        r"lib(cudart|cublas|cudnn|nccl|nvrtc)\S*\.so",
        "a CUDA library that torch or fbgemm loads is absent or of another major version",
        "{install}",
    ),
    (
        r"GLIBC(XX)?_[\d.]+' not found",
        "the operating system's C or C++ library is older than the wheels need",
        "use a system with glibc 2.28 and GCC 11's libstdc++ or newer",
    ),
    (
        r"No module named '([\w.]+)'",
        "a package that one of them imports is absent",
        "{install}",
    ),
    (
        r"has no attribute|does not exist|Could not (load|run)|cannot import name",
        "the versions of torch, fbgemm and torchrec do not fit each other",
        "{install}",
    ),
    (
        r"Illegal instruction|\(signal 4\)",
        "the wheels use processor instructions (AVX2) that this machine lacks",
        "use a processor from 2015 or later",
    ),
    (
        r"\(signal \d+\)",
        "native code crashed; nearly always torch and fbgemm of different releases or builds",
        "{install}",
    ),
    (
        r"no answer within|[Tt]imed? ?out|connect|[Aa]ddress|resolve|interface|\bgloo\b|NCCL",
        "the collectives cannot reach this machine by its own name or over its interface",
        "give the machine's name an address (a line in /etc/hosts: 127.0.0.1 and `hostname`)",
    ),
)
"""Pattern in the error, what it means, what mends it; the first that matches counts."""


def explain_failure(stage: Stage, gpus: int = 0) -> Finding:
    """Turn the error of a failed stage into what it means and what mends it."""
    commands = {
        "install": install_command("cuda" if gpus else "cpu"),
        "install_cpu": install_command("cpu"),
    }
    lines = stage.detail.strip().splitlines() or ["no message"]
    for pattern, meaning, mend in FAILURES:
        telling = [line.strip() for line in lines if re.search(pattern, line)]
        if telling:
            return Finding(f"{stage.name}: {telling[0]}", meaning, mend.format(**commands))
    return Finding(
        f"{stage.name}: {lines[-1]}",
        "not a failure that is known here",
        f"compare with docs/install.md; a clean environment is made by: {commands['install']}",
    )


def explain_failures(stages: Sequence[Stage], gpus: int = 0) -> list[Finding]:
    """Explain the failed stages; one that fails like an earlier one is not told twice."""
    found: dict[str, Finding] = {}
    for stage in stages:
        if not stage.ok:
            finding = explain_failure(stage, gpus)
            found.setdefault(finding.meaning, finding)
    return list(found.values())


def probe(command: Sequence[str] = PROBE, seconds: float = PROBE_SECONDS) -> list[Stage]:
    """Run the probe in a child process and collect what it tried.

    Args:
        command: what runs :mod:`hisac_rec.doctor_probe`.
        seconds: a child that takes longer is ended and its stage counted as failed.
    """
    try:
        done = subprocess.run(
            [*command], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        text = output.decode() if isinstance(output, bytes) else output
        return read_stages(text, f"no answer within {seconds:g} s")
    end = f"{done.stderr.strip()[-2000:]}\nended with code {done.returncode}"
    if done.returncode < 0:
        end = f"{done.stderr.strip()[-2000:]}\ncrashed (signal {-done.returncode})"
    return read_stages(done.stdout, end)


def read_stages(output: str, end: str) -> list[Stage]:
    """Read what the probe wrote: one JSON object a line, ``ok`` null when a stage begins.

    Args:
        output: the probe's standard output.
        end: how the probe ended, the error of a stage that began and never finished.
    """
    stages: dict[str, Stage] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
            begun = said["ok"] is None
            stages[said["name"]] = Stage(
                name=said["name"], ok=bool(said["ok"]), detail=end if begun else said["detail"]
            )
    return list(stages.values()) or [Stage("start", ok=False, detail=end)]


def judge_machine(shared_memory: int | None, free_disk: int) -> list[Finding]:
    """Say what about the machine will hurt later.

    Args:
        shared_memory: size of ``/dev/shm`` in bytes, None where there is none.
        free_disk: free bytes in the working folder.
    """
    found: list[Finding] = []
    if sys.version_info[:2] != (3, 11):
        found.append(
            Finding(
                f"Python {platform.python_version()}",
                "the pinned wheels are for Python 3.11",
                "make install PYTHON=/path/to/python3.11",
            )
        )
    if shared_memory is not None and shared_memory < 2**30:
        found.append(
            Finding(
                f"/dev/shm holds {shared_memory / 2**20:.0f} MiB",
                "loader workers pass batches through it and die with a bus error when it is full",
                "start the container with --shm-size=8g, or set the loader's workers to 0",
                wrong=False,
            )
        )
    if free_disk < 5 * 2**30:
        found.append(
            Finding(
                f"{free_disk / 2**30:.1f} GiB free in the working folder",
                "prepared data and checkpoints of a real data set need more",
                "give --out a folder on a larger disk",
                wrong=False,
            )
        )
    return found
