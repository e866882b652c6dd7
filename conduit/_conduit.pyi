import io
import socket
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, Any, BinaryIO, Final, Literal, Self, final, overload

from _typeshed import (
    HasFileno,
    OpenBinaryMode,
    OpenBinaryModeReading,
    OpenBinaryModeUpdating,
    OpenBinaryModeWriting,
    OpenTextMode,
    ReadableBuffer,
    StrOrBytesPath,
)

from conduit._handle import Handle, Waiter
from conduit.peer import Peer

PAUSE: Final[int]
QUEUED: Final[int]

@final
class Descriptor:
    def __init__(self, fd: int) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def kind(self) -> str: ...
    def fileno(self) -> int: ...
    def detach(self) -> int: ...
    def close(self) -> None: ...
    @overload
    def to_file(
        self,
        mode: None = None,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO: ...
    @overload
    def to_file(
        self,
        mode: OpenTextMode,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> io.TextIOWrapper: ...
    @overload
    def to_file(
        self,
        mode: OpenBinaryMode,
        buffering: Literal[0],
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.FileIO: ...
    @overload
    def to_file(
        self,
        mode: OpenBinaryModeUpdating,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedRandom: ...
    @overload
    def to_file(
        self,
        mode: OpenBinaryModeWriting,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedWriter: ...
    @overload
    def to_file(
        self,
        mode: OpenBinaryModeReading,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedReader: ...
    @overload
    def to_file(
        self,
        mode: OpenBinaryMode,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO: ...
    @overload
    def to_file(
        self,
        mode: str | None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]: ...
    def to_conn(self) -> socket.socket: ...

@final
class Message:
    def __new__(cls, data: bytes = b"", fds: Iterable[Descriptor] = ()) -> Self: ...
    @property
    def data(self) -> bytes: ...
    @property
    def fds(self) -> tuple[Descriptor, ...]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def close(self) -> None: ...

@final
class Conduit:
    @property
    def _handle(self) -> Handle: ...
    def __init__(self, fd: int, name: str = "") -> None: ...
    @staticmethod
    def _accept(handle: Handle, timeout: float | None = None) -> Conduit: ...
    @classmethod
    def from_file(cls, file: HasFileno, *, name: str | None = None) -> Conduit: ...
    @classmethod
    def from_conn(cls, conn: HasFileno, *, name: str = "") -> Conduit: ...
    @classmethod
    def pair(cls, *, type: int = ...) -> tuple[Conduit, Conduit]: ...
    @classmethod
    def connect(
        cls,
        path: StrOrBytesPath,
        *,
        type: int = ...,
        timeout: float | None = None,
        name: str = "",
    ) -> Conduit: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def peer(self) -> Peer: ...
    @property
    def timeout(self) -> float | None: ...
    @timeout.setter
    def timeout(self, timeout: float | None) -> None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...
    def transfer_fd(self, fd: int, *, keep: bool = False) -> None: ...
    def transfer_file(self, file: HasFileno, *, keep: bool = False) -> None: ...
    def transfer_conn(self, conn: HasFileno, *, keep: bool = False) -> None: ...
    def receive_fd(self) -> int: ...
    @overload
    def receive_file(
        self,
        mode: None = None,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO: ...
    @overload
    def receive_file(
        self,
        mode: OpenTextMode,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> io.TextIOWrapper: ...
    @overload
    def receive_file(
        self,
        mode: OpenBinaryMode,
        buffering: Literal[0],
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.FileIO: ...
    @overload
    def receive_file(
        self,
        mode: OpenBinaryModeUpdating,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedRandom: ...
    @overload
    def receive_file(
        self,
        mode: OpenBinaryModeWriting,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedWriter: ...
    @overload
    def receive_file(
        self,
        mode: OpenBinaryModeReading,
        buffering: Literal[-1, 1] = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> io.BufferedReader: ...
    @overload
    def receive_file(
        self,
        mode: OpenBinaryMode,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        name: str | None = None,
    ) -> BinaryIO: ...
    @overload
    def receive_file(
        self,
        mode: str | None,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        name: str | None = None,
    ) -> IO[Any]: ...
    def receive_conn(self) -> socket.socket: ...
    def transfer(
        self, *items: int | HasFileno, data: ReadableBuffer | None = None, keep: bool = False
    ) -> None: ...
    def receive(self, max_data: int = 65536, max_fds: int = ...) -> Message: ...

@final
class Send(Waiter):
    def __new__(
        cls,
        conduit: Conduit | None = None,
        items: tuple[int | HasFileno, ...] | None = None,
        data: ReadableBuffer | None = None,
        keep: bool = False,
    ) -> Self: ...
    @property
    def sent(self) -> int: ...
    def step(self, wake: Callable[[], object] | None = None) -> int: ...
    def cancel(self) -> None: ...

def check_number(value: object) -> None: ...
