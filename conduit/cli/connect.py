"""``conduit connect``: connect to a host, and pass the connection over standard output."""

from __future__ import annotations

import socket

from conduit._conduit import Conduit
from conduit.cli.messages import CommandError


def connect(host: str, port: str) -> None:
    """Connect, and pass the connection over standard output."""
    try:
        conn = socket.create_connection((host, port))
    except (OSError, UnicodeError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise CommandError(f"connecting to {host} port {port}: {why}") from exc
    with conn:
        Conduit(1, "standard output").transfer_conn(conn)
