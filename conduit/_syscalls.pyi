from typing import Any, Final

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def monotonic() -> float:
    """Return the seconds of the monotonic clock, whatever replaced ``time.monotonic``."""

def socket_options(fd: int) -> tuple[int, int, int, bool]:
    """Return family, type and protocol of a socket, and whether it waits (not ``O_NONBLOCK``).

    Family and protocol are -1 where only getsockname(2) tells. `OSError` for what is no socket.
    """

def offset_of(fd: int) -> int:
    """Return the offset of a descriptor, or minus the errno: ``ESPIPE``, if it has none."""
