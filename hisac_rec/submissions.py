"""Write ``launch/submissions/`` anew: a training as batch scripts and Kubernetes objects.

For those who submit with sbatch or kubectl rather than with torchx::

    python -m hisac_rec.submissions launch/submissions

What runs in them is what ``launch/components.py`` makes. Two are torchx's own rendering, one
task per host; the other two hold for any number of hosts and use the scheduler's own means.
``docs/launching.md`` explains them, ``tests/launch/test_submissions.py`` checks them.
"""

from __future__ import annotations

import argparse
import copy
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from torchx import specs
from torchx.schedulers import kubernetes_scheduler, slurm_scheduler

from hisac_rec.shipped import shipped_folder

NAME = "hisac-train"
HOSTS, GPUS, CPUS, MEMORY_MB = 2, 8, 96, 1_900_000
RETRIES = 10
GRACE = 240
"""Seconds to save and end after a SIGTERM."""
WARNING = 300
"""Seconds between SIGTERM and SIGKILL: the grace, and torchrun's own clearing up."""
PORT = 29500
FOLDER = "/shared"
PYTHON = "/shared/hisac_rec/.venv/bin/python"
IMAGE = "registry.example/hisac-rec:0.1.0-cuda"
USER = 1000
"""The user of the image, see Dockerfile."""
FIRST = "FIRST_HOST"
"""Environment variable with the first host's name, where the scheduler gives none."""

SAME: dict[str, str] = {
    "/shared/data/shop": "prepared data with semantic IDs, on storage that all hosts share",
    "/shared/runs/shop": "folder of the run, on the same storage: checkpoints and all",
    "16xh100": "planner config of this cluster; hosts x GPUs must be its world size",
}
SLURM: dict[str, str] = {
    PYTHON: "interpreter of an environment with hisac_rec, on shared storage",
    "--partition=gpu": "partition of the GPU nodes",
    "--time=2-00:00:00": "longest run; when it is over the job saves, is queued again and goes on",
    f"--cpus-per-task={CPUS}": "processors of a node",
    f"--mem={MEMORY_MB}": "main memory of a node, MB",
    f"--nproc-per-node {GPUS}": "GPUs of a node",
}
KUBERNETES: dict[str, str] = {
    f"image: {IMAGE}": "image that holds hisac_rec, see Dockerfile",
    "claimName: shared": "claim of a volume that many nodes can write (ReadWriteMany)",
    f"cpu: {CPUS}000m": "processors of a node; the request is a little lower",
    f"memory: {MEMORY_MB}M": "main memory of a node; the request is a little lower",
    f"nvidia.com/gpu: '{GPUS}'": "GPUs of a node",
    f"--nproc-per-node {GPUS}": "the same number",
}


def render() -> dict[str, str]:
    """File name -> text of every submission."""
    return {
        "slurm.sh": _slurm(),
        "slurm-hetjob.sh": _slurm_hetjob(),
        "kubernetes-volcano.yaml": _volcano(),
        "kubernetes-job.yaml": _indexed_job(),
    }


def _train(image: str) -> specs.AppDef:
    component = runpy.run_path(str(shipped_folder("launch") / "components.py"))["train"]
    return component(
        model="hisac",
        data="/shared/data/shop",
        out="/shared/runs/shop",
        planner="16xh100",
        j=f"{HOSTS}x{GPUS}",
        cpu=CPUS,
        gpu=GPUS,
        memMB=MEMORY_MB,
        image=image,
        max_retries=RETRIES,
        mounts=["type=volume", "src=shared", f"dst={FOLDER}"] if image else None,
        rdzv_port=PORT,
        grace=GRACE,
        name=NAME,
    )


def _any_host(image: str, number: str) -> specs.Role:
    """The role of one host whose number a variable of the environment holds."""
    (role,) = _train(image).roles
    values = specs.macros.Values(img_root="", app_id=NAME, replica_id=number, rank0_env=FIRST)
    return values.apply(role)


def _slurm() -> str:
    role = _any_host("", "$SLURM_NODEID")
    line = " ".join(map(shlex.quote, [role.entrypoint, *role.args]))
    options = [
        *(f"--job-name={NAME}", f"--nodes={HOSTS}", "--ntasks-per-node=1"),
        *(f"--gpus-per-node={GPUS}", f"--cpus-per-task={CPUS}", f"--mem={MEMORY_MB}"),
        *("--partition=gpu", "--time=2-00:00:00"),
        *("--requeue", f"--signal=TERM@{WARNING}", "--open-mode=append", "--output=%x-%j.out"),
    ]
    own = {f"--nodes={HOSTS}": "nodes", f"--nnodes {HOSTS}": "the same number"}
    own |= {f"--gpus-per-node={GPUS}": "GPUs of a node"}
    return "\n".join(
        [
            "#!/bin/bash",
            *_head("sbatch slurm.sh", SAME | own | SLURM, "#"),
            *(f"#SBATCH {option}" for option in options),
            "",
            f'{FIRST}=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            f"export {FIRST}",
            "",
            "# One task a node, all ended once one has failed. SIGTERM goes to the tasks, not to",
            "# this script, which stays to queue the job again.",
            f"srun --kill-on-bad-exit=1 --wait={WARNING} {_without_path(line)}",
            "code=$?",
            f'if [ "$code" -ne 0 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RETRIES} ]; then',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def _slurm_hetjob() -> str:
    options = {"partition": "gpu", "time": "2-00:00:00"}
    request = slurm_scheduler.create_scheduler("hisac").submit_dryrun(_train(""), options).request
    text = _without_path(request.materialize())
    shebang, _, rest = text.partition("\n#\n")
    rest = re.sub(r"^# (Generated by TorchX \S+)\n# Run with: .*\n#\n", r"# \1\n", rest)
    # What torchx has no option for: time to save before the end, logs kept over restarts.
    rest = re.sub(r"(#SBATCH --job-name=\S+)", rf"\1 --signal=TERM@{WARNING}", rest)
    rest = rest.replace("--wait=60", f"--wait={WARNING}")
    rest = rest.replace("export SLURM_UNB", "export SLURM_OPEN_MODE=append\nexport SLURM_UNB")
    gpus = {f"--gpus-per-task={GPUS}": "GPUs of a node"}
    head = _head("sbatch slurm-hetjob.sh", SAME | SLURM | gpus, "#")
    return "\n".join([shebang, *head, rest])


def _volcano() -> str:
    with warnings.catch_warnings():
        # That Volcano 1.4 did not retry: later ones do.
        warnings.simplefilter("ignore")
        resource = kubernetes_scheduler.app_to_resource(_train(IMAGE), "default", None)
    plain: Any = kubernetes_scheduler.sanitize_for_serialization(resource)
    for task in plain["spec"]["tasks"]:
        _finish_pod(task["template"])
    unique = plain["metadata"]["name"]
    text = _dump([plain]).replace(f"kubernetes://torchx/{unique}", NAME).replace(unique, NAME)
    own = {"queue: default": "Volcano's queue"}
    return _marked("kubectl create -f kubernetes-volcano.yaml", SAME | own | KUBERNETES, text)


def _indexed_job() -> str:
    role = _any_host(IMAGE, "$JOB_COMPLETION_INDEX")
    role.env[FIRST] = f"{NAME}-0.{NAME}"
    pod: Any = kubernetes_scheduler.sanitize_for_serialization(
        kubernetes_scheduler.role_to_pod(NAME, role, None)
    )
    _finish_pod(pod)
    # The pods' names: <job>-<index>.<service>.
    pod["spec"]["subdomain"] = NAME
    taken = {"type": "DisruptionTarget", "status": "True"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": NAME},
            "ports": [{"name": "c10d", "port": PORT}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": NAME},
        "spec": {
            "completionMode": "Indexed",
            "completions": HOSTS,
            "parallelism": HOSTS,
            # Of pods, and a failure takes those of all hosts.
            "backoffLimit": HOSTS * RETRIES,
            "podReplacementPolicy": "Failed",
            # What the cluster takes away is no failure.
            "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [taken]}]},
            "template": pod,
        },
    }
    own = {
        f"completions: {HOSTS}": "nodes",
        f"parallelism: {HOSTS}": "the same number",
        f"--nnodes {HOSTS}": "the same number",
        f"backoffLimit: {HOSTS * RETRIES}": "nodes x retries",
    }
    text = _dump([service, job])
    return _marked("kubectl create -f kubernetes-job.yaml", SAME | own | KUBERNETES, text)


def _finish_pod(pod: dict[str, Any]) -> None:
    """What torchx has no option for: time to save, and the image's user on the volume."""
    pod["spec"]["terminationGracePeriodSeconds"] = WARNING
    pod["spec"]["securityContext"] = {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER}


def _without_path(text: str) -> str:
    """The text with the interpreter that runs this replaced by the one to edit."""
    return text.replace(shlex.quote(sys.executable), PYTHON)


def _dump(objects: list[Any]) -> str:
    # Copies: YAML would write what occurs twice as an anchor.
    return yaml.safe_dump_all(copy.deepcopy(objects), sort_keys=False, width=96)


def _head(command: str, values: dict[str, str], sign: str) -> list[str]:
    width = max(map(len, values))
    return [
        f"{sign} {HOSTS} nodes of {GPUS} GPUs train the shipped model 'hisac': {command}",
        f"{sign} Written by `make submissions`, explained in docs/launching.md. EDIT these values,",
        f"{sign} wherever they stand below:",
        *(f"{sign}   {value.ljust(width)}  {why}" for value, why in values.items()),
        sign,
    ]


def _marked(command: str, values: dict[str, str], text: str) -> str:
    """YAML with its head, and a mark at every line that holds one of the values."""
    lines = []
    for line in text.splitlines():
        folded = line.lstrip().startswith(("exec ", "--", "${")) or "$(test" in line
        edit = not folded and any(line.strip().removeprefix("- ") == value for value in values)
        lines.append(f"{line} # EDIT" if edit else line)
    return "\n".join([*_head(command, values, "#"), *lines, ""])


def main() -> None:
    """Write the files to the folder given; with ``--check`` only say which are stale."""
    parser = argparse.ArgumentParser(description="Write the ready-to-edit submissions.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where stale")
    given = parser.parse_args()
    folder: Path = given.folder
    for name, text in render().items():
        path = folder / name
        if given.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                sys.exit(f"{path}: stale; run `make submissions`")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
