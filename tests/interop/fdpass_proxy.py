"""A ``ProxyCommand`` with ``ProxyUseFdpass``: ``python fdpass_proxy.py HOST PORT``.

Connects, hands the connection to ssh, and is gone.
"""

from __future__ import annotations

import socket
import sys

from conduit import Conduit

if __name__ == "__main__":
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
    Conduit(1).transfer_conn(sock)
