"""Hosts on this machine: network namespaces with a name and an address each, joined by a switch.

A host is a network namespace; its processes also get a host name and an ``/etc/hosts`` of their
own, as on a real machine. Nothing of the machine's own network is touched: the switch is a
bridge in a namespace of its own. Needs root, ``ip`` (iproute2), ``nsenter`` and ``unshare``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PREFIX = "hisac"
"""Namespaces are called ``hisac-<pid of the test>-<host>``."""

ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


class NotPermittedError(Exception):
    """Namespaces cannot be made here; says why."""


class Network:
    """Hosts ``host0``, ``host1``, ... at 10.99.0.1, 10.99.0.2, ...; a context manager.

    Leaving it ends what runs on the hosts and removes them. What a killed test has left is
    removed on entering.

    Args:
        hosts: how many.
        folder: for their ``/etc/hosts`` and the output of their processes.
        own_address: what a host's own name leads to, in place of its address.

    Raises:
        NotPermittedError: on entering.
    """

    def __init__(self, hosts: int, folder: Path, own_address: str | None = None) -> None:
        self.names = [f"host{index}" for index in range(hosts)]
        self.folder = folder
        self.own_address = own_address
        self.own = f"{PREFIX}-{os.getpid()}"
        self.switch = f"{self.own}-switch"
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Network:
        missing = [tool for tool in ("ip", "nsenter", "unshare") if shutil.which(tool) is None]
        if missing:
            raise NotPermittedError(f"not installed: {', '.join(missing)}")
        remove_leftovers()
        try:
            self._build()
        except subprocess.CalledProcessError as error:
            self._remove()
            raise NotPermittedError(error.stderr.strip()) from None
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def address(self, host: str) -> str:
        """Its address on the switch."""
        return f"10.99.0.{self.names.index(host) + 1}"

    def start(
        self, host: str, command: Sequence[str], log: Path, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host; both streams go to ``log``."""
        entered = [
            *("nsenter", f"--net=/run/netns/{self.own}-{host}"),
            *("unshare", "--uts", "--mount"),
            *("sh", "-c", ENTER, host, str(self._resolve(host)), *command),
        ]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                entered,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def cut(self, host: str) -> None:
        """Pull the host's cable: what is sent to it or by it is lost without an answer."""
        _ip("-n", self.switch, "link", "set", host, "down")

    def mend(self, host: str) -> None:
        """Put the cable back."""
        _ip("-n", self.switch, "link", "set", host, "up")

    def _build(self) -> None:
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        for name in self.names:
            host = f"{self.own}-{name}"
            _ip("netns", "add", host)
            _ip("-n", host, "link", "set", "lo", "up")
            # The plug at the switch bears the name of the host.
            plug = ("type", "veth", "peer", "name", name, "netns", self.switch)
            _ip("-n", host, "link", "add", "eth0", *plug)
            _ip("-n", self.switch, "link", "set", name, "master", "bridge", "up")
            _ip("-n", host, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "eth0", "up")
            lines = ["127.0.0.1 localhost"]
            for other in self.names:
                own = self.own_address if other == name else None
                lines.append(f"{own or self.address(other)} {other}")
            self._resolve(name).write_text("\n".join(lines) + "\n")

    def _resolve(self, host: str) -> Path:
        """Its ``/etc/hosts``."""
        return self.folder / f"etc-hosts-{host}"

    def _remove(self) -> None:
        _remove_namespaces(f"{self.own}-")
        for process in self.started:
            process.wait()
        self.started.clear()


def remove_leftovers() -> None:
    """Remove the hosts of tests that no longer run, and what still runs on them."""
    for name in _namespaces():
        owner = re.fullmatch(rf"({PREFIX}-(\d+)-).+", name)
        if owner and not Path("/proc", owner[2]).exists():
            _remove_namespaces(owner[1])


def _remove_namespaces(prefix: str) -> None:
    for name in [name for name in _namespaces() if name.startswith(prefix)]:
        # A namespace without a name lives as long as its processes do: they go first. A process
        # may be starting others right now, so until none is left.
        until = time.monotonic() + 30
        while (pids := _ip("netns", "pids", name).split()) and time.monotonic() < until:
            for pid in map(int, pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        _ip("netns", "del", name)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line]


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, done.args, done.stdout, f"ip {' '.join(arguments)}: {done.stderr}"
        )
    return done.stdout
