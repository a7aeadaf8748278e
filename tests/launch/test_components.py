from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from builders import write_prepared

from hisac_rec.planning.plan_io import load_plan
from hisac_rec.semantic.config import SemanticIdConfig
from hisac_rec.semantic.fit import fit_semantic_ids

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = ROOT / "launch" / "components.py"


def torchx(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """``torchx`` of this environment, in the repository root, PATH without the environment."""
    bare = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if not part.startswith(sys.prefix)
    )
    return subprocess.run(
        [str(Path(sys.executable).with_name("torchx")), *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": bare, "OMP_NUM_THREADS": "1"},
        check=check,
        capture_output=True,
        text=True,
        timeout=300,
    )


def dry_run(scheduler: str, component: str, *arguments: str) -> str:
    """What would be submitted."""
    shown = torchx(
        "run", "--dryrun", "-s", scheduler, f"launch/components.py:{component}", *arguments
    ).stdout
    return shown.split("=== SCHEDULER REQUEST ===")[1]


TRAIN = (
    *("--model", "hisac", "--data", "/data/my shop", "--out", "/runs/x"),
    *("--planner", "launch/planners/8xh100.toml", "-j", "2x4"),
    *("--cpu", "48", "--gpu", "4", "--memMB", "200000"),
)
COMMAND = [
    *("-m", "hisac_rec", "train", "hisac", "/data/my shop", "--out", "/runs/x"),
    *("--planner", "launch/planners/8xh100.toml", "--set", "train.epochs=1"),
]


def is_this_python(word: str) -> bool:
    """True for any name of this environment's interpreter."""
    return Path(word).parent == Path(sys.executable).parent and "python" in Path(word).name


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_slurm_gets_one_task_per_host_with_its_resources_and_the_command():
    script = dry_run("slurm", "train", *TRAIN, "--", "--set", "train.epochs=1")
    groups = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name")]
    assert [after(re.split("[ =]", group), "--job-name") for group in groups] == [
        "train-0",
        "train-1",
    ]
    for group in groups:
        for option in ("--cpus-per-task=48", "--gpus-per-task=4", "--mem=200000"):
            assert option in group
        assert "--ntasks-per-node=1" in group
    assert "TORCHX_MAX_RETRIES=0" in script
    shells = re.findall(r"bash -c (.*?)(?: :\\)?\n", script)
    assert len(shells) == 2
    for number, shell in enumerate(shells):
        (line,) = shlex.split(shell)
        words = shlex.split(line)
        assert is_this_python(words[1])
        assert words[2:4] == ["-m", "torch.distributed.run"]
        assert after(words, "--nnodes") == "2"
        assert after(words, "--nproc-per-node") == "4"
        assert after(words, "--node-rank") == str(number)
        assert after(words, "--master-addr") == "${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}"
        assert after(words, "--master-port") == "29500"
        assert words[-len(COMMAND) :] == COMMAND


def test_a_varying_number_of_hosts_meets_where_agents_can_join_later():
    arguments = ("--model", "hisac", "--data", "d", "--out", "/runs/x", "-j", "2:4x8")
    script = dry_run("slurm", "train", *arguments)
    shells = re.findall(r"bash -c (.*?)(?: :\\)?\n", script)
    assert len(shells) == 4
    for shell in shells:
        words = shlex.split(shlex.split(shell)[0])
        assert after(words, "--nnodes") == "2:4"
        assert after(words, "--rdzv-backend") == "c10d"
        endpoint = after(words, "--rdzv-endpoint")
        assert endpoint == "${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500"


def test_a_retried_slurm_job_goes_on_from_its_checkpoint(tmp_path: Path):
    out = tmp_path / "my run"
    arguments = ("--model", "hisac", "--data", "d", "--out", str(out))
    script = dry_run("slurm", "train", *arguments, "--max_retries", "3")
    assert "TORCHX_MAX_RETRIES=3" in script
    (shell,) = re.findall(r"bash -c (.*)\n", script)
    (line,) = shlex.split(shell)
    # The shell line itself, with the launcher replaced by something that prints its arguments.
    printed = re.sub(r"^exec \S+", r"printf '%s\\n'", line)

    def words() -> list[str]:
        done = subprocess.run(["bash", "-c", printed], check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert words()[-2:] == ["--out", str(out)]
    out.mkdir(parents=True)
    (out / "config.toml").touch()
    assert words()[-3:] == ["--out", str(out), "--resume"]


def test_kubernetes_gets_the_image_the_command_and_the_resources():
    job = yaml.safe_load(
        dry_run(
            *("kubernetes", "train", *TRAIN, "--image", "example/hisac:1"),
            *("--env", "NCCL_DEBUG=INFO", "--max_retries", "2"),
            *("--mounts", "type=bind,src=/data,dst=/data,readonly"),
            *("--", "--set", "train.epochs=1"),
        )
    )
    assert job["kind"] == "Job"
    assert job["spec"]["queue"] == "default"  # from .torchxconfig
    assert job["spec"]["maxRetry"] == 2
    tasks = job["spec"]["tasks"]
    assert [task["name"] for task in tasks] == ["train-0", "train-1"]
    hosts = ("TORCHX_RANK0_HOST", "VC_TRAIN_0_HOSTS")
    for task, host in zip(tasks, hosts, strict=True):
        assert task["replicas"] == task["minAvailable"] == 1
        (container,) = task["template"]["spec"]["containers"]
        assert container["image"] == "example/hisac:1"
        assert container["command"][:2] == ["bash", "-c"]
        words = shlex.split(container["command"][2].split(" $(test")[0])
        assert words[:4] == ["exec", "python", "-m", "torch.distributed.run"]
        assert after(words, "--node-rank") == task["name"].removeprefix("train-")
        assert after(words, "--master-addr") == f"${{{host}:=localhost}}"
        assert words[-len(COMMAND) :] == COMMAND
        assert container["resources"]["limits"] == {
            "cpu": "48000m",
            "memory": "200000M",
            "nvidia.com/gpu": "4",
        }
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["NCCL_DEBUG"] == "INFO"
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert mounts["/data"]["readOnly"] is True
        assert "/dev/shm" in mounts


@pytest.mark.parametrize("command", ["compress", "score"])
def test_serving_renders_too(command):
    rendered = dry_run("slurm", command, "--run", "/runs/x", "--out", "/cache", "-j", "1x8")
    words = shlex.split(re.search(r"bash -c (.*)\n", rendered)[1])[0].split()
    assert words[-6:] == ["-m", "hisac_rec", command, "/runs/x", "--out", "/cache"]


def test_evaluate_and_semantic_ids_render_too():
    (shell,) = re.findall(
        r"bash -c (.*)\n", dry_run("slurm", "evaluate", "--run", "/runs/x", "-j", "1x8")
    )
    words = shlex.split(shlex.split(shell)[0])
    assert words[-4:] == ["-m", "hisac_rec", "evaluate", "/runs/x"]
    assert after(words, "--nproc-per-node") == "8"
    assert after(words, "--rdzv-endpoint") == "localhost:0"
    (shell,) = re.findall(
        r"bash -c (.*)\n",
        dry_run("slurm", "semantic_ids", "--data", "d", "--", "--set", "codes=[8, 4]"),
    )
    words = shlex.split(shlex.split(shell)[0])
    assert is_this_python(words[1])
    assert words[2:] == ["-m", "hisac_rec", "semantic-ids", "d", "--set", "codes=[8, 4]"]


def test_compare_and_tune_render_too():
    both = ("--models", "hisac,models/my din.toml", "--out", "/results/x")
    (shell,) = re.findall(
        r"bash -c (.*)\n",
        dry_run("slurm", "compare", *both, "--data", "/data/a,/data/b", "--", "--seeds", "3"),
    )
    words = shlex.split(shlex.split(shell)[0])
    assert words[2:7] == ["-m", "hisac_rec", "compare", "hisac", "models/my din.toml"]
    assert words[7:11] == ["--data", "/data/a", "--data", "/data/b"]
    assert words[11:] == ["--out", "/results/x", "--seeds", "3"]
    (shell,) = re.findall(
        r"bash -c (.*)\n",
        dry_run("slurm", "tune", *both, "--data", "/data/a", "-j", "1x4", "--", "--trials", "9"),
    )
    words = shlex.split(shlex.split(shell)[0])
    assert after(words, "--nproc-per-node") == "4"
    assert words[-9:] == [
        *("tune", "hisac", "models/my din.toml", "--data", "/data/a"),
        *("--out", "/results/x", "--trials", "9"),
    ]


def test_several_settings_reach_the_command():
    given = ("--set=train.epochs=3", "--set=train.seed=1")
    arguments = ("--model", "hisac", "--data", "d", "--out", "/runs/x", "--", *given)
    (shell,) = re.findall(r"bash -c (.*)\n", dry_run("slurm", "train", *arguments))
    assert shlex.split(shlex.split(shell)[0])[-2:] == [*given]


def test_a_dollar_in_an_argument_stays_a_dollar():
    (shell,) = re.findall(
        r"bash -c (.*)\n", dry_run("slurm", "evaluate", "--run", "/runs/$HOME $$ `ls`")
    )
    words = shlex.split(shlex.split(shell)[0])
    assert words[-1] == "/runs/$HOME $$ `ls`"


def test_a_missing_argument_is_an_error():
    done = torchx(
        *("run", "--dryrun", "-s", "local_cwd", "launch/components.py:train", "--model", "hisac"),
        check=False,
    )
    assert done.returncode != 0
    assert "--data" in done.stderr


def test_the_component_file_needs_torchx_alone():
    tree = ast.parse(COMPONENTS.read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= {*sys.stdlib_module_names, "torchx"}
    loaded = subprocess.run(
        [sys.executable, "-c", "import runpy, sys; runpy.run_path(sys.argv[1]); "
         "print('torch' in sys.modules)", str(COMPONENTS)],
        check=True,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "False"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set with semantic ids."""
    content = np.random.default_rng(0).normal(size=(60, 6))
    prepared = write_prepared(
        tmp_path_factory.mktemp("launch") / "my data", items=60, users=40, content=content
    )
    fit_semantic_ids(prepared, SemanticIdConfig(source="content", codes=[4, 3]), "cpu")
    return prepared.root


@pytest.mark.distributed
def test_a_job_of_two_processes_trains_on_this_machine(data: Path, tmp_path: Path):
    out = tmp_path / "my run"
    done = torchx(
        *("run", "-s", "local_cwd", "launch/components.py:train", "-j", "1x2"),
        *("--model", "models/hisac.toml", "--data", str(data), "--out", str(out)),
        *("--planner", "2xcpu", "--", "--set", "train.epochs=1"),
    )
    assert "Job finished: SUCCEEDED" in done.stderr
    assert load_plan(out / "plan.json").world_size == 2
    assert json.loads((out / "run.json").read_text())["world_size"] == 2
    assert list((out / "checkpoints").glob("step-*"))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_comparison_runs_as_a_job(data: Path, tmp_path: Path):
    out = tmp_path / "my results"
    done = torchx(
        *("run", "-s", "local_cwd", "launch/components.py:compare"),
        *("--models", "mean_pooling,no_history", "--data", str(data), "--out", str(out)),
        *("--", "--seeds", "1", "--set", "train.epochs=1"),
    )
    assert "Job finished: SUCCEEDED" in done.stderr
    assert len(list((out / "cells" / "my data").glob("*/seed0.json"))) == 2
    assert "mean pooling" in (out / "report.md").read_text()


@pytest.mark.distributed
def test_a_job_that_fails_says_why_and_exits_with_an_error(tmp_path: Path):
    done = torchx(
        *("run", "-s", "local_cwd", "launch/components.py:semantic_ids"),
        *("--data", str(tmp_path / "nothing")),
        check=False,
    )
    assert done.returncode != 0
    assert "nothing: not a prepared data set" in done.stderr
