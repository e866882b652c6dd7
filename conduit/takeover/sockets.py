"""Opening the sockets of a server, and recognising those that are open already."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from conduit._conduit import Descriptor
from conduit.errors import Ignoring
from conduit.paths import address_from, bind_address, inode_of

if TYPE_CHECKING:
    from _typeshed import HasFileno

    from conduit.takeover.holdings import Held

_SO_NETNS_COOKIE = 71
"""The option that tells network namespaces apart (Linux 5.14, asm-generic/socket.h)."""


@contextlib.contextmanager
def closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    """Close a socket if the block fails."""
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


def bind(
    host: str,
    port: int | None,
    type: int,
    mode: int,
    backlog: int,
    others: Iterable[Held],
    here: bytes,
) -> tuple[socket.socket, tuple[int, int] | None]:
    """Open a socket at an address; see `Takeover.listen`.

    Returns:
        the socket, and the device and inode of its path, which the caller removes with it.
    """
    if port is not None:
        return _bind_host(host, port, type, backlog, others, here), None
    with closed_on_error(socket.socket(socket.AF_UNIX, type)) as sock:
        return sock, bind_address(sock, address_from(host), mode, backlog)


def _bind_host(
    host: str, port: int, type: int, backlog: int, others: Iterable[Held], here: bytes
) -> socket.socket:
    family, address = resolve(host, port, type)
    with closed_on_error(socket.socket(family, type)) as sock:
        if type == socket.SOCK_STREAM:
            # Connections of the last server in TIME_WAIT must not prevent a start.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address[0] == "::":
            # All of IPv4 as well, whatever the system's default, if that is not had already.
            taken = any(is_at(held, "0.0.0.0", port, type, here) for held in others)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, taken)
        sock.bind(address)
        if type == socket.SOCK_STREAM:
            sock.listen(backlog)
        return sock


def resolve(host: str, port: int, type: int) -> tuple[int, Any]:
    """Return the family and address to bind to.

    Raises:
        OSError: there is none; ``EINVAL`` if there are several.
    """
    if not host:
        host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    found = socket.getaddrinfo(host, port, type=type, flags=socket.AI_PASSIVE)
    # A name may stand for the same one twice.
    addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
    if len(addresses) > 1:
        listed = ", ".join(str(address[0]) for _, address in addresses)
        raise OSError(
            errno.EINVAL,
            f"{host!r} is several addresses, {listed}: listen at each, under a name of its own",
        )
    return next(iter(addresses))


def is_numeric(host: str) -> bool:
    """Whether a host is a numeric address, which needs no look-up."""
    with Ignoring(OSError, UnicodeError):
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
        return True
    return False


def is_at(held: Held, host: str, port: int | None, type: int, here: bytes) -> bool:
    """Whether a socket is the requested one, in this network namespace."""
    # A path leads to its socket from every network namespace.
    has_namespace = port is not None or host.startswith("@")
    if has_namespace and not held.foreign and namespace_of(held.sock) != here:
        return False
    if held.path is None:
        return is_bound_to(held.sock, host, port, type)
    if port is not None or held.path != host or held.sock.type != type:
        return False
    # If the path is gone, nobody can connect. If lstat(2) is not permitted, take it to be there.
    with Ignoring(PermissionError):
        return held.inode is None or inode_of(host) is not None
    return True


def is_bound_to(sock: socket.socket, host: str, port: int | None, type: int) -> bool:
    """Whether a socket has a type and an address."""
    if sock.type != type:
        return False
    here = sock.getsockname()
    if port is None:
        return sock.family == socket.AF_UNIX and os.fsencode(here) == address_from(host)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if here[0] == host and not any(here[3:]):
        # A look-up would take longer than all else.
        return port in (0, here[1])
    family, address = resolve(host, port, type)
    if sock.family != family or here[0] != address[0] or port not in (0, here[1]):
        return False
    # Compare the scope, which a link-local IPv6 address has: fe80::1%eth0.
    return not any(here[3:]) or here[3:] == address[3:]


def namespace_of(sock: socket.socket) -> bytes:
    """Return bytes that are equal for sockets of one network namespace."""
    with Ignoring(OSError):
        return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    # This system has but one, or does not tell.
    return b""


def own_namespace() -> bytes:
    """Return these bytes for the network namespace of this thread."""
    with socket.socket(socket.AF_UNIX) as sock:
        return namespace_of(sock)


def passed(
    fds: list[Descriptor], name: str, host: str, port: int | None, type: int
) -> socket.socket | None:
    """Take a socket with this type, and this name or address, from those of the service manager."""
    for named in (True, False):
        for fd in fds:
            if fd.kind != "socket" or (named and fd.name != name):
                continue
            with contextlib.closing(duplicate(fd)) as sock:
                if sock.type == type if named else is_bound_to(sock, host, port, type):
                    found = duplicate(sock)
                    fds.remove(fd)
                    fd.close()
                    return found
    return None


def duplicate(file: HasFileno) -> socket.socket:
    """Return a socket object on a duplicate of a descriptor, for ``O_NONBLOCK`` as it is.

    ``socket.dup()`` sets and clears it, in all processes that share the socket, for the sake of its
    timeout or of ``socket.setdefaulttimeout()``.
    """
    # All in C: no signal handler runs while nothing owns the number.
    (copy,) = map(Descriptor, map(os.dup, (file.fileno(),)))
    with copy:
        return copy.to_conn()
