"""The Dockerfile, as far as it can be checked without a Docker daemon."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from hisac_rec.submissions import USER

ROOT = Path(__file__).resolve().parents[1]


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments on one line) in order."""
    text = (ROOT / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\s*\\\n\s*", " ", lines)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line]


def copies() -> list[tuple[list[str], str]]:
    """(sources, destination) of every COPY."""
    words = [shlex.split(rest) for name, rest in instructions() if name == "COPY"]
    return [(copied[:-1], copied[-1]) for copied in words]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path into the build: the last line that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = [path, *(str(parent) for parent in Path(path).parents)]
        names = (Path(path).name, *parts) if pattern.startswith("**/") else parts
        if any(fnmatch(name, pattern.removeprefix("**/")) for name in names):
            sent = line.startswith("!")
    return sent


def test_hadolint_has_no_complaint() -> None:
    checker = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [checker, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_is_copied_is_there_and_sent() -> None:
    sources = [source for given, _ in copies() for source in given]
    assert len(sources) >= 8
    for source in sources:
        assert (ROOT / source).exists(), source
        assert is_sent(source), source
    # All that the wheel holds, and the build backend asks for.
    assert {"hisac_rec", "models", "datasets", "launch"} <= set(sources)


@pytest.mark.parametrize(
    "path", [".git", ".venv", "data", "runs", "tests", "docs", "hisac_rec/cli/__pycache__"]
)
def test_the_rest_stays_here(path: str) -> None:
    assert not is_sent(path)


def test_it_runs_as_the_user_of_the_submissions() -> None:
    (user,) = (rest for name, rest in instructions() if name == "USER")
    assert user == str(USER)
    made = [rest for name, rest in instructions() if name == "RUN" and "useradd" in rest]
    assert f"--uid {USER}" in made[0]
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]


def test_the_base_is_pinned_to_the_python_of_the_project() -> None:
    (base,) = (rest for name, rest in instructions() if name == "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)


@pytest.mark.slow
def test_its_steps_install_a_command_that_works(tmp_path: Path) -> None:
    """COPY and RUN in order, in a folder in place of the image's, without what root does."""
    image = tmp_path / "image"
    image.mkdir()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PATH": f"{image}/.venv/bin:{os.environ['PATH']}",
        "DEVICE": "cpu",
        "TORCH_INDEX": "",
    }
    installed = 0
    for name, rest in instructions():
        if name == "COPY":
            *sources, destination = shlex.split(rest)
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, image / destination)
                else:
                    shutil.copy(ROOT / source, image / destination)
        elif name == "RUN" and "install.py" in rest:
            command = re.sub(r"--mount=\S+\s+", "", rest)
            command = command.replace("python -m venv", f"{sys.executable} -m venv", 1)
            done = subprocess.run(
                ["sh", "-c", command], cwd=image, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
            assert "they load together" in done.stdout
            installed += 1
    assert installed == 1

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    where = run("python", "-c", "import hisac_rec, sys; print(hisac_rec.__file__, sys.prefix)")
    assert where.split() == [f"{image}/hisac_rec/__init__.py", f"{image}/.venv"]
    run("hisac-rec", "doctor")
    small = ["synthetic.users=120", "synthetic.items=600", "semantic_ids.codes=[8,8]"]
    sets = [word for setting in small for word in ("--set", setting)]
    run("hisac-rec", "prepare", "synthetic", "--out", "data", *sets)
