"""What COMMAND does with its sockets, as /proc shows on Linux (proc(5)).

A process *has* a socket if one of its descriptors is that socket. It *waits* on the socket if the
socket is in one of its epoll sets, or a thread is in accept, poll, select or recv on it. Both are
seen from outside, without the program's help.

Some processes may not be inspected (another user's, unless this one is root's; one that has changed
its user), and without a /proc of this pid namespace none can be. None stands for unknown.

What is there may change or be gone at the next look, and the addresses that a process gives to a
system call are whatever it likes: what cannot be read is passed over (`_ODD`).
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_WITH_FD = {
    "x86_64": (43, 288, 45, 47, 299),
    "aarch64": (202, 242, 207, 212, 243),
}
"""accept, accept4, recvfrom, recvmsg, recvmmsg: system calls that wait on their first argument."""

_POLL = {"x86_64": (7, 271), "aarch64": (73,)}
"""poll, ppoll."""

_SELECT = {"x86_64": (23, 270), "aarch64": (72,)}
"""select, pselect6."""

_MANY = 1 << 16
"""The most descriptors of one poll(2) or select(2) that are read."""

_ODD = (OSError, ValueError, IndexError, OverflowError, struct.error)
"""What reading of something else than expected raises."""


class Sight(NamedTuple):
    """What was seen of some processes.

    Attributes:
        having: the inodes of sockets that they have; None if none could be looked at, or if not all
            could, and those have not all of the sockets.
        waiting: those that they wait on.
    """

    having: frozenset[int] | None
    waiting: frozenset[int]


def family(pid: int, group: int) -> set[int]:
    """Return a process, its descendants, and those of a group or session, as far as /proc shows."""
    found = {pid}
    parents: dict[int, int] = {}
    for each, (parent, its_group, session) in _processes():
        parents[each] = parent
        if group in (its_group, session):
            found.add(each)
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return found & parents.keys()


def see(pids: Iterable[int], sockets: frozenset[int]) -> Sight:
    """Return which of some sockets, by inode, the processes have and wait on."""
    having: set[int] = set()
    waiting: set[int] = set()
    is_known, is_whole = False, True
    for pid in pids:
        try:
            fds = _open_fds(pid)
        except (FileNotFoundError, ProcessLookupError):
            # It has ended.
            continue
        except OSError:
            is_whole = is_whole and _has_ended(pid)
            continue
        is_known = True
        its = {fd: inode for fd, (kind, inode) in fds.items() if inode in sockets}
        if its:
            having.update(its.values())
            waiting.update(_waited_for(pid, fds, its))
    is_known = is_known and (is_whole or sockets <= having)
    return Sight(frozenset(having) if is_known else None, frozenset(waiting))


def is_listened_at(path: str) -> bool:
    """Whether a listening socket was bound at a path, even if the path is gone; True if unknown.

    Connecting would tell, too, but not every server copes with a client that says nothing.
    """
    # Its flags are SO_ACCEPTCON. The last word is whatever name somebody has bound: it may have
    # blanks, line ends and any other byte, so that neither lines nor words can be counted on.
    socket = rb"^\S+: \S+ \S+ 00010000 \S+ \S+ +\d+ " + re.escape(os.fsencode(path)) + b"$"
    try:
        with open("/proc/net/unix", "rb") as sockets:
            return re.search(socket, sockets.read(), re.MULTILINE) is not None
    except OSError:
        return True


def _processes() -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Yield pids with their parent, group and session."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self") != str(os.getpid()):
            # It shows another pid namespace, where the numbers are those of other processes.
            return
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(*_ODD):
                    words = _stat(int(name))
                    yield int(name), (int(words[1]), int(words[2]), int(words[3]))


def _has_ended(pid: int) -> bool:
    """Whether a process is gone or a zombie, which has nothing open but shows that only to root."""
    with contextlib.suppress(*_ODD):
        return _stat(pid)[0] in (b"Z", b"X")
    return True


def _stat(pid: int) -> list[bytes]:
    """Return what is told of a process, from its state on."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The name before it may have blanks and parentheses.
        return stat.read().rpartition(b")")[2].split()


def _open_fds(pid: int) -> dict[int, tuple[str, int]]:
    """Return what a process has open: the kind of each, and the inode of a socket."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(*_ODD):
            kind, _, rest = os.readlink(f"/proc/{pid}/fd/{name}").partition(":")
            inode = int(rest[1:-1]) if kind == "socket" else -1
            found[int(name)] = rest if kind == "anon_inode" else kind, inode
    return found


def _waited_for(pid: int, fds: dict[int, tuple[str, int]], its: dict[int, int]) -> Iterator[int]:
    """Yield the inodes of sockets, given by descriptor, that a process waits on."""
    inodes = set(its.values())
    for fd, (kind, _) in fds.items():
        if kind == "[eventpoll]":
            for inode in _epoll_set(pid, fd):
                if inode in inodes:
                    yield inode
    for fd in _blocked_on(pid):
        if fd in its:
            yield its[fd]


def _epoll_set(pid: int, fd: int) -> list[int]:
    """Return the inodes in an epoll set."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", "rb") as info:
        inodes = re.findall(rb"^tfd:.* ino:([0-9a-f]+)", info.read(), re.MULTILINE)
        return [int(inode, 16) for inode in inodes]
    return []


def _blocked_on(pid: int) -> Iterator[int]:
    """Yield the descriptors for which the threads of a process wait in a system call."""
    machine = os.uname().machine
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(*_ODD):
                with open(f"/proc/{pid}/task/{thread}/syscall", "rb") as syscall:
                    # "running" without more; else in hexadecimal, but for the first.
                    number, *rest = syscall.read().split()
                call, arguments = int(number), [int(word, 16) for word in rest]
                if call in _WITH_FD.get(machine, ()):
                    yield arguments[0]
                elif call in _POLL.get(machine, ()):
                    yield from _polled(pid, arguments[0], arguments[1])
                elif call in _SELECT.get(machine, ()):
                    yield from _selected(pid, arguments[0], arguments[1])


def _polled(pid: int, address: int, count: int) -> list[int]:
    # struct pollfd: an int and two shorts.
    data = _memory(pid, address, min(count, _MANY) * 8)
    return [fd for fd, _, _ in struct.iter_unpack("ihh", data)]


def _selected(pid: int, count: int, address: int) -> list[int]:
    if not address:
        return []
    # As the system does, which cuts it off where the process's table of descriptors ends.
    count = min(count, _MANY)
    bits = int.from_bytes(_memory(pid, address, (count + 63) // 64 * 8), "little")
    return [fd for fd in range(count) if bits >> fd & 1]


def _memory(pid: int, address: int, size: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, size, address)
    finally:
        os.close(fd)
