from typing import Any, Final

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def monotonic() -> float: ...
def socket_type(fd: int) -> int: ...
