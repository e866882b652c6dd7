"""Move open files, sockets, listeners and pipes to another process over a Unix socket."""

from conduit._conduit import Conduit, Descriptor
from conduit._wire import MAX_FDS
from conduit.errors import (
    DescriptorTypeError,
    Error,
    ErrType,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)

__all__ = [
    "MAX_FDS",
    "Conduit",
    "Descriptor",
    "DescriptorTypeError",
    "ErrType",
    "Error",
    "PeerClosedError",
    "TransferTimeoutError",
    "WouldBlockError",
]
