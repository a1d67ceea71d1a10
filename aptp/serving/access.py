"""Where a server is reached, and with which key; imports nothing heavy."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

from aptp.core.errors import RequestError

KEY = "APTP_API_KEY"
"""The environment variable that holds the API key."""
SHORTEST_KEY = 16


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


def read_key(file: Path | None) -> str | None:
    """The API key, from a file or from the environment; never on the command line, which others can read.

    Raises:
        RequestError: for one that cannot be read, or is no good.
    """
    if file is None:
        key, source = os.environ.get(KEY), KEY
    else:
        source = f"--api-key-file {str(file)!r}"
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{source} cannot be read as text; name a file that holds the key.") from error
    if key is None:
        return None
    if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise RequestError(f"{source} holds no good API key; {SHORTEST_KEY} or more ASCII characters, no spaces.")
    return key
