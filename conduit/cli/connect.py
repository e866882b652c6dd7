"""``conduit connect``: connect to a host, and pass the connection over standard output."""

from __future__ import annotations

import socket

from conduit._conduit import Conduit
from conduit.cli.messages import CommandError


def connect(host: str, port: str) -> None:
    """Connect, and pass the connection over standard output; a port may be a service's name."""
    # The resolver takes signs and blanks, and a number modulo 65536.
    is_number = port.isascii() and port.isdigit()
    if (is_number and (len(port) > 5 or int(port) > 65535)) or not port[:1].isalnum():
        raise CommandError(f"{port!r} is no port: a number up to 65535, or a service's name")
    try:
        conn = socket.create_connection((host, port))
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise CommandError(f"connecting to {host} port {port}: {why}") from exc
    with conn:
        Conduit(1, "standard output").transfer_conn(conn)
