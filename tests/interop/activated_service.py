"""A service that systemd started for its listener: ``python activated_service.py PATH``.

Connects to its successor at PATH, and moves the listener there under its name.
"""

from __future__ import annotations

import os
import socket
import sys

from conduit import Conduit

FIRST = 3
"""The number of the first descriptor of socket activation."""

if __name__ == "__main__":
    assert int(os.environ["LISTEN_PID"]) == os.getpid()
    name = os.environ["LISTEN_FDNAMES"]
    with Conduit.connect(sys.argv[1], timeout=20) as successor:
        successor.transfer(socket.socket(fileno=FIRST), data=name.encode())
    print(os.environ["LISTEN_FDS"], name)
