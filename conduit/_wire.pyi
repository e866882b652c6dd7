from typing import Any, Final, final

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def socket_type(fd: int) -> int: ...
@final
class Transport: ...
