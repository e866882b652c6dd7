"""The sockets of `conduit run`: opened at addresses, passed by a manager, or taken over."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from conduit import systemd
from conduit.cli.addresses import Address
from conduit.cli.messages import CommandError
from conduit.takeover import Takeover
from conduit.takeover.sockets import closed_on_error

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/unix_diag.h>
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_DIAG_REQUEST = 40
"""Bytes of a request."""

_ANY = 0xFFFFFFFF


class Wanted(NamedTuple):
    """What is asked for: addresses, and how to open new sockets there.

    Attributes:
        addresses: where to listen; none for the sockets that were passed, or the predecessor's.
        backlog: connections that may wait.
        mode: of a Unix socket.
        owner: of a Unix socket: user and group, -1 for this process's.
    """

    addresses: Sequence[Address]
    backlog: int
    mode: int
    owner: tuple[int, int]


class Opened(NamedTuple):
    """A socket, the key by which a successor asks for it, and its name for COMMAND."""

    key: str
    name: str
    sock: socket.socket

    @property
    def path(self) -> str:
        """The path of a Unix socket; empty for any other socket."""
        bound = self.sock.getsockname()
        is_path = self.sock.family == socket.AF_UNIX and isinstance(bound, str)
        return bound if is_path else ""

    @property
    def is_listening(self) -> bool:
        """Whether connections can be accepted from it."""
        return bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def status(self) -> dict[str, Any]:
        """Return what `conduit status` reports of it."""
        is_unix = self.sock.family == socket.AF_UNIX
        is_stream = self.sock.type == socket.SOCK_STREAM
        kind = "unix" if is_unix else "tcp" if is_stream else "udp"
        queue = None
        if is_stream:
            with contextlib.suppress(AttributeError, OSError, struct.error):
                queue = _unix_queue(self.sock) if is_unix else _tcp_queue(self.sock)
        bound = self.sock.getsockname()
        if self.sock.family in (socket.AF_INET, socket.AF_INET6):
            host, port = bound[:2]
            bound = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        elif not is_unix:
            # Another family, such as vsock: as Python tells it.
            kind, bound = str(getattr(self.sock.family, "name", self.sock.family)), repr(bound)
        return {
            "name": self.name,
            "type": kind,
            "address": os.fsdecode(bound).replace("\0", "@", 1),
            "queue": queue,
        }


def _tcp_queue(sock: socket.socket) -> int:
    """Return how many connections wait in a listening socket's queue."""
    # tcpi_unacked of struct tcp_info.
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[24:28], sys.byteorder)


def _unix_queue(sock: socket.socket) -> int | None:
    """Return how many connections wait in a listening Unix socket's queue, by sock_diag(7)."""
    # A struct nlmsghdr and a struct unix_diag_req: one inode, in any state and with any cookie.
    request = struct.pack(
        "=IHHIIBBHIIIII",
        *(_DIAG_REQUEST, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0),
        *(socket.AF_UNIX, 0, 0, _ANY, os.fstat(sock.fileno()).st_ino),
        *(_UDIAG_SHOW_RQLEN, _ANY, _ANY),
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as link:
        link.sendto(request, (0, 0))
        answer = link.recv(4096, socket.MSG_DONTWAIT)
    # Behind a struct unix_diag_msg comes what was asked for; or this is an error.
    _, kind = struct.unpack_from("=IH", answer)
    _, what, queue = struct.unpack_from("=HHI", answer, 32)
    return queue if (kind, what) == (_SOCK_DIAG_BY_FAMILY, _UNIX_DIAG_RQLEN) else None


def opened(takeover: Takeover, wanted: Wanted) -> Iterator[Opened]:
    """Yield each socket once it is open; a successor will find it.

    Raises:
        CommandError: nothing is asked for, and nothing is there.
        Error: an address cannot be had.
    """
    found = []
    sockets = _asked_for(takeover, wanted) if wanted.addresses else _given(takeover)
    for each in sockets:
        yield each
        found.append((each.key, each.name))
    # For a successor that asks for all there is.
    takeover.offer(json.dumps({"sockets": found}).encode())


def passed() -> list[tuple[str, str]]:
    """Return names and descriptions of what the service manager passed, and close it."""
    found = []
    for fd in systemd.listen_fds():
        found.append((fd.name, "passed by the service manager"))
        fd.close()
    return found


def nothing() -> CommandError:
    """Return the error for having no socket."""
    return CommandError(
        "there is nothing to listen on: give --listen, or have the service manager pass sockets "
        "(LISTEN_FDS)",
        2,
    )


def _asked_for(takeover: Takeover, wanted: Wanted) -> Iterator[Opened]:
    for address in wanted.addresses:
        before = _inode(address)
        sock = takeover.listen(
            address.host,
            address.port,
            name=address.key,
            type=address.type,
            backlog=wanted.backlog,
            mode=wanted.mode,
        )
        yield Opened(address.key, address.name, sock)
        # Not one that was taken over: that one is as it was.
        if wanted.owner != (-1, -1) and _inode(address) != before:
            os.chown(address.host, *wanted.owner)


def _inode(address: Address) -> int:
    """Return the inode of the path of a Unix socket; 0 if there is none."""
    is_path = address.port is None and not address.host.startswith("@")
    with contextlib.suppress(FileNotFoundError):
        return os.lstat(address.host).st_ino if is_path else 0
    return 0


def _given(takeover: Takeover) -> Iterator[Opened]:
    """Yield what the service manager passed, or all that the predecessor has."""
    count = 0
    seen: set[int] = set()
    passed = list(systemd.listen_fds())
    try:
        while passed:
            with passed.pop(0) as fd:
                # With a store, one comes from its socket unit and once more from there, behind.
                inode = os.fstat(fd.fileno()).st_ino
                if inode in seen:
                    continue
                seen.add(inode)
                count += 1
                key = f"{fd.name}-{count}"
                if len(os.fsencode(key)) > 255:
                    key = f"passed-{count}"
                yield Opened(key, fd.name, _adopted(takeover, fd.to_conn(), key))
    finally:
        while passed:
            passed.pop().close()
    if count:
        return
    try:
        names = [(str(key), str(name)) for key, name in json.loads(takeover.state)["sockets"]]
    except (ValueError, TypeError, LookupError) as exc:
        raise nothing() from exc
    for key, name in names:
        # Closed at once, since the predecessor has one of that name.
        yield Opened(key, name, _adopted(takeover, socket.socket(socket.AF_UNIX), key))


def _adopted(takeover: Takeover, sock: socket.socket, key: str) -> socket.socket:
    with closed_on_error(sock):
        return takeover.adopt(sock, key)
