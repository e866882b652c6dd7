from typing import Any, Final

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def monotonic() -> float:
    """Return the seconds of the monotonic clock, whatever replaced ``time.monotonic``."""

def socket_options(fd: int) -> tuple[int, int, int, bool]:
    """Return family, type, protocol (-1 if unknown), and whether a socket blocks, or raise."""

def offset_of(fd: int) -> int:
    """Return the offset of a descriptor, or minus the errno: ``ESPIPE`` if it has none."""

def same_file(fd: int, other: int) -> bool:
    """Whether two descriptors refer to one open file description, as `Descriptor.is_same_file`."""
