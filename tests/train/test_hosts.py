from __future__ import annotations

import socket

import pytest

from hisac_rec.errors import UserError
from hisac_rec.train.hosts import check_own_address

ELSEWHERE = "192.0.2.1"
"""An address of another host, of the range kept for documentation."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", ELSEWHERE)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


@pytest.mark.parametrize(
    ("name", "leads"),
    [
        ("localhost", "to a loopback address"),
        (ELSEWHERE, "to no address of this host"),
        ("no-such-host.invalid", "to no address of this host"),
    ],
)
def test_a_name_that_others_cannot_use_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, leads: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    with pytest.raises(UserError, match=f"'{name}' leads {leads}.*GLOO_SOCKET_IFNAME="):
        check_own_address()


@pytest.mark.parametrize(
    ("variable", "value"), [("GLOO_SOCKET_IFNAME", "lo"), ("MASTER_ADDR", "localhost")]
)
def test_a_named_interface_and_a_single_machine_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    monkeypatch.setenv(variable, value)
    check_own_address()


def test_a_name_with_an_address_of_this_host_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ELSEWHERE, 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        own = probe.getsockname()[0]
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    check_own_address()
