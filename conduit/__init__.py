"""Move open files, sockets, listeners and pipes to another process over a Unix socket."""

from conduit._conduit import Conduit, Descriptor, Message
from conduit._syscalls import MAX_FDS
from conduit.errors import (
    DescriptorTypeError,
    Error,
    ErrType,
    PeerClosedError,
    TakeoverError,
    TransferTimeoutError,
    WouldBlockError,
)
from conduit.listener import Listener
from conduit.peer import Peer

__version__ = "0.1.0"

__all__ = [
    "MAX_FDS",
    "Conduit",
    "Descriptor",
    "DescriptorTypeError",
    "ErrType",
    "Error",
    "Listener",
    "Message",
    "Peer",
    "PeerClosedError",
    "TakeoverError",
    "TransferTimeoutError",
    "WouldBlockError",
]
