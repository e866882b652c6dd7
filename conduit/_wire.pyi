from typing import Any, Final, Self, final

from _typeshed import StrOrBytesPath

MAX_FDS: Final[int]
__pyx_capi__: Final[dict[str, Any]]

def address_from(path: StrOrBytesPath) -> bytes: ...
def socket_type(fd: int) -> int: ...
def peer_of(fd: int) -> tuple[int, int, int]: ...

@final
class Transport:
    def __new__(
        cls, fd: int = -1, name: str = "", owned: bool = False, timeout: float = -1.0
    ) -> Self: ...

@final
class Shipment: ...
