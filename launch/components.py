r"""torchx components: the same command on a laptop, on SLURM and on Kubernetes.

::

    torchx run -s local_cwd launch/components.py:train -j 1x2 \
        --model hisac --data data/ml1m --out runs/two --planner 2xcpu
    torchx run -s slurm launch/components.py:train -j 16x8 --gpu 8 \
        --model hisac --data /shared/data/shop --out /shared/runs/shop --planner 128xh100

What follows ``--`` goes to ``hisac-rec`` as it is: ``... -- --set train.epochs=3``.
``docs/launching.md`` has the rest. Needs torchx alone, nothing of torch.
"""

# torchx reads this file itself: it reads annotations as typing.Optional, List and Dict and as
# objects, and puts module-level names into a namespace of its own, hence the _hisac_ prefix.
# Options and their help come from each component's own signature and docstring: it has no way
# to share them, so the block on resources stands in each.
# ruff: noqa: UP006, UP035, UP045

import shlex
import sys
from pathlib import Path
from typing import Dict, List, Optional

import torchx.specs as specs
from torchx.components.dist import parse_nnodes
from torchx.specs import macros


def train(
    *args: str,
    model: str,
    data: str,
    out: str,
    planner: str = "",
    plan: str = "",
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    max_restarts: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    grace: int = 240,
    name: str = "hisac-train",
) -> specs.AppDef:
    """Train a model file on a prepared data set, on every process of every host.

    Args:
        args: passed on to hisac-rec train; put them after --
        model: model file, or the name of a shipped one
        data: folder of the prepared data set, as the workers see it
        out: folder of the run, on storage that all hosts share
        planner: planner config, or the name of a shipped one; its world size must be that of j
        plan: a plan saved by hisac-rec plan, instead of planner
        j: {hosts}x{processes per host}
        cpu: CPU cores per host
        gpu: GPUs per host
        memMB: memory per host, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts of the whole job by the scheduler; it goes on from the last checkpoint
        max_restarts: restarts of all processes in place by torchrun, on one host; likewise
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        rdzv_port: port on the first host where the processes meet
        grace: seconds to save a checkpoint and end after a SIGTERM; then torchrun kills
        name: name of the job
    """
    command = ["train", model, data, "--out", out]
    command += ["--planner", planner] if planner else []
    command += ["--plan", plan] if plan else []
    resume = f"$(test -f {shlex.quote(out)}/config.toml && echo --resume)"
    return _hisac_app(
        name,
        "train",
        _hisac_torchrun(
            image,
            j,
            rdzv_port,
            [*command, *args],
            resume if max_retries else "",
            grace,
            max_restarts,
        ),
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=rdzv_port,
    )


def evaluate(
    *args: str,
    run: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    name: str = "hisac-evaluate",
) -> specs.AppDef:
    """Evaluate a run on its test split, on any number of processes.

    Args:
        args: passed on to hisac-rec evaluate; put them after --
        run: folder of the run
        j: {hosts}x{processes per host}; need not be what the run was trained on
        cpu: CPU cores per host
        gpu: GPUs per host
        memMB: memory per host, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts of the whole job by the scheduler
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        rdzv_port: port on the first host where the processes meet
        name: name of the job
    """
    return _hisac_app(
        name,
        "evaluate",
        _hisac_torchrun(image, j, rdzv_port, ["evaluate", run, *args], ""),
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=rdzv_port,
    )


def compress(
    *args: str,
    run: str,
    out: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    name: str = "hisac-compress",
) -> specs.AppDef:
    """Compress the histories of a run's users into a cache, on any number of processes.

    Args:
        args: passed on to hisac-rec compress; put them after --
        run: folder of the run
        out: folder of the cache
        j: {hosts}x{processes per host}; need not be what the run was trained on
        cpu: CPU cores per host
        gpu: GPUs per host
        memMB: memory per host, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts of the whole job by the scheduler
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        rdzv_port: port on the first host where the processes meet
        name: name of the job
    """
    return _hisac_app(
        name,
        "compress",
        _hisac_torchrun(image, j, rdzv_port, ["compress", run, "--out", out, *args], ""),
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=rdzv_port,
    )


def score(
    *args: str,
    run: str,
    out: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    name: str = "hisac-score",
) -> specs.AppDef:
    """Score requests with a run, from histories or from a cache, on any number of processes.

    Args:
        args: passed on to hisac-rec score; put them after --
        run: folder of the run
        out: folder for the scores
        j: {hosts}x{processes per host}; need not be what the run was trained on
        cpu: CPU cores per host
        gpu: GPUs per host
        memMB: memory per host, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts of the whole job by the scheduler
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        rdzv_port: port on the first host where the processes meet
        name: name of the job
    """
    return _hisac_app(
        name,
        "score",
        _hisac_torchrun(image, j, rdzv_port, ["score", run, "--out", out, *args], ""),
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=rdzv_port,
    )


def compare(
    *args: str,
    models: str,
    data: str,
    out: str,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    name: str = "hisac-compare",
) -> specs.AppDef:
    """Compare models on data sets; the one process starts the cells, and goes on when retried.

    Args:
        args: passed on to hisac-rec compare; put them after --, for example --seeds 3 --jobs 8
        models: model files or names of shipped ones, separated by commas
        data: folders of prepared data sets, separated by commas
        out: folder of the comparison
        cpu: CPU cores
        gpu: GPUs, shared by the cells that run at a time
        memMB: memory, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts by the scheduler; finished cells are kept
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        name: name of the job
    """
    words = [_hisac_python(image), "-m", "hisac_rec", "compare", *models.split(",")]
    for folder in data.split(","):
        words += ["--data", folder]
    return _hisac_app(
        name,
        "compare",
        "exec " + " ".join(map(_hisac_quote, [*words, "--out", out, *args])),
        j="1x1",
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=None,
    )


def tune(
    *args: str,
    models: str,
    data: str,
    out: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    name: str = "hisac-tune",
) -> specs.AppDef:
    """Search hyper-parameters, every trial on all processes; goes on when retried.

    Args:
        args: passed on to hisac-rec tune; put them after --, for example --trials 20
        models: model files or names of shipped ones, separated by commas
        data: folder of the prepared data set
        out: folder of the search, on storage that all hosts share
        j: {hosts}x{processes per host}
        cpu: CPU cores per host
        gpu: GPUs per host
        memMB: memory per host, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts of the whole job by the scheduler; finished trials are kept
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        rdzv_port: port on the first host where the processes meet
        name: name of the job
    """
    command = ["tune", *models.split(","), "--data", data, "--out", out, *args]
    return _hisac_app(
        name,
        "tune",
        _hisac_torchrun(image, j, rdzv_port, command, ""),
        j=j,
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=rdzv_port,
    )


def semantic_ids(
    *args: str,
    data: str,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    h: Optional[str] = None,
    image: str = "",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
    name: str = "hisac-semantic-ids",
) -> specs.AppDef:
    """Fit the semantic IDs of a prepared data set, in one process.

    Args:
        args: passed on to hisac-rec semantic-ids; put them after --
        data: folder of the prepared data set
        cpu: CPU cores
        gpu: GPUs; one is enough
        memMB: memory, MB
        h: named resource of torchx instead of cpu, gpu and memMB
        image: container image that holds hisac-rec; empty means this Python environment
        env: environment variables, A=1,B=2
        max_retries: restarts by the scheduler
        mounts: mounts of the container, type=bind,src=/host,dst=/in/container[,readonly]
        name: name of the job
    """
    command = [_hisac_python(image), "-m", "hisac_rec", "semantic-ids", data, *args]
    return _hisac_app(
        name,
        "semantic_ids",
        "exec " + " ".join(map(_hisac_quote, command)),
        j="1x1",
        resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h),
        image=image,
        env=env,
        max_retries=max_retries,
        mounts=mounts,
        port=None,
    )


def _hisac_torchrun(
    image: str,
    j: str,
    rdzv_port: int,
    command: List[str],
    unquoted: str,
    grace: int = 30,
    max_restarts: int = 0,
) -> str:
    """Shell line that starts ``hisac-rec`` on every process of one host.

    ``unquoted`` is shell code whose output is one more argument of the command; ``grace`` is in
    seconds.
    """
    fewest, hosts, processes, nodes = parse_nnodes(j)
    # Schedulers tell hosts the first one's name in an environment variable whose name the
    # macro stands for; $$ is torchx's way to write $. One host alone takes any free port.
    first = f"$${{{macros.rank0_env}:=localhost}}"
    if hosts == 1:
        meet = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    elif fewest == hosts:
        # Not c10d: its agents ask the first host how many wait to join, and where that host is
        # cut off they hang after their processes have long ended (docs/launching.md).
        meet = ["--nnodes", nodes, "--node-rank", macros.replica_id]
        meet += ["--master-addr", first, "--master-port", str(rdzv_port)]
    else:
        meet = ["--nnodes", nodes, "--rdzv-backend", "c10d"]
        meet += ["--rdzv-endpoint", f"{first}:{rdzv_port}", "--rdzv-id", f"'{macros.app_id}'"]
    launcher = [
        *(_hisac_quote(_hisac_python(image)), "-m", "torch.distributed.run", *meet),
        *("--nproc-per-node", str(processes), "--shutdown-timeout", str(grace)),
        *("--max-restarts", str(max_restarts)),
        *("--tee", "3", "--role", "''"),
        *("-m", "hisac_rec", *map(_hisac_quote, command)),
    ]
    # torchx replaces ${app_id} and the like by str.Template; other $ must be doubled.
    tail = [unquoted.replace("$", "$$")] if unquoted else []
    return "exec " + " ".join([*launcher, *tail])


def _hisac_app(
    name: str,
    role: str,
    shell: str,
    *,
    j: str,
    resource: specs.Resource,
    image: str,
    env: Optional[Dict[str, str]],
    max_retries: int,
    mounts: Optional[List[str]],
    port: Optional[int],
) -> specs.AppDef:
    min_hosts, hosts, _, _ = parse_nnodes(j)
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name=role,
                image=image or str(Path.cwd()),
                entrypoint="bash",
                args=["-c", shell],
                env=dict(env or {}),
                num_replicas=hosts,
                min_replicas=min_hosts,
                max_retries=max_retries,
                # A job without one of its ranks is dead: all start again.
                retry_policy=specs.RetryPolicy.APPLICATION,
                resource=resource,
                port_map={} if port is None else {"c10d": port},
                mounts=specs.parse_mounts(mounts) if mounts else [],
            )
        ],
    )


def _hisac_python(image: str) -> str:
    """The interpreter of the image; without one, that which runs torchx."""
    return "python" if image else sys.executable


def _hisac_quote(word: str) -> str:
    return shlex.quote(word).replace("$", "$$")
