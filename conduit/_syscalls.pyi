from typing import Any, Final

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def monotonic() -> float:
    """Return the seconds of the monotonic clock, whatever replaced ``time.monotonic``."""

def socket_type(fd: int) -> int:
    """Return the type of a socket (``SO_TYPE``); an `OSError` if the descriptor is none."""
