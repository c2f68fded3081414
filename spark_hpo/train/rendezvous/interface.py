"""Chooses the network interface on which gloo listens for the other ranks."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator

_VARIABLE = "GLOO_SOCKET_IFNAME"


@contextlib.contextmanager
def gloo_on_reachable_address(address: str) -> Iterator[None]:
    """Make gloo listen where ranks on other machines reach it, for the duration of the context.

    Gloo listens on the address of the host name. Where the host name stands for a loopback address, as on
    Debian and in many images, only ranks on the same machine could connect.

    Args:
        address: of this machine, from which it reaches the rendezvous store.
    """
    interface = None if _VARIABLE in os.environ else _interface(address)
    if interface is None:
        yield
        return
    os.environ[_VARIABLE] = interface
    try:
        yield
    finally:
        os.environ.pop(_VARIABLE, None)


def _interface(address: str) -> str | None:
    """Return the interface with an address; None if gloo needs no help."""
    if ipaddress.ip_address(address).is_loopback or not _host_name_is_loopback():
        return None  # every rank is on this machine, or the host name has an address that others reach
    import psutil

    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def _host_name_is_loopback() -> bool:
    """Return whether gloo would listen on a loopback address, as it also does without a known host name."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return ipaddress.ip_address(str(found[0][4][0]).partition("%")[0]).is_loopback
