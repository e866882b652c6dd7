"""A service that does what a test tells it: ``python real_service.py PATH``.

It connects to the test at PATH, says what it was started with, and calls what it is told.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from conduit import Conduit, Descriptor, PeerClosedError, systemd

FDS: tuple[Descriptor, ...] = ()


def hello() -> dict[str, Any]:
    return {
        "names": [each.name for each in FDS],
        "kinds": [each.kind for each in FDS],
        "private": not any(os.get_inheritable(each.fileno()) for each in FDS),
        "variables": [name for name in os.environ if name.startswith("LISTEN_")],
    }


def store(name: str, text: str) -> bool:
    with Descriptor(os.memfd_create(name)) as file:
        os.write(file.fileno(), text.encode())
        return systemd.store(name, file)


def store_dead_pipe(name: str, poll: bool) -> bool:
    """Store the reading end of a pipe that nobody writes to any more."""
    reading, writing = os.pipe()
    os.close(writing)
    with Descriptor(reading) as pipe:
        return systemd.store(name, pipe, poll=poll)


def content(index: int) -> str:
    return os.pread(FDS[index].fileno(), 4096, 0).decode()


def answer(index: int) -> str:
    """Accept a connection, answer it with its name, and return what it said."""
    with Descriptor(os.dup(FDS[index].fileno())).to_conn() as listener:
        conn, _ = listener.accept()
    with conn:
        said = conn.recv(100)
        conn.sendall(FDS[index].name.encode())
    return said.decode()


def feed(seconds: float) -> None:
    """Tell the watchdog for so long that all is well."""
    interval = systemd.watchdog_interval()
    assert interval is not None
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        systemd.notify("WATCHDOG=1")
        time.sleep(interval / 8)


CALLS = {
    each.__name__: each
    for each in (
        *(systemd.notify, systemd.unstore, systemd.barrier, systemd.watchdog_interval),
        *(store, store_dead_pipe, content, answer, feed),
    )
}

if __name__ == "__main__":
    FDS = systemd.listen_fds()
    with Conduit.connect(sys.argv[1], type=socket.SOCK_SEQPACKET, timeout=20) as test:
        test.timeout = None
        test.transfer(data=json.dumps(hello()).encode())
        try:
            while True:
                name, *args = json.loads(test.receive().data)
                test.transfer(data=json.dumps(CALLS[name](*args)).encode())
        except PeerClosedError:
            pass
    for each in FDS:
        each.close()
