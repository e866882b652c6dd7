from typing import Any, Final

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def monotonic() -> float:
    """Return the seconds of the monotonic clock, whatever replaced ``time.monotonic``."""

def socket_options(fd: int) -> tuple[int, int, int, bool]:
    """Return family, type and protocol of a socket, and whether it waits (not ``O_NONBLOCK``).

    Family and protocol are -1 where the system tells them otherwise (``getsockname(2)``). An
    `OSError` if the descriptor is of no socket.
    """

def offset_of(fd: int) -> int:
    """Return the offset of a descriptor; -1 if it has none, as a pipe, a socket, a terminal.

    What is neither a file nor a block device and says 0 counts as one without.
    """

def status_flags(fd: int) -> int:
    """Return the access mode and the status flags of a descriptor (``F_GETFL``)."""
