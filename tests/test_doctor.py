"""The doctor: what it says of wrong versions, of failures, and of the stack that is here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hisac_rec.cli.doctor import run
from hisac_rec.doctor import (
    VERIFIED,
    Finding,
    Stack,
    Stage,
    check_stack,
    explain_failure,
    explain_failures,
    gpu_files,
    installed_stack,
    judge_machine,
    judge_stack,
    probe,
)
from hisac_rec.errors import UserError

GOOD_CPU = Stack(torch="2.13.0+cpu", fbgemm_gpu=None, fbgemm_gpu_cpu="1.8.0", torchrec="1.8.0")
GOOD_CUDA = Stack(torch="2.13.0", fbgemm_gpu="1.8.0", fbgemm_gpu_cpu=None, torchrec="1.8.0")


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("stack", "gpus"),
    [
        (GOOD_CPU, 0),
        (GOOD_CUDA, 8),
        # The default torch of a machine where no CPU build can be had.
        (Stack("2.13.0", None, "1.8.0", "1.8.0"), 0),
        (Stack("2.13.0+cu130", "1.8.0+cu130", None, "1.8.0"), 1),
    ],
)
def test_nothing_is_wrong_with_a_verified_set(stack: Stack, gpus: int) -> None:
    assert judge_stack(stack, gpus) == []


@pytest.mark.parametrize(
    "stack",
    [
        Stack("2.12.0+cpu", None, "1.8.0", "1.8.0"),
        Stack("2.13.0+cpu", None, "1.7.0", "1.8.0"),
        Stack("2.13.0+cpu", None, "1.8.0", "1.9.2"),
    ],
)
def test_mismatched_versions_are_named_beside_the_verified_ones(stack: Stack) -> None:
    finding = only(judge_stack(stack, gpus=0))
    assert finding.wrong
    assert f"torch {str(stack.torch).removesuffix('+cpu')} + fbgemm {stack.fbgemm}" in finding.what
    assert str(VERIFIED[0]) in finding.meaning
    assert "--device cpu" in finding.mend


@pytest.mark.parametrize(
    ("stack", "gpus", "what", "wrong"),
    [
        (Stack("2.13.0", None, None, None), 0, "fbgemm-gpu, torchrec not installed", True),
        (Stack("2.13.0", "1.8.0", "1.8.0", "1.8.0"), 1, "both fbgemm-gpu and", True),
        (Stack("2.13.0+cpu", "1.8.0", None, "1.8.0"), 0, "torch is a CPU build", True),
        (Stack("2.13.0", None, "1.8.0", "1.8.0"), 1, "fbgemm a cpu build", True),
        (GOOD_CPU, 4, "4 GPU(s) here", False),
        (GOOD_CUDA, 0, "no NVIDIA driver", True),
    ],
)
def test_builds_that_do_not_fit_the_machine(
    stack: Stack, gpus: int, what: str, wrong: bool
) -> None:
    finding = only(judge_stack(stack, gpus))
    assert what in finding.what
    assert finding.wrong == wrong
    assert ("--device cuda" if gpus else "--device cpu") in finding.mend


def metadata(folder: Path, package: str, version: str) -> None:
    """What an installed package of another version leaves for importlib.metadata."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    name = package.replace("_", "-")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_training_refuses_mismatched_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata(tmp_path, "torchrec", "1.2.0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as caught:
        check_stack()
    message = str(caught.value)
    assert "torchrec 1.2.0 is not a verified set" in message
    assert str(VERIFIED[0]) in message
    assert "To mend it: " in message
    assert "hisac-rec doctor" in message


def test_the_installed_packages_are_a_verified_set() -> None:
    check_stack()
    assert installed_stack().torchrec == VERIFIED[-1].torchrec


@pytest.mark.parametrize(
    ("error", "meaning", "mend"),
    [
        ("ImportError: x.so: undefined symbol: _ZN3c104cuda", "built against another torch", ""),
        (
            "OSError: libnvidia-ml.so.1: cannot open shared object file\n"
            "The above exception was the direct cause\n"
            "OSError: Could not load this library: fbgemm_gpu_py.so",
            "without the NVIDIA driver",
            "--device cpu",
        ),
        ("OSError: libtorch_cuda.so: cannot open shared", "torch a CPU build", ""),
        ("OSError: libcudart.so.12: cannot open shared", "another major version", ""),
        ("ModuleNotFoundError: No module named 'tensordict'", "is absent", "install.py"),
        ("AttributeError: '_OpNamespace' 'fbgemm' object has no attribute", "do not fit", ""),
        ("version `GLIBC_2.28' not found", "operating system", "glibc 2.28"),
        ("RuntimeError: The NVIDIA driver on your system is too old", "driver is older", "update"),
        ("\ncrashed (signal 11)", "native code crashed", "install.py"),
        ("\ncrashed (signal 4)", "instructions", "processor"),
        ("no answer within 180 s", "collectives", "/etc/hosts"),
        ("ValueError: something new", "not a failure that is known", "docs/install.md"),
    ],
)
def test_a_failure_is_explained(error: str, meaning: str, mend: str) -> None:
    finding = explain_failure(Stage("fbgemm", ok=False, detail=error))
    assert meaning in finding.meaning
    assert mend in finding.mend
    assert finding.what.startswith("fbgemm: ")


def test_the_telling_line_is_shown_and_one_cause_is_told_once() -> None:
    error = "OSError: libtorch_cuda.so: cannot open\nOSError: Could not load this library: x.so"
    stages = [
        Stage("torch", ok=True, detail="fine"),
        Stage("fbgemm", ok=False, detail=error),
        Stage("torchrec", ok=False, detail=error),
    ]
    assert only(explain_failures(stages)).what == "fbgemm: OSError: libtorch_cuda.so: cannot open"


def child(code: str) -> list[str]:
    begin = 'import sys; print(\'{"name": "fbgemm", "ok": null, "detail": ""}\', flush=True)\n'
    return [sys.executable, "-c", begin + code]


def test_a_crash_is_put_down_to_the_stage_in_which_it_happened() -> None:
    stages = probe(child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    assert [(stage.name, stage.ok) for stage in stages] == [("fbgemm", False)]
    assert "crashed (signal 11)" in stages[0].detail


def test_a_hang_ends_and_is_told() -> None:
    (stage,) = probe(child("import time; time.sleep(60)"), seconds=1.0)
    assert not stage.ok
    assert "no answer within 1 s" in stage.detail


def test_a_probe_that_cannot_start_is_a_failure() -> None:
    (stage,) = probe([sys.executable, "-c", "raise ImportError('undefined symbol: x')"])
    assert (stage.name, stage.ok) == ("start", False)
    assert "another torch" in explain_failure(stage).meaning


def test_little_shared_memory_and_disk_are_noted_not_wrong() -> None:
    findings = judge_machine(shared_memory=64 * 2**20, free_disk=2**30)
    assert ["64 MiB" in findings[0].what, "1.0 GiB" in findings[1].what] == [True, True]
    assert not any(finding.wrong for finding in findings)
    assert judge_machine(shared_memory=None, free_disk=2**40) == []


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(run)
    return app


def test_the_stack_here_works(command: typer.Typer) -> None:
    result = CliRunner().invoke(command)
    assert result.exit_code == 0, result.output
    for name in ("torch", "fbgemm", "torchrec", "gloo", "nccl"):
        assert f"try {name} " in result.output
    assert "FAILS" not in result.output


@pytest.mark.skipif(bool(gpu_files()), reason="expects the CPU install")
def test_wrong_versions_end_with_code_2_and_a_command(
    command: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata(tmp_path, "fbgemm_gpu", "1.7.0")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(command)
    assert result.exit_code == 2
    assert "Wrong: torch 2.13.0 + fbgemm 1.7.0 + torchrec 1.8.0" in result.output
    assert "mend it: " in result.output
