from _socket import socket
from typing import Any, Final, Self, final

from typing_extensions import disjoint_base

__pyx_capi__: Final[dict[str, Any]]

@disjoint_base
class FdHolder:
    """An fd that calls use; what a `Handle` and a `Descriptor` are. See the module."""

    @property
    def name(self) -> str:
        """What it is called where descriptors have names, as systemd's have; "" for most."""
    @property
    def closed(self) -> bool:
        """Whether it owns nothing any more: closed, detached, or made into another object."""

@disjoint_base
class Waiter:
    """Who may wait for the turn to send: a thread sleeps on ``lock``, for a task is ``wake``."""

@final
class Handle(FdHolder):
    """The descriptor of a Unix socket, and the calls under way on it; see the module."""

    def __new__(cls) -> Self: ...
    @staticmethod
    def duplicate(fd: int, what: str, name: str) -> Handle:
        """Return a handle over a duplicate of a descriptor, or raise `Error` (``BAD_CLONE``)."""
    @staticmethod
    def adopt(sock: socket, what: str, name: str) -> Handle:
        """Return a handle that owns a socket's descriptor, or a duplicate of a standard one."""
    def open(self, fd: int, what: str, name: str, owned: bool) -> int:
        """Use a descriptor from now on, once for all. What is owned is closed with the handle."""
    def fileno(self) -> int:
        """Return the descriptor. `Error` (``NO_FD``) if it is closed."""
    def enter(self) -> int:
        """Begin a call, which must `leave`; the fd, which is nobody else's until then."""
    def leave(self) -> None:
        """End a call; the last one out of a closed handle closes the fd: 0 or the failure."""
    def warn_unclosed(self, source: object, level: int = 1) -> None:
        """Warn that an object over this handle was dropped open, so many frames of Python up."""
    def close(self) -> None:
        """Close it once no call is under way, and wake all that wait. As `Conduit.close`."""
