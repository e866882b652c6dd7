"""Where Python's file and socket objects meet descriptors.

Leaving: what an object holds back is flushed, and the kernel's offset is set to where the program
had read to, so that the receiver goes on from there. Arriving: the file mode comes from what the
descriptor allows, and a socket's timeout from what its descriptor does.

Nothing here owns a descriptor or closes a number.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import io
import operator
import os
import socket
import stat
import sys
from typing import IO, Any

from conduit import mistakes
from conduit._syscalls import socket_type
from conduit.errors import DescriptorTypeError, Error, ErrType, from_errno, from_handler

_POSITION = (1 << 64) - 1
"""The part of a text file's tell() that is an offset in bytes; above it is a decoder's state."""

_KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def number_of(obj: object, call: str = "transfer") -> int:
    """Return the descriptor of an object that has a ``fileno()``; the object keeps it.

    Args:
        obj: the object.
        call: for what, if it has none: `mistakes` tells what takes it instead.

    Raises:
        Error: ``NO_FD``, if it is closed or never had one.
        DescriptorTypeError: ``NO_FD`` as well, if objects of its kind have none, or one that is
            of no use to another process (TLS).
    """
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(obj, ssl.SSLSocket):
        raise DescriptorTypeError(
            "an SSLSocket cannot be transferred: the keys and the state of TLS live in this "
            "process, not in the descriptor; transfer the plain socket before the handshake",
            ErrType.NO_FD,
        )
    fileno = getattr(obj, "fileno", None)
    if fileno is None:
        raise mistakes.not_an_object(call, obj)
    try:
        number = fileno()
    except Exception as exc:
        if from_handler(exc):
            raise
        # A closed GzipFile and HTTPResponse raise AttributeError.
        raise Error(f"{obj!r} has no descriptor: {exc}", ErrType.NO_FD) from exc
    if not isinstance(number, int) or isinstance(number, bool):
        raise DescriptorTypeError(
            f"{obj!r} has no descriptor: its fileno() is {number!r}", ErrType.NO_FD
        )
    if not 0 <= number < 1 << 31:
        raise Error(
            f"{obj!r} has no descriptor: its fileno() is {number}, as of something closed",
            ErrType.NO_FD,
        )
    return number


def prepare(obj: Any, keep: bool) -> None:
    """Make an object ready to leave: flushed, and the kernel's offset where it has read to.

    Raises:
        Error: as `number_of`; ``FAILED_TRANSFER``, if flushing or setting the offset failed. The
            object is open and as it was, but for what could be flushed.
        DescriptorTypeError: also if the object is to be moved (not ``keep``) and has no
            ``close()``, which alone may close its descriptor.
    """
    number = number_of(obj)
    if not keep and not callable(getattr(obj, "close", None)):
        raise DescriptorTypeError(
            f"a {type(obj).__name__} has no close(), so it cannot be moved; share it with "
            "keep=True, or take its socket out first",
            ErrType.NO_FD,
        )
    try:
        inner = _buffered(obj)
        if inner is not None:
            # A text file under iteration refuses; once flushed, it would tell a wrong position.
            inner.tell()
        flush = getattr(obj, "flush", None)
        if callable(flush):
            flush()
        if inner is not None:
            _synchronise(inner, number)
    except (OSError, ValueError) as exc:
        if from_handler(exc):
            raise
        code = exc.errno if isinstance(exc, OSError) else None
        raise Error(f"{obj!r} was not transferred: {exc}", ErrType.FAILED_TRANSFER, code) from exc


def _buffered(obj: Any) -> Any:
    """Return the file that knows where the program has read to, if that is an offset."""
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and isinstance(obj, tempfile.SpooledTemporaryFile):
        obj = obj._file
    buffer = getattr(obj, "buffer", obj)
    # Only over a plain file is tell() an offset of the descriptor; a GzipFile's is not.
    if isinstance(getattr(buffer, "raw", None), io.FileIO) and buffer.seekable():
        return obj
    return None


def _synchronise(obj: Any, number: int) -> None:
    """Set the kernel's offset to the object's position, and drop what was read ahead."""
    position = obj.tell()
    whole = _at_character(obj, position)
    offset = os.lseek(number, 0, os.SEEK_CUR)
    if whole and offset != position & _POSITION:
        # The way there leads past what was read ahead: a seek inside the buffer moves no offset.
        # Not over the end: a file of /proc has none to seek to, and the failure would lose what
        # a text file has decoded.
        obj.seek(offset + 1)
        obj.seek(position)
        whole = os.lseek(number, 0, os.SEEK_CUR) == position & _POSITION
    if not whole:
        raise OSError(
            errno.ESPIPE, "it was read to the middle of what its encoding decodes at once"
        )


def _at_character(obj: Any, position: int) -> bool:
    """Whether a decoder that begins anew at a position goes on there as the object's would."""
    state = position >> 64
    if not state or position & _POSITION == 0 == state >> 32:
        return True
    # 1 is a CR that waits for its LF. What is 2 has read a BOM of the other byte order.
    start = codecs.getincrementaldecoder(obj.encoding)().getstate()[1]
    return state == 2 == start or (start > 2 and state in (start, start << 1))


def timeout_of(conn: object) -> float | None:
    """Return a socket's timeout in seconds; None for an object that has no such thing."""
    gettimeout = getattr(conn, "gettimeout", None)
    return gettimeout() if callable(gettimeout) else None


def check_file_arguments(
    mode: str | None,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> None:
    """Check what `open_file` is going to be asked for, before anything is received.

    Raises:
        TypeError, ValueError, LookupError: as ``open()`` does for the same arguments.
    """
    if mode is not None:
        if not isinstance(mode, str):
            raise TypeError(f"mode must be str or None, not {type(mode).__name__}")
        if (
            set(mode) - set("rwaxbt+")
            or len(set(mode)) != len(mode)
            or sum(mode.count(action) for action in "rwax") != 1
            or {"b", "t"} <= set(mode)
        ):
            raise ValueError(
                f"invalid mode: {mode!r}; it is one of open()'s, such as 'r' or 'wb', and a name "
                "for the file goes to name="
            )
    # As open() has it, which takes a C int.
    if operator.index(buffering) >= 1 << 31:
        raise ValueError(f"buffering must be less than 2 GiB, not {buffering}")
    if _is_text(mode):
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        io.TextIOWrapper(io.BytesIO(), _text_encoding(encoding), errors, newline)
    else:
        for argument, value in {"encoding": encoding, "errors": errors, "newline": newline}.items():
            if value is not None:
                raise ValueError(f"binary mode doesn't take an {argument!r} argument")


def file_mode(number: int, mode: str | None) -> str:
    """Return the mode a descriptor is to be opened in, as `io.FileIO` takes it.

    Args:
        number: the descriptor.
        mode: as for ``open()``; None is what the descriptor allows, in binary.

    Raises:
        Error: ``BAD_CLONE``, if the descriptor does not allow what the mode asks for.
    """
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    access = flags & os.O_ACCMODE
    if flags & getattr(os, "O_PATH", 0):
        raise from_errno(
            errno.EBADF,
            ErrType.BAD_CLONE,
            f"descriptor {number}",
            "it was opened with O_PATH, only to name a file, not to read or write it",
        )
    if mode is None:
        return {os.O_RDONLY: "rb", os.O_WRONLY: "wb"}.get(access, "r+b")
    wanting = "+" in mode or "r" in mode, "+" in mode or "r" not in mode
    for wanted, denied, name in zip(
        wanting, (os.O_WRONLY, os.O_RDONLY), ("reading", "writing"), strict=True
    ):
        if wanted and access == denied:
            raise from_errno(
                errno.EACCES,
                ErrType.BAD_CLONE,
                f"descriptor {number}",
                f"it is not open for {name}, which mode {mode!r} asks for",
            )
    # What FileIO does besides for x and a concerns files that it opens itself.
    return ("r+" if all(wanting) else "r" if wanting[0] else "w") + "b"


def open_file(
    raw: io.FileIO,
    mode: str | None,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    name: str | None,
) -> IO[Any]:
    """Build on a raw file, which owns its descriptor, what ``open()`` would have returned.

    A descriptor that can be read and written but not positioned (a socket, a terminal, a fifo)
    becomes an `io.BufferedRWPair`, as in ``socket.makefile("rwb")``.
    """
    if name is not None:
        raw.name = name
    if buffering == 0:
        return raw
    text = _is_text(mode)
    lines = text and (buffering == 1 or (buffering < 0 and raw.isatty()))
    size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
    buffer: io.BufferedIOBase
    if not raw.writable():
        buffer = io.BufferedReader(raw, size)
    elif not raw.readable():
        buffer = io.BufferedWriter(raw, size)
    elif raw.seekable():
        buffer = io.BufferedRandom(raw, size)
    else:
        buffer = DuplexFile(raw, size)
    if mode is None or not text:
        return buffer  # type: ignore[return-value]
    wrapper = io.TextIOWrapper(
        buffer,
        _text_encoding(encoding),
        errors,
        newline,
        lines,
    )
    wrapper.mode = mode  # type: ignore[misc]
    return wrapper


class DuplexFile(io.BufferedRWPair):
    """A buffered file on a descriptor that goes both ways and has no offset."""

    def __init__(self, raw: io.FileIO, buffer_size: int = io.DEFAULT_BUFFER_SIZE) -> None:
        super().__init__(raw, raw, buffer_size)
        self.raw = raw

    @property
    def name(self) -> Any:
        return self.raw.name

    @property
    def mode(self) -> str:
        return self.raw.mode

    def fileno(self) -> int:
        return self.raw.fileno()


def blank_socket() -> socket.socket:
    """Return a socket object that has no descriptor yet."""
    return socket.socket.__new__(socket.socket)


def fill_socket(sock: socket.socket, number: int) -> None:
    """Give a blank socket object its descriptor, and the timeout that this has already.

    On an exception, the object holds the descriptor if its ``fileno()`` says so.

    Raises:
        Error: ``BAD_CLONE``, if the descriptor is no socket.
    """
    try:
        kind = socket_type(number)
        waits = not fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK
        default = socket.getdefaulttimeout()
        # O_NONBLOCK is the sender's too, so the default timeout must not set it: said to be
        # non-blocking already, a new object leaves its descriptor alone.
        shield = 0 if waits and default is None else getattr(socket, "SOCK_NONBLOCK", 0)
        sock.__init__(type=kind | shield, fileno=number)  # type: ignore[misc]
        if sock.gettimeout() != (None if waits else 0.0):
            sock.settimeout(None if waits else 0.0)
    except OSError as exc:
        if from_handler(exc):
            raise
        raise from_errno(
            exc.errno or errno.EINVAL, ErrType.BAD_CLONE, f"descriptor {number}"
        ) from exc


def kind_of(mode: int) -> str:
    """Name the kind of file that a ``st_mode`` speaks of."""
    return _KINDS.get(stat.S_IFMT(mode), "anonymous")


def _is_text(mode: str | None) -> bool:
    return mode is not None and "b" not in mode


def _text_encoding(encoding: str | None) -> str | None:
    return io.text_encoding(encoding, 4)
