"""Training on two hosts that the network joins: equal results, a cable pulled, a wrong name.

Each host runs the shell line that ``launch/components.py`` makes for a scheduler, as SLURM
would start it: with the first host's name in a variable of its environment. Both see the run
folder at the same path, as on shared storage.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torchx.specs as specs
from host_network import Network, NotPermittedError, remove_leftovers
from training import logged, small_config, torchrun

from hisac_rec.checkpoints.saving import LINGER
from hisac_rec.config import dump_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.train.distributed import MARGIN

pytestmark = [pytest.mark.hosts, pytest.mark.distributed]

ROOT = Path(__file__).resolve().parents[2]
FIRST = "SLURM_JOB_NODELIST_HET_GROUP_0"
"""Where SLURM tells the name of the first host."""


WAIT = 15
"""Seconds that ranks wait for each other where a cable is pulled."""
NOISE = 1e-4
"""By how much metrics of the same training may differ."""


@pytest.fixture
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Network]:
    """Two hosts; skips the test where they cannot be made."""
    try:
        with Network(2, tmp_path, getattr(request, "param", None)) as network:
            yield network
    except NotPermittedError as error:
        pytest.skip(f"no network namespaces here (root with CAP_NET_ADMIN and iproute2): {error}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model for two epochs of about 28 steps, a checkpoint every 5 steps."""
    config = small_config(
        "train.epochs=2", "train.early_stop=0", "train.checkpoint_every=5", "train.log_every=1"
    )
    file = tmp_path_factory.mktemp("model") / "small.toml"
    file.write_text(dump_toml(config))
    return file


class TrainingJob:
    """``train`` of ``launch/components.py`` on two hosts.

    Args:
        network: the hosts.
        model: model file.
        data: prepared data.
        out: run folder.
        per_host: processes a host.
        settings: options of ``hisac-rec train``.
        env: environment variables, as ``--env`` of torchx sets them.
    """

    def __init__(
        self,
        network: Network,
        model: Path,
        data: PreparedData,
        out: Path,
        per_host: int,
        *settings: str,
        env: dict[str, str] | None = None,
    ) -> None:
        self.network, self.out = network, out
        component = runpy.run_path(str(ROOT / "launch" / "components.py"))["train"]
        hosts = len(network.names)
        app = component(
            *settings,
            model=str(model),
            data=str(data.root),
            out=str(out),
            j=f"{hosts}x{per_host}",
            max_retries=1,
            env=env,
        )
        (self.role,) = app.roles
        self.tries = 0
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start it on every host, as a scheduler does at first and at each retry."""
        self.tries += 1
        for index, host in enumerate(self.network.names):
            values = specs.macros.Values(
                img_root="", app_id="job", replica_id=str(index), rank0_env=FIRST
            )
            role = values.apply(self.role)
            env = os.environ | {"OMP_NUM_THREADS": "1", FIRST: self.network.names[0]} | role.env
            self.processes[host] = self.network.start(
                host, [role.entrypoint, *role.args], self.log(host), env
            )

    def log(self, host: str) -> Path:
        """What the host has said at the current try."""
        return self.network.folder / f"{self.out.name}-{host}-{self.tries}.log"

    def said(self, host: str) -> str:
        """The same, as text."""
        return self.log(host).read_text(errors="replace")

    def end(self, seconds: float) -> dict[str, int]:
        """Exit codes by host; fails where a host goes on longer than that."""
        until = time.monotonic() + seconds
        codes = {}
        for host, process in self.processes.items():
            try:
                codes[host] = process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                pytest.fail(f"{host} hangs; it said last:\n{self.said(host)[-3000:]}")
        return codes

    def cancel(self) -> None:
        """Tell the hosts that still run to end."""
        for process in self.processes.values():
            process.terminate()
        self.end(60)

    def finish(self) -> None:
        """Start it, and let it end well."""
        self.start()
        codes = self.end(300)
        tails = "\n".join(self.said(host)[-3000:] for host in codes)
        assert set(codes.values()) == {0}, tails

    def wait_for_step(self, step: int) -> None:
        """Until a step has been logged."""
        until = time.monotonic() + 120
        while max(self._logged(), default=0) < step:
            assert time.monotonic() < until, self.said(self.network.names[0])[-3000:]
            time.sleep(0.02)

    def _logged(self) -> list[int]:
        """Steps so far; a line may be half written."""
        file = self.out / "metrics.jsonl"
        text = file.read_text() if file.exists() else ""
        return [
            int(found) for found in re.findall(r'^{"step": (\d+), "group": "train"', text, re.M)
        ]


def assert_same_training(out: Path, other: Path) -> None:
    """Both runs evaluated at the same steps with the same metrics, within noise.

    Seen equal to the last digit; another order of the same data is a hundred times farther off.
    """
    for name in ("auc", "gauc", "logloss"):
        values, others = logged(out, "valid", name), logged(other, "valid", name)
        assert values.keys() == others.keys()
        assert len(values) == 2
        assert list(values.values()) == pytest.approx(list(others.values()), abs=NOISE), name


@pytest.mark.parametrize("per_host", [1, 2])
def test_two_hosts_train_like_one(
    network: Network, model: Path, small_data: PreparedData, tmp_path: Path, per_host: int
) -> None:
    job = TrainingJob(network, model, small_data, tmp_path / "two", per_host)
    job.finish()
    one = ("-m", "hisac_rec", "train", model, small_data.root, "--out", tmp_path / "one")
    torchrun(*one, ranks=2 * per_host)
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("lost", ["host0", "host1"])
def test_a_job_survives_a_cut_cable(
    network: Network, model: Path, small_data: PreparedData, tmp_path: Path, lost: str
) -> None:
    undisturbed = tmp_path / "undisturbed"
    torchrun("-m", "hisac_rec", "train", model, small_data.root, "--out", undisturbed)
    short = f"--set=train.timeout_minutes={WAIT / 60}"
    job = TrainingJob(network, model, small_data, tmp_path / "run", 1, short)
    job.start()
    job.wait_for_step(13)  # the first epoch has 28 or 29, checkpoints are of every fifth
    network.cut(lost)
    # Neither host may hang, nor the one where all of them meet.
    codes = job.end(WAIT + (MARGIN + LINGER).total_seconds() + 60)
    assert 0 not in codes.values()
    assert max(logged(job.out, "train", "loss")) < 28
    for host, other in (("host0", "host1 (rank 1)"), ("host1", "host0 (rank 0)")):
        # Who is later than the other may find that it has given up already.
        cut = f"so the network to them is cut: host {other}"
        assert cut in job.said(host) or "the connection to another rank broke" in job.said(host)
    assert "so the network to them is cut: host" in job.said("host0") + job.said("host1")

    network.mend(lost)
    job.finish()
    assert re.search(r"resumed from \S+ \(step 1\d\)", job.said("host0"))
    assert_same_training(job.out, undisturbed)


# What Debian's installer writes into /etc/hosts.
@pytest.mark.parametrize("network", ["127.0.1.1"], indirect=True)
def test_a_host_that_others_cannot_find_says_what_to_set(
    network: Network, model: Path, small_data: PreparedData, tmp_path: Path
) -> None:
    job = TrainingJob(network, model, small_data, tmp_path / "run", 1)
    job.start()
    assert job.processes["host1"].wait(120) != 0
    job.cancel()  # as schedulers do once a host has failed; it would hold the port
    assert "name 'host1' leads to" in job.said("host1")
    assert "--env GLOO_SOCKET_IFNAME=eth0 (eth0 leads to host0)" in job.said("host1")

    named = {"GLOO_SOCKET_IFNAME": "eth0"}
    TrainingJob(network, model, small_data, tmp_path / "named", 1, env=named).finish()


def test_hosts_that_a_killed_test_left_are_removed(network: Network, tmp_path: Path) -> None:
    """The killed test is a process that makes hosts with something running and kills itself."""
    killed = """if True:
        import os, signal, sys
        from pathlib import Path
        from host_network import Network
        network = Network(2, Path(sys.argv[1])).__enter__()
        said = Path(sys.argv[1]) / "pid"
        network.start("host1", ["sh", "-c", "echo $$; exec sleep 600"], said, os.environ)
        while not said.read_text().endswith("\\n"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    """
    left = tmp_path / "left"
    left.mkdir()
    tests = str(Path(__file__).resolve().parents[1])
    ended = subprocess.Popen(
        [sys.executable, "-c", killed, str(left)], env=os.environ | {"PYTHONPATH": tests}
    )
    assert ended.wait() == -signal.SIGKILL
    running = psutil.Process(int((left / "pid").read_text()))
    assert namespaces_of(ended.pid) == ["host0", "host1", "switch"]

    remove_leftovers()
    assert namespaces_of(ended.pid) == []
    running.wait(timeout=10)  # until its parent, which is none of ours, has noticed
    assert namespaces_of(os.getpid()) == ["host0", "host1", "switch"]


def namespaces_of(pid: int) -> list[str]:
    """What a process has made, by the last part of its name."""
    return sorted(path.name.split("-")[-1] for path in Path("/run/netns").glob(f"*-{pid}-*"))
