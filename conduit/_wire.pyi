from typing import Any, Final, Self, final

from _typeshed import StrOrBytesPath

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def address_from(path: StrOrBytesPath) -> bytes:
    """Return the bytes of a Unix socket's address: ``@name`` is an abstract one on Linux."""

def socket_type(fd: int) -> int:
    """Return the type of a socket (``SO_TYPE``); an `OSError` if the number is of none."""

def peer_of(fd: int) -> tuple[int, int, int]:
    """Return the (pid, uid, gid) of the process that a Unix socket is connected to.

    It is who called ``connect(2)``, or ``listen(2)``, or made the pair, as they were then
    (``SO_PEERCRED``); an `OSError` if the system does not know.
    """

@final
class Transport:
    """A Unix socket's number and the calls under way on it.

    A call enters before it uses the number and leaves afterwards. ``shut()`` marks the transport
    closed and wakes the calls that wait; the last one to leave closes what is owned, so that no
    number is ever closed, and given to another file, under a call that uses it.
    """

    def __new__(
        cls, fd: int = -1, name: str = "", owned: bool = False, timeout: float = -1.0
    ) -> Self: ...

@final
class Shipment:
    """A message on its way, of which one system call could not take all.

    It holds its own duplicates of descriptors that must wait: meanwhile another thread may close
    a number and open another file under it, and what is sent is what the caller gave.
    """
