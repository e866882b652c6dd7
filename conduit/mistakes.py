"""First mistakes: an argument of the wrong kind is answered with the call that takes it."""

from __future__ import annotations

import io
import math
import operator
import os
import sys

from conduit.errors import DescriptorTypeError, ErrType

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from _typeshed import StrOrBytesPath

# By the call, and the kind of argument that it was given.
_INSTEAD = {
    ("Conduit", "socket"): "for a socket, use Conduit.from_conn",
    ("Conduit", "file"): "for a file, use Conduit.from_file",
    ("Conduit", "path"): "for a path, use Conduit.connect",
    ("Conduit", "int"): "for the number of a Unix socket, use Conduit(fd)",
    ("Descriptor", "socket"): "for a socket, use Descriptor(sock.detach())",
    ("Descriptor", "file"): "for a file, use Descriptor(os.dup(file.fileno()))",
    ("Descriptor", "path"): "for a path, use Descriptor(os.open(path, os.O_RDONLY))",
    ("transfer_fd", "socket"): "for a socket, use transfer_conn",
    ("transfer_fd", "file"): "for a file, use transfer_file",
    ("transfer_fd", "path"): "for a path, use transfer_file(open(path))",
    ("transfer", "int"): "for the number of a descriptor, use transfer_fd",
    ("transfer", "path"): "for a path, use transfer_file(open(path)); for text, "
    "transfer(data=text.encode())",
    ("transfer", "bytes"): "for bytes, use transfer(data=...)",
    ("transfer", "sequence"): "for several at once, use transfer(*items)",
}


def _kind_of(value: object) -> str:
    if isinstance(value, int):
        return "int"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(value, str | os.PathLike):
        return "path"
    if isinstance(value, list | tuple | set):
        return "sequence"
    if isinstance(value, io.IOBase) or hasattr(value, "read") or hasattr(value, "write"):
        return "file"
    return "socket" if hasattr(value, "fileno") else ""


def _described(value: object) -> str:
    text = repr(value)
    if len(text) > 100:
        text = f"{text[:97]}..."
    return f"{text} of type {type(value).__name__}"


def _instead(call: str, value: object) -> str:
    hint = _INSTEAD.get((call, _kind_of(value)), "")
    return hint and f"; {hint}"


def not_an_int(call: str, value: object) -> DescriptorTypeError:
    """Return the error for a value where a call takes the number of a descriptor."""
    return DescriptorTypeError(
        f"a descriptor is an int, not {_described(value)}{_instead(call, value)}",
        ErrType.NO_FD,
    )


def not_an_object(call: str, value: object) -> DescriptorTypeError:
    """Return the error for a value where a call takes an object with ``fileno()``."""
    return DescriptorTypeError(
        f"{_described(value)} has no descriptor, since it has no fileno(){_instead(call, value)}",
        ErrType.NO_FD,
    )


def not_picklable(value: object) -> TypeError:
    """Return the error for pickling or copying an object that has a descriptor."""
    return TypeError(
        f"cannot pickle or copy {value!r}, which has a descriptor; conduit.multiprocessing lets a "
        "Conduit, Descriptor or Listener go to another process"
    )


def path_from(path: StrOrBytesPath) -> str | bytes:
    """Return a path as ``os.fspath()`` does; the `TypeError` says how to make a TCP socket."""
    try:
        return os.fspath(path)
    except TypeError:
        raise TypeError(
            "a Unix socket has a path (str, bytes or os.PathLike), not "
            f"{_described(path)}; a TCP socket is made with the socket module"
        ) from None


def name_from(name: object) -> str:
    """Return a name as a plain str, also from a subclass of str."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    return str.__str__(name)


def seconds_from(timeout: float | None) -> float:
    """Return a timeout in seconds; -1 for None."""
    if timeout is None:
        return -1.0
    # Not float(), which would accept a string.
    seconds = math.ldexp(timeout, 0)
    if not seconds >= 0:
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout!r}")
    return seconds


def size_from(size: int) -> int:
    """Return a size to receive, in bytes; `ValueError` if no message can have it."""
    if not 0 <= operator.index(size) <= sys.maxsize:
        raise ValueError(f"size must be 0 to {sys.maxsize} bytes, not {size}")
    return size


def not_a_limit(max_data: int, max_fds: int) -> ValueError:
    """Return the error for the impossible one of a receive's two limits."""
    if max_data < 1:
        return ValueError(f"max_data must be at least 1 byte, not {max_data}")
    if max_fds < 0:
        return ValueError(f"max_fds must be at least 0, not {max_fds}")
    return ValueError(f"max_data must be at most 2 GiB, not {max_data}")
