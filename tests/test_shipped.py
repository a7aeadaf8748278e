"""Shipped files by path and by name, in the checkout and in an installed wheel."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from hisac_rec.errors import UserError
from hisac_rec.shipped import find_config, shipped_folder, shipped_names

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("given", ["synthetic", "synthetic.toml", "datasets/synthetic.toml"])
def test_a_name_finds_the_shipped_file_from_anywhere(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("datasets", given) == ROOT / "datasets" / "synthetic.toml"


def test_a_file_here_comes_before_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("synthetic.toml").write_text("")
    assert find_config("datasets", "synthetic.toml") == Path("synthetic.toml")


def test_a_path_elsewhere_is_no_shipped_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a file nor the name"):
        find_config("datasets", tmp_path / "synthetic.toml")


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'synthetic'"):
        find_config("datasets", "synthetik")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_shipped_file_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert b"hisac-rec = hisac_rec.cli.app:main" in archive.read(entry_points)
    for kind in ("models", "models/search", "datasets", "launch/planners"):
        shipped = {f"hisac_rec/shipped/{kind}/{path.name}" for path in (ROOT / kind).glob("*.toml")}
        assert shipped, f"the checkout has no {kind}"
        assert shipped <= names
    assert not [name for name in names if name.startswith(("models/", "datasets/", "tests/"))]


def test_an_installed_wheel_finds_its_files_from_another_folder(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    code = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(site)!r})",
            "from hisac_rec.shipped import find_config, shipped_names",
            "print(find_config('datasets', 'synthetic'))",
            "print(*shipped_names('launch/planners'))",
        ]
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, check=True, capture_output=True, text=True
    )
    found, planners = done.stdout.splitlines()
    assert Path(found) == site / "hisac_rec" / "shipped" / "datasets" / "synthetic.toml"
    assert planners.split() == shipped_names("launch/planners")


def test_the_checkout_uses_its_own_folders() -> None:
    assert shipped_folder("models") == ROOT / "models"


def test_the_demo_runs_from_an_installed_wheel_in_another_environment(
    wheel: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    # torch and the rest come from here; the wheel's own folder stands before them.
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))
    python = [str(environment / "bin" / "python"), "-m", "hisac_rec"]
    small = ["synthetic.users=120", "synthetic.items=600", "semantic_ids.codes=[8,8]"]
    sets = [word for setting in small for word in ("--data-set", setting)]
    done = subprocess.run(
        [*python, "demo", "--out", "shown", *sets, "--set", "train.epochs=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("HiSAC", "no history", "item mean", "oracle"):
        assert name in done.stdout
    assert "shown/runs/hisac/report-test.md" in done.stdout
    assert (tmp_path / "shown" / "runs" / "hisac" / "report-test.md").is_file()
    where = [*python[:1], "-c", "import hisac_rec; print(hisac_rec.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(environment))
