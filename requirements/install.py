"""Install hisac_rec into the virtual environment whose Python runs this file.

Used by the Makefile; only the standard library, because nothing else is there yet::

    .venv/bin/python requirements/install.py runtime
    .venv/bin/python requirements/install.py dev
    .venv/bin/python requirements/install.py serving   # where an exported model is served alone
    .venv/bin/python requirements/install.py text      # models for semantic IDs from text
    .venv/bin/python requirements/install.py spark     # for `hisac-rec prepare --engine spark`

torch comes first, because its build decides everything after it; then the pinned lists
with --no-deps (torchrec declares the CUDA build of fbgemm, which a CPU machine must not
get); then a check that the three binary packages work together.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent

NO_SUCH_BUILD = ("No matching distribution found", "ResolutionImpossible")
"""How pip says that no index or folder it knows has this version: the second where its own
configuration holds a constraint on the package."""

CHECK = """
import torch, fbgemm_gpu, torchrec
torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2]))
print("torch", torch.__version__, "| fbgemm_gpu", fbgemm_gpu.__version__,
      "| torchrec", torchrec.__version__, "| CUDA", torch.version.cuda or "none")
"""


class InstallError(Exception):
    """The install cannot go on; the message says what to do."""


def gpu_present() -> bool:
    """True where the NVIDIA driver shows a GPU: a device file, or nvidia-smi lists one."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU " in listed.stdout


def pinned(list_name: str, package: str) -> str:
    """The version that ``requirements/<list_name>.txt`` pins for ``package``."""
    text = (FOLDER / f"{list_name}.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)$", text, flags=re.MULTILINE)
    if found is None:
        raise InstallError(f"requirements/{list_name}.txt: no line '{package}==<version>'")
    return found.group(1)


def installed(package: str) -> str | None:
    """The version in this environment, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def say(text: str) -> None:
    """Tell the person what happens next."""
    print(f"==> {text}", flush=True)


def pip(*arguments: str) -> None:
    """Run pip of this environment.

    Raises:
        InstallError: pip failed; ``args[1]`` holds what it said.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("WARNING:")]
    if done.returncode:
        raise InstallError(f"pip {' '.join(arguments)} failed", "\n".join(complaints))


def install_torch(device: str, index: str) -> None:
    """Install the pinned torch: the CPU build where it can be had, else the CUDA build.

    Args:
        device: ``cpu`` or ``cuda``.
        index: a package index to ask instead of pip's own ones; empty for pip's own.
    """
    version = pinned(device, "torch")
    have = installed("torch")
    usable = device == "cpu" or not str(have).endswith("+cpu")
    if have is not None and have.partition("+")[0] == version and usable:
        say(f"torch {have} is there")
        return
    where = ["--index-url", index] if index else []
    if device == "cuda":
        say(f"torch {version}")
        # Every library that torch loads is pinned in cuda.txt: no dependencies here. `===`
        # leaves out 2.13.0+cpu, which `==` prefers where pip is offered both.
        sign = "==" if index else "==="
        force = ["--force-reinstall"] if have is not None else []
        pip("install", "--no-deps", *force, f"torch{sign}{version}", *where)
        return
    try:
        say(f"torch {version}, CPU build, from {index or 'where this pip looks'}")
        pip("install", "--no-deps", f"torch=={version}+cpu", *where)
    except InstallError as error:
        if index or not any(phrase in error.args[1] for phrase in NO_SUCH_BUILD):
            raise
        say(
            f"pip finds no CPU build of torch {version}: taking the default build with the CUDA "
            "libraries, some gigabytes larger, which works without a GPU as well. For the small "
            "one stop here and give PyTorch's CPU wheel index (its address is on PyTorch's "
            "'Get started' page): make demo TORCH_INDEX=URL"
        )
        pip("install", f"torch=={version}")


def install_runtime(device: str, index: str) -> None:
    """Install what runs hisac_rec, and hisac_rec itself as an editable package."""
    if device == "auto":
        device = "cuda" if gpu_present() else "cpu"
        found = "a GPU is present" if device == "cuda" else "no GPU is present"
        say(f"{found}: requirements/{device}.txt (override with DEVICE=cpu or DEVICE=cuda)")
    install_torch(device, index)
    say(f"the pinned packages of requirements/{device}.txt")
    # The two builds of fbgemm write the same files: where the other one is, both must go.
    other = "fbgemm-gpu" if device == "cpu" else "fbgemm-gpu-cpu"
    if installed(other) is not None:
        pip("uninstall", "--quiet", "--yes", "fbgemm-gpu", "fbgemm-gpu-cpu")
    pip("install", "--quiet", "--no-deps", "--requirement", str(FOLDER / f"{device}.txt"))
    say("hisac_rec, editable")
    pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    if device == "cuda" and not gpu_present():
        # As where an image is built: the driver, without which nothing loads, comes with the GPU.
        say("no GPU is present: not checked; run 'hisac-rec doctor' where there is one")
        return
    check()


def install_serving(device: str, index: str) -> None:
    """Install what serves an exported model, and nothing that trains one."""
    if device == "auto":
        device = "cuda" if gpu_present() else "cpu"
    install_torch(device, index)
    say("the pinned packages of requirements/serving.txt")
    pip("install", "--quiet", "--no-deps", "--requirement", str(FOLDER / "serving.txt"))
    say("hisac_rec, without its other dependencies")
    pip("install", "--quiet", "--no-deps", str(ROOT))


def install_dev() -> None:
    """Install the tools for tests, style, types and the wheel."""
    say("the pinned packages of requirements/dev.txt")
    pip("install", "--quiet", "--no-deps", "--requirement", str(FOLDER / "dev.txt"))


def install_text() -> None:
    """Install what embeds texts by a named model, beside what runs."""
    say("the pinned packages of requirements/text.txt")
    pip("install", "--quiet", "--no-deps", "--requirement", str(FOLDER / "text.txt"))


def install_spark() -> None:
    """Install Spark, some 450 MB, and what translates SQL to its own."""
    say("the pinned packages of requirements/spark.txt")
    pip("install", "--quiet", "--no-deps", "--requirement", str(FOLDER / "spark.txt"))
    if shutil.which("java") is None:
        say("java is not on the PATH: Spark needs Java 17 or newer")


def check() -> None:
    """Import torch, fbgemm_gpu and torchrec in one process and print their versions.

    Raises:
        InstallError: they do not load together.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InstallError(
            "torch, fbgemm_gpu and torchrec do not load together; remove .venv and run make again",
            done.stderr.strip(),
        )
    say(f"they load together: {done.stdout.strip().splitlines()[-1]}")


def main() -> None:
    """Read the command line and install."""
    parser = argparse.ArgumentParser(description="Install hisac_rec into this environment.")
    parser.add_argument("what", choices=("runtime", "dev", "serving", "text", "spark"))
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--torch-index", default="", metavar="URL")
    given = parser.parse_args()
    if sys.prefix == sys.base_prefix:
        sys.exit("requirements/install.py: run it with the Python of a virtual environment")
    try:
        if given.what == "runtime":
            install_runtime(given.device, given.torch_index)
        elif given.what == "serving":
            install_serving(given.device, given.torch_index)
        elif given.what == "text":
            install_text()
        elif given.what == "spark":
            install_spark()
        else:
            install_dev()
    except InstallError as error:
        sys.exit("\n".join(f"requirements/install.py: {part}" for part in reversed(error.args)))


if __name__ == "__main__":
    main()
