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
    "Channel",
    "Conduit",
    "Descriptor",
    "DescriptorTypeError",
    "ErrType",
    "Error",
    "Listener",
    "Message",
    "Peer",
    "PeerClosedError",
    "Reader",
    "TakeoverError",
    "TransferTimeoutError",
    "WouldBlockError",
]

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from conduit.channel import Channel
    from conduit.reader import Reader
else:
    _MODULES = {"Channel": "channel", "Reader": "reader"}
    """The modules of names that are imported when first used."""

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
