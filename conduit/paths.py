"""What the path of a Unix socket is to the system."""

from __future__ import annotations

import os
import sys

from conduit.mistakes import path_from

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath


def address_from(path: StrOrBytesPath) -> bytes:
    """Return the bytes of a Unix socket's address: ``@name`` is an abstract one on Linux."""
    address = os.fsencode(path_from(path))
    if address.startswith(b"@") and sys.platform == "linux":
        return b"\0" + address[1:]
    if b"\0" in address[1:] and address[:1] != b"\0":
        raise ValueError(f"embedded null byte in path {path!r}")
    return address
