"""Listens on one of the ports that a firewall leaves open."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence


def listen(host: str, ports: Sequence[int] = (0,)) -> socket.socket:
    """Listen on the first free port.

    Args:
        host: the one address to listen on.
        ports: the ports to try, in this order; 0 is any free port.

    Raises:
        OSError: the address does not belong to this machine, or all ports are taken.
    """
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    for port in ports:
        try:
            return socket.create_server((address[0], port), family=family, backlog=1024)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"all ports of resources.ports are taken: {ports[0]}-{ports[-1]}")
