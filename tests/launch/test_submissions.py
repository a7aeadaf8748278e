# Kubernetes writes its keys in camelCase.
# ruff: noqa: N815
from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import Field

from hisac_rec.config import Strict, load_config
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.shipped import find_config
from hisac_rec.submissions import render

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "launch" / "submissions"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
OBJECTS = sorted(FOLDER.glob("*.yaml"))
RELEASES = ["1.29", "1.32", kubernetes_validate.latest_version()]


def objects(file: Path) -> list[Any]:
    return list(yaml.safe_load_all(file.read_text()))


def pods(file: Path) -> list[Any]:
    """The pod templates of a file, as pods."""
    found = []
    for item in objects(file):
        spec = item["spec"]
        if item["kind"] == "Job":
            templates = [task["template"] for task in spec.get("tasks", [])] or [spec["template"]]
            found += [{"apiVersion": "v1", "kind": "Pod", **template} for template in templates]
    return found


def shells(file: Path) -> list[list[str]]:
    """Words of each line that starts torchrun on a host."""
    if file.suffix == ".yaml":
        lines = [pod["spec"]["containers"][0]["command"] for pod in pods(file)]
        assert all(line[:2] == ["bash", "-c"] for line in lines)
        return [shlex.split(line[2]) for line in lines]
    quoted = re.findall(r"bash -c (.*?)(?: :\\)?\n", file.read_text())
    return [shlex.split(shlex.split(line)[0]) for line in quoted]


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=lambda file: file.name)


def test_they_are_what_the_components_make() -> None:
    made = render()
    assert sorted(made) == sorted(path.name for path in SCRIPTS + OBJECTS)
    stale = [name for name, text in made.items() if (FOLDER / name).read_text() != text]
    assert not stale, "run `make submissions`"


@each(SCRIPTS + OBJECTS)
def test_the_head_names_what_stands_below(file: Path) -> None:
    head, body = re.split(r"^#$", file.read_text(), maxsplit=1, flags=re.MULTILINE)
    named = re.findall(r"^#   (\S.*?)  +\S", head, flags=re.MULTILINE)
    assert len(named) > 8
    words = " ".join(body.split())
    for value in named:
        assert f" {value} " in f"{words} ", value
        if file.suffix == ".yaml" and ": " in value:
            marked = [line for line in body.splitlines() if line.strip(" -").startswith(value)]
            assert marked
            assert all(line.endswith(" # EDIT") for line in marked)


@each(SCRIPTS + OBJECTS)
def test_the_values_fit_each_other(file: Path) -> None:
    found = shells(file)
    assert found
    for words in found:
        hosts, processes = int(after(words, "--nnodes")), int(after(words, "--nproc-per-node"))
        planner = load_config(
            PlannerConfig, find_config("launch/planners", after(words, "--planner"))
        )
        topology = planner.topology
        assert (hosts, processes) == (topology.hosts, topology.devices_per_host)
        # A retried job goes on where it was.
        out = after(words, "--out")
        assert words[-6:] == ["$(test", "-f", f"{out}/config.toml", "&&", "echo", "--resume)"]
        text = file.read_text()
        told = re.search(r"--signal=TERM@(\d+)|terminationGracePeriodSeconds: (\d+)", text)
        assert told is not None
        # torchrun kills what has not ended in its grace; the scheduler kills torchrun later.
        assert 30 < int(after(words, "--shutdown-timeout")) < int(told[1] or told[2])


@each(SCRIPTS)
def test_the_scripts_are_sound(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    # Single quotes are meant: what they hold is for the shell on each host.
    checker = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [str(checker), "--exclude=SC2016", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("release", RELEASES)
@each(OBJECTS)
def test_kubernetes_takes_the_objects(file: Path, release: str) -> None:
    checked = [item for item in objects(file) if "volcano" not in item["apiVersion"]]
    for item in [*checked, *pods(file)]:
        kubernetes_validate.validate(item, release, strict=True)


@each(OBJECTS)
def test_the_check_against_the_schema_can_fail(file: Path) -> None:
    for pod in pods(file):
        wrong = copy.deepcopy(pod)
        wrong["spec"]["terminationGracePeriod"] = 300
        with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
            kubernetes_validate.validate(wrong, RELEASES[-1], strict=True)


NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


class Policy(Strict):
    """What Volcano does at an event."""

    event: str = Field(pattern="^(PodFailed|PodEvicted)$")
    action: str = Field(pattern="^RestartJob$")


class Task(Strict):
    """One task of a Volcano job; the template is checked as a pod."""

    name: str = Field(pattern=NAME, max_length=63)
    replicas: int = Field(ge=0)
    minAvailable: int = Field(ge=0)
    maxRetry: int = Field(ge=0)
    policies: list[Policy]
    template: dict[str, Any]


class VolcanoJob(Strict):
    """The part of Volcano's Job that torchx writes, as its resource definition describes it."""

    schedulerName: str
    queue: str
    maxRetry: int = Field(ge=0)
    plugins: dict[str, list[str]]
    tasks: list[Task]


def test_volcano_takes_its_job() -> None:
    (job,) = objects(FOLDER / "kubernetes-volcano.yaml")
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    spec = VolcanoJob.model_validate(job["spec"])
    # The job is started when all hosts can be, and its plugin gives them names.
    assert sum(task.minAvailable for task in spec.tasks) == len(spec.tasks) == 2
    assert spec.plugins.keys() >= {"svc", "env"}


@each(OBJECTS)
def test_pods_have_what_training_needs(file: Path) -> None:
    for pod in pods(file):
        spec = pod["spec"]
        (container,) = spec["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/shared"]]
        words = shlex.split(container["command"][2])
        assert after(words, "--out").startswith("/shared/")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == after(
            words, "--nproc-per-node"
        )
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["restartPolicy"] == "Never"


def test_the_pods_of_an_indexed_job_find_the_first_one() -> None:
    service, job = objects(FOLDER / "kubernetes-job.yaml")
    (pod,) = pods(FOLDER / "kubernetes-job.yaml")
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    environment = {one["name"]: one["value"] for one in pod["spec"]["containers"][0]["env"]}
    assert environment["FIRST_HOST"] == f"{name}-0.{service['metadata']['name']}"
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    (words,) = shells(FOLDER / "kubernetes-job.yaml")
    assert after(words, "--nnodes") == str(job["spec"]["completions"])
    assert after(words, "--node-rank") == "$JOB_COMPLETION_INDEX"
