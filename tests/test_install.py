"""The pinned lists, the installer and the Makefile."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hisac_rec.doctor import VERIFIED

ROOT = Path(__file__).resolve().parents[1]
LISTS = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """Package -> version of a list and of the lists that it includes."""
    found: dict[str, str] = {}
    for line in (LISTS / f"{name}.txt").read_text().splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r ").removesuffix(".txt"))
        elif line and not line.startswith("#"):
            package, _, pinned = line.partition("==")
            found[canonicalize_name(package)] = pinned
    return found


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", LISTS / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_serving_is_a_part_of_what_runs() -> None:
    serving, runtime = pins("serving"), pins("runtime")
    assert serving
    assert serving.items() <= runtime.items()
    assert not {"torchrec", "fbgemm-gpu", "duckdb", "scikit-learn"} & serving.keys()


@pytest.mark.parametrize("name", ["runtime", "cpu", "cuda", "dev", "serving", "text", "spark"])
def test_a_list_holds_exact_pins_and_no_hosts(name: str) -> None:
    for line in (LISTS / f"{name}.txt").read_text().splitlines():
        assert re.fullmatch(r"|#.*|-r [a-z]+\.txt|[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), line
        assert "://" not in line


def test_the_tools_pin_nothing_twice() -> None:
    tools, cuda = pins("dev"), pins("cuda")
    # What a GPU needs to run, a machine without one needs to test.
    assert tools.pop("triton") == cuda.pop("triton")
    assert not tools.keys() & (pins("cpu").keys() | cuda.keys())


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_lists_pin_a_verified_set(name: str) -> None:
    pinned = pins(name)
    fbgemm = pinned["fbgemm-gpu-cpu" if name == "cpu" else "fbgemm-gpu"]
    assert (pinned["torch"], fbgemm, pinned["torchrec"]) == (
        VERIFIED[-1].torch,
        VERIFIED[-1].fbgemm,
        VERIFIED[-1].torchrec,
    )


def test_the_pins_are_what_the_project_declares() -> None:
    pinned = pins("cuda") | pins("dev") | pins("text") | pins("spark")
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), text


def test_the_lists_are_closed_and_consistent() -> None:
    """--no-deps installs nothing that is not listed: so every requirement must be."""
    pinned = pins("cpu") | pins("dev") | pins("text") | pins("spark")
    checked = 0
    for package, pinned_version in pinned.items():
        try:
            here = version(package)
        except PackageNotFoundError:
            continue
        if here.partition("+")[0] != pinned_version:
            continue
        for text in requires(package) or []:
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            # The CPU build of fbgemm has another name; a CUDA torch brings its libraries.
            if name == "fbgemm-gpu" or name.startswith(("nvidia-", "cuda-", "triton")):
                continue
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                assert wanted.specifier.contains(pinned[name]), f"{package} wants {text}"
                checked += 1
    assert checked > 100


def test_every_import_is_a_declared_dependency() -> None:
    extra = PROJECT["optional-dependencies"]["text"]  # imported where it is asked for alone
    declared = {
        canonicalize_name(Requirement(text).name) for text in [*PROJECT["dependencies"], *extra]
    }
    owners = packages_distributions()
    for path in sorted((ROOT / "hisac_rec").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for module in {one.partition(".")[0] for one in modules}:
                if module in sys.stdlib_module_names or module == "hisac_rec":
                    continue
                given = {canonicalize_name(owner) for owner in owners.get(module, [module])}
                given = {"fbgemm-gpu" if one == "fbgemm-gpu-cpu" else one for one in given}
                # pydantic's own core comes with it.
                given = {"pydantic" if one == "pydantic-core" else one for one in given}
                # A CUDA build of torch brings Triton; only what runs on a GPU imports it.
                if module == "triton" and path.parent.name == "soft_route":
                    continue
                # The folder is used with the extra alone, whose packages need not be here.
                if path.parent.name == "spark" and module in pins("spark"):
                    continue
                assert given & declared, f"{path}: {module} is not in [project.dependencies]"


def test_the_dependencies_page_names_each_one() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    named = {canonicalize_name(name) for name in re.findall(r"^- `([\w.-]+)`", page, re.MULTILINE)}
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *(text for extra in extras.values() for text in extra)]
    assert named == {canonicalize_name(Requirement(text).name) for text in texts}


@pytest.mark.parametrize("constraint", ["", "torch<=2.99"])
def test_an_absent_build_is_told_from_other_failures_of_pip(
    installer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constraint: str
) -> None:
    """The fall-back to the default torch hangs on a phrase of pip's: ask pip itself."""
    file = tmp_path / "constraints.txt"
    file.write_text(constraint)
    monkeypatch.setenv("PIP_CONSTRAINT", str(file))

    def said(*arguments: str) -> bool:
        with pytest.raises(installer.InstallError) as caught:
            installer.pip("install", *arguments)
        return any(phrase in caught.value.args[1] for phrase in installer.NO_SUCH_BUILD)

    assert said("--no-index", "--no-deps", "torch==2.13.0+nosuchbuild")
    assert not said("--no-such-option")


def test_a_missing_pin_is_named(installer: ModuleType) -> None:
    assert installer.pinned("cpu", "torch") == VERIFIED[-1].torch
    with pytest.raises(installer.InstallError, match="no line 'nosuch==<version>'"):
        installer.pinned("cpu", "nosuch")


def test_the_installer_refuses_a_python_outside_an_environment() -> None:
    base = Path(sys.base_prefix) / "bin" / "python3"
    if not base.exists():
        pytest.skip("no base interpreter beside this environment")
    done = subprocess.run(
        [base, "-S", LISTS / "install.py", "runtime"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "virtual environment" in done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what make looks at, with an environment that claims to be installed."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(LISTS, tmp_path / "requirements")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", ".installed-runtime-auto", ".installed-dev"):
        (tmp_path / ".venv" / name).touch()
    return tmp_path


def make(checkout: Path, *arguments: str) -> str:
    """What make says, without the settings of a make that runs these tests."""
    done = subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("M")},
    )
    return done.stdout


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_a_second_make_installs_nothing(checkout: Path) -> None:
    assert "install.py" not in make(checkout, "-n", "test")
    assert "hisac-rec demo" in make(checkout, "-n", "demo")


@needs_make
@pytest.mark.parametrize(
    ("changed", "installs"),
    [
        ("requirements/cpu.txt", ["runtime", "dev"]),
        ("pyproject.toml", ["runtime", "dev"]),
        ("requirements/dev.txt", ["dev"]),
    ],
)
def test_a_changed_list_installs_again(checkout: Path, changed: str, installs: list[str]) -> None:
    later = (checkout / ".venv" / ".installed-dev").stat().st_mtime + 10
    os.utime(checkout / changed, (later, later))
    assert re.findall(r"install\.py (\w+)", make(checkout, "-n", "test")) == installs


@needs_make
def test_another_device_installs_again(checkout: Path) -> None:
    told = make(checkout, "-n", "demo", "DEVICE=cuda", "TORCH_INDEX=file:///wheels")
    assert "install.py runtime --device 'cuda' --torch-index 'file:///wheels'" in told


@needs_make
def test_plain_make_says_what_there_is(checkout: Path) -> None:
    told = make(checkout)
    for target in (
        "demo",
        "test",
        "lint",
        "format",
        "types",
        "docs",
        "submissions",
        "spark",
        "wheel",
        "clean",
    ):
        assert re.search(rf"make {target} +\S", told), target


def test_ci_runs_what_a_newcomer_runs() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands[-1] == "exec make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
