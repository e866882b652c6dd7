from _socket import socket
from typing import Any, Final, Self, final

from typing_extensions import disjoint_base

from conduit.errors import ErrType

__pyx_capi__: Final[dict[str, Any]]

@disjoint_base
class FdHolder:
    """An fd that calls borrow: the base of `Handle` and `Descriptor`. See the module."""

    @property
    def name(self) -> str:
        """The name it was given by the program, by systemd or over a `Channel`; else ""."""
    @property
    def closed(self) -> bool:
        """Whether it was closed, detached, or made into another object."""

@disjoint_base
class Waiter:
    """A call that may wait for the turn to send: a thread on ``lock``, a task until ``wake()``."""

@final
class Handle(FdHolder):
    """The descriptor of a Unix socket, and the calls under way on it; see the module."""

    def __new__(cls) -> Self: ...
    @staticmethod
    def duplicate(fd: int, what: str, name: str, type: ErrType = ...) -> Handle:
        """Return a handle that owns a duplicate of a descriptor, or raise `Error` (``type``)."""
    @staticmethod
    def adopt(sock: socket, what: str, name: str) -> Handle:
        """Return a handle that owns a socket's descriptor, or a duplicate of a standard one."""
    def open(self, fd: int, what: str, name: str, owned: bool) -> int:
        """Use a descriptor from now on; only once. If ``owned``, it is closed with the handle."""
    def fileno(self) -> int:
        """Return the descriptor. `Error` (``NO_FD``) if it is closed."""
    def warn_unclosed(self, source: object, level: int = 1) -> None:
        """Warn that an object over this handle was dropped open; level as `warnings.warn`."""
    def close(self) -> None:
        """Close it once no call is under way, and wake all that wait. See `Conduit.close`."""

@final
class Use:
    """Python code's use of a handle, where a signal handler may raise between any two calls."""

    def __new__(cls, handle: Handle) -> Self: ...
    def fileno(self) -> int:
        """Return the fd, which stays this file's until `close`."""
    def close(self) -> object:
        """Leave the handle, as does dropping this object; no-op the second time."""
