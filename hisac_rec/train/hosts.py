"""Whether other hosts can reach this one where gloo will listen.

gloo listens at the address that the host's own name resolves to. Installers often write
``127.0.1.1 <name>`` into ``/etc/hosts``: then every host tells the others to look for it at
themselves, and all wait until they time out.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

from hisac_rec.errors import UserError


def check_own_address() -> None:
    """Refuse to join a job of several hosts where none of them would find this one.

    What gloo itself reads (``GLOO_SOCKET_IFNAME``) decides where it is set. Hosts that meet at
    a loopback address are one machine, and need no other.

    Raises:
        UserError: the host's name leads to no address, or to the host alone; names the
            interface to set.
    """
    first = os.environ.get("MASTER_ADDR", "localhost")
    if "GLOO_SOCKET_IFNAME" in os.environ or _listens_at(first, usable=False) in (None, "loopback"):
        return
    name = socket.gethostname()
    found = _listens_at(name, usable=True)
    if found == "reachable":
        return
    interface = _interface_to(first)
    leads = "to a loopback address" if found == "loopback" else "to no address of this host"
    raise UserError(
        f"this host's name {name!r} leads {leads}, where other hosts cannot find it: they and "
        f"gloo would wait in vain. Give {name!r} its address in the network in /etc/hosts or "
        f"DNS, or name the interface: torchx --env GLOO_SOCKET_IFNAME={interface or 'INTERFACE'}"
        + (f" ({interface} leads to {first})" if interface else "")
    )


def _listens_at(name: str, *, usable: bool) -> str | None:
    """What a name resolves to: "reachable", "loopback", or None.

    Args:
        name: a host name or an address.
        usable: take the first address that can be listened at here, as gloo does.
    """
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return None
    for family, kind, protocol, _, address in found:
        if usable:
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.bind(address)
            except OSError:
                continue
        ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
        return "loopback" if ip.is_loopback else "reachable"
    return None


def _interface_to(name: str) -> str | None:
    """The network interface through which this host reaches another one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(name, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: it only chooses the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == own for entry in addresses):
            return interface
    return None
