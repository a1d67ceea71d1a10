"""Where a server is reached; imports nothing heavy."""

from __future__ import annotations

import ipaddress
import socket

from aptp.core.errors import RequestError


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, on which nobody listens yet.

    Raises:
        RequestError: for an address that is not this machine's, or is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise RequestError(f"cannot serve at {host} port {port}: {error.strerror}; name another.") from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback
