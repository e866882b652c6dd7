"""Where Python's file and socket objects meet descriptors.

A descriptor carries only the kernel's offset. What a Python object buffers stays behind, so before
anything is sent, each object is asked what it buffers:

- Bytes written and not flushed are flushed.
- Bytes read ahead from a file with an offset are dropped, and the offset is set to where the
  program stopped reading. If the transfer fails, the object reads the same bytes again.
- Bytes read ahead from a pipe, a socket or a terminal cannot be put back: the object is refused.

So we must know how much an object has read ahead. The classes of `io` tell, over a `FileIO` or
what ``socket.makefile()`` makes. If the file has an offset, their ``tell()`` is exact. If not, the
raw file is made to report for a moment that no bytes are available, and ``peek()`` returns what is
in the buffer (`_read_ahead`). Every other reader (`codecs.open`, `fileinput`, `gzip`, a response of
`http.client`, a third party's) may have a buffer that no method shows, so it is refused. A subclass
of an `io` class is trusted if it does not override reading, writing and positioning. An object that
neither reads nor writes is taken to buffer nothing.

A text file also has a decoder. It is sent only if a new decoder would read the same.

A signal handler may raise at any call here. `errors.from_handler` tells its exception from the
call's. Afterwards the object's ``tell()`` is what it was: every change is one step, except in
`_drop_read_ahead`, which undoes its own first step.

A received file has the mode that the descriptor allows, and a received socket its own family, type,
protocol and timeout. Nothing here owns a descriptor or closes an fd.
"""

from __future__ import annotations

import _socket
import codecs
import errno
import gc
import io
import itertools
import operator
import os
import select
import socket
import stat
import sys

from conduit import mistakes
from conduit._syscalls import offset_of, same_file, socket_options
from conduit.errors import DescriptorTypeError, Error, ErrType, from_errno, from_handler, reraise

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

    from _typeshed import HasFileno

    from conduit._conduit import Descriptor

_POSITION = (1 << 64) - 1
"""The part of a text file's tell() that is an offset in bytes; above it is a decoder's state."""

_IN_STEP = frozenset(["utf-8", "UTF-8", "ascii", "latin-1", "iso-8859-1", "ISO-8859-1"])
"""Encodings, as text files name them, that can be decoded from any character on."""

_TOLD_BY_MARK = frozenset(["utf-16", "utf-32"])
"""Encodings that begin with a byte order mark which says how to read on."""

_READS = ("read", "readline", "readinto")

_BUFFERING = frozenset(
    [
        *("read", "read1", "readall", "readinto", "readinto1", "readline", "readlines", "peek"),
        *("seek", "tell", "seekable", "write", "writelines", "flush", "truncate", "detach"),
        *("__next__", "__iter__", "__getattribute__", "__getattr__", "buffer", "raw"),
    ]
)
"""The methods that a subclass of an `io` class must not override to be trusted as its base is."""

_TLS = ("do_handshake", "getpeercert", "selected_alpn_protocol")
"""An object with one of these methods is a TLS socket: of `ssl`, pyOpenSSL, gevent or urllib3."""

_LOOP_SOCKETS = frozenset([("asyncio", "TransportSocket"), ("uvloop", "PseudoSocket")])
"""Socket objects of an event loop's transports, which only the loop may close."""

_KINDS = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFLNK: "symlink",
}

_socket_class = socket.socket
_FileIO = io.FileIO


def fd_of(obj: object, call: str = "transfer") -> int:
    """Return the descriptor of an object that has a ``fileno()``; the object keeps it.

    Args:
        obj: the object.
        call: the call that wants it, for the hint in the error (see `mistakes`).

    Raises:
        Error: ``NO_FD``, if it is closed or never had one.
        DescriptorTypeError: also ``NO_FD``, if objects of its type have none, or one that is of no
            use to another process (TLS).
    """
    if _has_any(obj, _TLS):
        raise DescriptorTypeError(
            f"a {type(obj).__name__} cannot be transferred: the keys and the state of TLS live in "
            "this process, not in the descriptor; transfer the plain socket before the handshake",
            ErrType.NO_FD,
        )
    return _number_of(obj, call)


def _number_of(obj: object, call: str) -> int:
    fileno = getattr(obj, "fileno", None)
    if fileno is None:
        raise mistakes.not_an_object(call, obj)
    try:
        fd = fileno()
    except Exception as exc:
        if from_handler(exc):
            raise
        # A closed GzipFile and HTTPResponse raise AttributeError.
        raise Error(f"{obj!r} has no descriptor: {exc}", ErrType.NO_FD) from exc
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise DescriptorTypeError(
            f"{obj!r} has no descriptor: its fileno() is {fd!r}", ErrType.NO_FD
        )
    if not 0 <= fd < 1 << 31:
        raise Error(
            f"{obj!r} has no descriptor: its fileno() is {fd}, as of a closed object",
            ErrType.NO_FD,
        )
    return fd


def prepare(obj: Any, keep: bool) -> None:
    """Prepare an object to be sent: flush it, and set the kernel's offset to where it has read to.

    If sending fails, there is nothing to undo: the object's ``tell()`` is what it was, and it reads
    on from there.

    Raises:
        Error: as `fd_of`; ``FAILED_TRANSFER``, if it holds what would be lost, or if flushing or
            setting the offset failed. The object is open and as it was, except that it may be
            flushed.
        DescriptorTypeError: also, without ``keep``, for an object that has no ``close()``, or that
            only its event loop may close.
    """
    if type(obj) is _socket_class:
        return
    prepare_file = _PREPARE.get(type(obj))
    file = obj
    try:
        if prepare_file is None:
            file, prepare_file = _recognise(obj, keep)
        prepare_file(file)
    except (OSError, ValueError) as exc:
        if isinstance(exc, Error) or from_handler(exc):
            raise
        fd_of(obj)
        code, why = getattr(exc, "errno", None), getattr(exc, "strerror", None)
        raise Error(
            f"{obj!r} was not transferred: {why or exc}", ErrType.FAILED_TRANSFER, code
        ) from exc


def may_wait(obj: Any) -> bool:
    """Whether `prepare` may have to wait for another process, to flush what was written.

    A regular file takes all that is written to it; a pipe, say, only when it is read.
    """
    cls = type(obj)
    if cls is _FileIO or cls is io.BufferedReader or not callable(getattr(obj, "flush", None)):
        return False
    writable = getattr(obj, "writable", None)
    try:
        if callable(writable) and not writable():
            return False
        return not stat.S_ISREG(os.fstat(fd_of(obj)).st_mode)
    except (OSError, ValueError) as exc:
        if from_handler(exc):
            raise
        # One that is closed, or has no descriptor, is refused by `prepare`.
        return False


def _recognise(obj: Any, keep: bool) -> tuple[Any, Callable[[Any], None]]:
    """Return what to prepare of an object of an unusual class, and the function that does it."""
    fd_of(obj)
    cls = type(obj)
    if not keep:
        if not callable(getattr(obj, "close", None)):
            raise DescriptorTypeError(
                f"a {cls.__name__} has no close(), so it cannot be moved; share it with "
                "keep=True, or take its socket out first",
                ErrType.NO_FD,
            )
        if (cls.__module__.partition(".")[0], cls.__name__) in _LOOP_SOCKETS:
            raise DescriptorTypeError(
                f"a {cls.__name__} belongs to its event loop, which would go on reading from it; "
                "share it with keep=True, or take its socket out first",
                ErrType.NO_FD,
            )
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        if cls is tempfile._TemporaryFileWrapper:
            obj = obj.file
        elif isinstance(obj, tempfile.SpooledTemporaryFile):
            obj = obj._file
    prepare_file = _known(type(obj))
    if prepare_file is None:
        if isinstance(obj, io.IOBase) or _may_read(obj):
            raise _unknown(obj)
        prepare_file = _flush
    return obj, prepare_file


def _known(cls: type) -> Callable[[Any], None] | None:
    """Return the function that prepares files of a class; None if their buffers are unknown."""
    for base in cls.__mro__:  # pragma: no branch - `object` has such a name, too
        if base in _PREPARE or not _BUFFERING.isdisjoint(vars(base)):
            break
    return _PREPARE.get(base)


def _may_read(obj: Any) -> bool:
    if not _has_any(obj, _READS):
        return False
    readable = getattr(obj, "readable", None)
    return not callable(readable) or bool(readable())


def _unknown(obj: Any) -> Error:
    return Error(
        f"{obj!r} was not transferred: a {type(obj).__name__} may hold bytes of its own, which "
        "would be lost; send the file or socket under it, or only the descriptor: "
        "transfer_fd(os.dup(file.fileno()))",
        ErrType.FAILED_TRANSFER,
        errno.EINVAL,
    )


def _flush(obj: Any) -> None:
    flush = getattr(obj, "flush", None)
    if callable(flush):
        flush()


def _prepare_raw(raw: Any) -> None:
    """Nothing is held by a raw file; a closed one is found by its ``fileno()``."""
    if type(raw) is socket.SocketIO and _has_any(raw._sock, _TLS):  # type: ignore[attr-defined]
        fd_of(raw._sock)  # type: ignore[attr-defined]


def _known_raw(raw: Any) -> Any:
    """Return the raw file under a buffer, if it is known to buffer nothing itself."""
    if _known(type(raw)) is not _prepare_raw:
        raise _unknown(raw)
    _prepare_raw(raw)
    return raw


def _prepare_reader(reader: Any) -> None:
    raw = reader.raw
    if type(raw) is not _FileIO:
        raw = _known_raw(raw)
    offset = offset_of(raw.fileno())
    if offset < 0:
        reader.flush()
        ahead = len(_read_ahead(reader, raw))
        if ahead:
            raise OSError(
                errno.ESPIPE,
                f"it holds {ahead} bytes that were read ahead and cannot be put back, since it has "
                "no offset; read them first, or send them along: "
                "transfer(os.dup(file.fileno()), data=file.peek())",
            )
    elif offset and (position := reader.tell()) != offset:
        _drop_read_ahead(reader, reader, raw, position, offset)


def _prepare_random(file: Any) -> None:
    raw = _known_raw(file.raw)
    # flush() also sets the kernel's offset to where the program has read to.
    file.flush()
    position, offset = file.tell(), raw.tell()
    if position != offset:  # pragma: no cover - not in any CPython of today
        _drop_read_ahead(file, file, raw, position, offset)


def _prepare_writer(writer: Any) -> None:
    _known_raw(writer.raw)
    writer.flush()


def _prepare_text(text: Any) -> None:
    buffer = text.buffer
    if type(buffer) not in _BUFFERS and _known(type(buffer)) not in _BUFFERS.values():
        raise _unknown(buffer)
    raw = buffer.raw
    if type(raw) is not _FileIO:
        raw = _known_raw(raw)
    in_step = text.encoding in _IN_STEP
    if not in_step:
        _check_encoder(text)
    offset = offset_of(raw.fileno())
    if offset <= 0:
        text.flush()
        if offset and text.readable():
            _check_nothing_decoded(text, buffer, raw)
        return
    # tell() flushes. During iteration it raises, as it must: after a flush() it would be wrong.
    try:
        position = text.tell()
    except OverflowError as exc:
        raise OSError(
            errno.ESPIPE, f"its encoding, {text.encoding}, does not tell where it was read to"
        ) from exc
    offset = raw.tell()
    if position == offset and in_step:
        return
    if not _decodes_from(text, position):
        raise OSError(
            errno.ESPIPE,
            f"it was read to the middle of what its encoding, {text.encoding}, decodes at once; "
            "read on to the end of a line, or go back to the beginning",
        )
    if position & _POSITION != offset:
        _drop_read_ahead(text, buffer, raw, position, offset)


def _drop_read_ahead(file: Any, buffer: Any, raw: Any, position: int, offset: int) -> None:
    """Set the kernel's offset to where a file has read to.

    A seek inside the buffer does not move the offset, so it seeks out of the buffer first.
    """
    try:
        _leave_buffer(buffer, offset)
        reached = file.seek(position)
    except BaseException:
        # Handlers run after a call, so none can run before this line.
        file.seek(position)
        raise
    if file is not buffer:
        reached = raw.tell()
    if reached != position & _POSITION:
        raise OSError(errno.ESPIPE, "the system does not set its offset to where it has read to")


def _leave_buffer(buffer: Any, offset: int) -> None:
    """Seek to somewhere outside of a buffer that ends at an offset."""
    try:
        # Not to the end: a file of /proc has none to seek to.
        buffer.seek(offset + 1)
    except OSError as exc:
        if from_handler(exc):
            raise
        # A block device cannot seek beyond its end.
        buffer.seek(0, os.SEEK_END)


def _decodes_from(text: Any, position: int) -> bool:
    """Whether a new decoder reads from a position what the text file's own would."""
    state = position >> 64
    if state >> 32:
        # The program has stopped inside what was decoded at once, which is not at a byte offset.
        return False
    offset = position & _POSITION
    if not offset or not text.readable():
        return True
    if codecs.lookup(text.encoding).name in _TOLD_BY_MARK:
        # Without its mark, nothing that follows can be read. 1 is a CR that waits for its LF.
        return state in (0, 2) and offset == os.fstat(text.fileno()).st_size
    if not state:
        return True
    # A stateful decoder has a number for its initial state, shifted by one under a newline decoder.
    start: int = codecs.getincrementaldecoder(text.encoding)().getstate()[1]
    return start > 2 and state in (start, start << 1)


class _WouldReadError(Exception):
    """A reader has asked its raw file for more."""


def _read_ahead(reader: Any, raw: Any) -> bytes:
    """Return what a reader has read ahead, and leave it there.

    ``peek()`` reads only if the buffer is empty; then the raw file reports that nothing has come.
    For other callers (another thread, a signal handler) it reads as usual.
    """
    code = sys._getframe().f_code

    def nothing(buffer: Any) -> int | None:
        if sys._getframe(1).f_code is not code:
            return type(raw).readinto(raw, buffer)  # type: ignore[no-any-return]
        return None

    if "readinto" in vars(raw):
        raise _unknown(raw)
    try:
        raw.readinto = nothing
        ahead: bytes = reader.peek()
    finally:
        # Not a call: a handler could run after it, before the restoring is done.
        del raw.readinto
    return ahead


def _check_nothing_decoded(text: Any, buffer: Any, raw: Any) -> None:
    """Check that a text file without an offset holds neither bytes nor characters.

    ``readline(0)`` reads only if there are no decoded characters. Where there are some, the program
    may have read them all, but nothing shows how many it has read.
    """
    code = sys._getframe().f_code

    def refuse(target: Any) -> int | None:
        if sys._getframe(1).f_code is not code:
            return type(raw).readinto(raw, target)  # type: ignore[no-any-return]  # pragma: no cover
        raise _WouldReadError

    if not _read_ahead(buffer, raw):
        try:
            raw.readinto = refuse
            text.readline(0)
        except _WouldReadError:
            if not _has_pending_bytes(text):
                return
        finally:
            del raw.readinto
    raise OSError(
        errno.ESPIPE,
        "it may hold text that was read ahead and cannot be put back, since it has no offset; "
        "read in binary what comes before (file.buffer), or send it before reading from it",
    )


def _has_pending_bytes(text: Any) -> bool:
    """Whether the decoder of a text file waits for the rest of a character, or an LF after CR."""
    decoder = _codec_of(text, "decode")
    if decoder is None:
        return False
    pending, state = decoder.getstate()
    return bool(pending) or (isinstance(decoder, io.IncrementalNewlineDecoder) and bool(state & 1))


def _check_encoder(text: Any) -> None:
    """Check that a new encoder writes what the text file's own would."""
    encoder = _codec_of(text, "encode")
    if encoder is None:
        return
    codec = codecs.lookup(text.encoding)
    # A text file opened in the middle writes no byte order mark.
    if codec.name in _TOLD_BY_MARK or codec.name == "utf-8-sig":
        return
    if encoder.getstate() != codec.incrementalencoder().getstate():
        raise OSError(
            errno.ESPIPE,
            f"it has written to the middle of what its encoding, {text.encoding}, shifts to; "
            "write a newline first",
        )


def _codec_of(text: Any, method: str) -> Any:
    """Return the incremental encoder or decoder of a text file, which no attribute shows."""
    for each in gc.get_referents(text):
        if hasattr(each, method) and hasattr(each, "getstate"):
            return each
    return None


def _has_any(obj: object, methods: tuple[str, ...]) -> bool:
    # Not any() over a generator: without memory to make one, Python 3.12 and 3.13 crash.
    for method in methods:  # noqa: SIM110
        if callable(getattr(obj, method, None)):
            return True
    return False


def close_failure(owner: Any, exc: BaseException) -> BaseException:
    """Return the exception to raise when the ``close()`` of an object that was sent raised one."""
    if not from_handler(exc):
        failure = Error(
            f"{owner!r} was sent, but closing it here failed: {exc}",
            ErrType.FAILED_CLOSE,
            exc.errno if isinstance(exc, OSError) else None,
        )
        failure.__cause__ = exc
        return failure
    if isinstance(owner, io.IOBase | _socket.socket):
        # A signal handler raised in close(). Closing Python's own classes twice is harmless.
        try:  # noqa: SIM105 - contextlib takes long to import
            owner.close()
        except BaseException:  # pragma: no cover - a signal handler's
            pass  # pragma: no cover
    return exc


def name_of(file: object) -> str:
    """Return the name of a file; "" if it has none, or a number for a name."""
    name = getattr(file, "name", "")
    return name if isinstance(name, str) else ""


def timeout_of(conn: object) -> float | None:
    """Return a socket's timeout in seconds; None for an object without ``gettimeout()``."""
    gettimeout = getattr(conn, "gettimeout", None)
    return gettimeout() if callable(gettimeout) else None


# The mode of the raw file. On an fd it creates and truncates nothing; for "a" it seeks to the end,
# as open() does.
_RAW_MODES = {
    "r": "rb",
    "w": "wb",
    "x": "wb",
    "a": "ab",
    "r+": "r+b",
    "w+": "r+b",
    "x+": "r+b",
    "a+": "a+b",
}

_MODES: dict[str | None, tuple[bool, bool, str]] = {None: (False, False, "")}
"""By each mode of ``open()``: whether it reads, whether it writes, and the raw file's."""
for _mode, _raw_mode in _RAW_MODES.items():
    for _letter in ("", "b", "t"):
        for _letters in itertools.permutations(_mode + _letter):
            _MODES["".join(_letters)] = ("r" in _mode or "+" in _mode, _mode != "r", _raw_mode)

_checked: set[tuple[object, ...]] = set()
"""Values of mode, encoding, errors and newline that are known to be valid together."""

_OWN_MODES = {os.O_RDONLY: "rb", os.O_WRONLY: "wb"}

_O_PATH = getattr(os, "O_PATH", 0)


def check_file_arguments(
    mode: str | None,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> None:
    """Check the arguments of `open_file` before anything is received.

    Raises:
        TypeError, ValueError, LookupError: as ``open()`` does for the same arguments.
    """
    arguments = mode, encoding, errors, newline
    # Any other buffering is checked each time: programs may pass any number, and 1.0 equals 1.
    if type(buffering) is int and buffering == -1 and arguments in _checked:
        return
    if mode not in _MODES:
        if not isinstance(mode, str):
            raise TypeError(f"mode must be str or None, not {type(mode).__name__}")
        raise ValueError(
            f"invalid mode: {mode!r}; it is one of open()'s, such as 'r' or 'wb', and a name "
            "for the file goes to name="
        )
    # open() takes a C int, too.
    if operator.index(buffering) >= 1 << 31:
        raise ValueError(f"buffering must be less than 2 GiB, not {buffering}")
    text = mode is not None and "b" not in mode
    if text and buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    if text:
        io.TextIOWrapper(io.BytesIO(), "utf-8" if encoding is None else encoding, errors, newline)
    else:
        given = {"encoding": encoding, "errors": errors, "newline": newline}
        for argument, value in given.items():
            if value is not None:
                raise ValueError(f"binary mode doesn't take an {argument!r} argument")
    _checked.add(arguments)


def raw_file(flags: int, mode: str | None, buffering: int) -> tuple[type[io.FileIO], str]:
    """Return the class to make a raw file of a descriptor with, and the mode to give it.

    Args:
        flags: the descriptor's access mode and status flags (``F_GETFL``).
        mode: as for ``open()``; None means binary, with what the descriptor allows.
        buffering: as for ``open()``.

    Raises:
        OSError: the descriptor does not allow what the mode asks for.
    """
    access = flags & os.O_ACCMODE
    if flags & _O_PATH:
        raise OSError(
            errno.EBADF, "it was opened with O_PATH, only to name a file, not to read or write it"
        )
    cls = WaitingFile if flags & os.O_NONBLOCK and buffering else io.FileIO
    reading, writing, raw_mode = _MODES[mode]
    if mode is None:
        return cls, _OWN_MODES.get(access, "r+b")
    if (reading and access == os.O_WRONLY) or (writing and access == os.O_RDONLY):
        raise OSError(
            errno.EACCES,
            f"it is not open for {'reading' if access == os.O_WRONLY else 'writing'}, which mode "
            f"{mode!r} asks for",
        )
    return cls, raw_mode


def open_file(
    raw: io.FileIO,
    mode: str | None,
    buffering: int,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
    name: str | None,
) -> IO[Any]:
    """Return what ``open()`` would, built on a raw file, which owns its descriptor.

    A descriptor that can be read and written but not positioned (a socket, a terminal, a fifo)
    becomes an `io.BufferedRWPair`, as in ``socket.makefile("rwb")``.
    """
    if name is not None:
        raw.name = name
    if buffering == 0:
        return raw
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
    if mode is None or "b" in mode:
        return buffer  # type: ignore[return-value]
    lines = buffering == 1 or (buffering < 0 and not raw.seekable() and raw.isatty())
    encoding = encoding or io.text_encoding(None)
    wrapper = io.TextIOWrapper(buffer, encoding, errors, newline, lines)
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


class WaitingFile(io.FileIO):
    """A raw file that blocks, though its descriptor is non-blocking.

    ``O_NONBLOCK`` is shared with the sender, so it stays. But the buffers of `io` lose data or
    raise `TypeError` over a raw file that returns None.
    """

    def readinto(self, buffer: Any) -> int:
        while (count := super().readinto(buffer)) is None:
            self._wait(select.POLLIN)
        return count

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        while (data := super().read(size)) is None:
            self._wait(select.POLLIN)
        return data

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(io.DEFAULT_BUFFER_SIZE), b""))

    def write(self, data: Any) -> int:
        while (count := super().write(data)) is None:
            self._wait(select.POLLOUT)
        return count

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self, events)
        poll.poll()


_BUFFERS: dict[type, Callable[[Any], None]] = {
    io.BufferedReader: _prepare_reader,
    io.BufferedWriter: _prepare_writer,
    io.BufferedRandom: _prepare_random,
    DuplexFile: _prepare_reader,
}

_PREPARE: dict[type, Callable[[Any], None]] = {
    **_BUFFERS,
    io.TextIOWrapper: _prepare_text,
    io.FileIO: _prepare_raw,
    WaitingFile: _prepare_raw,
    socket.SocketIO: _prepare_raw,
}
"""What makes a file of each known class ready to be sent."""


def blank_socket() -> socket.socket:
    """Return a socket object that has no descriptor yet."""
    return _socket_class.__new__(_socket_class)


def fill_socket(sock: socket.socket, fd: int) -> None:
    """Give a blank socket object its descriptor, and a timeout that matches ``O_NONBLOCK``.

    After an exception, the object's ``fileno()`` says whether it has the descriptor.

    Raises:
        Error: ``BAD_CLONE``, if the descriptor is not a socket.
    """
    try:
        if os.get_blocking(fd) and socket.getdefaulttimeout() is None:
            # By far the most common, and Python finds out the rest in fewer system calls.
            sock.__init__(-1, -1, -1, fd)  # type: ignore[misc]
            return
    except OSError as exc:
        if from_handler(exc):
            raise
        # It is no socket; or it has no name, from which Python knows the family (AF_ALG, AF_XDP).
    try:
        family, kind, protocol, waits = socket_options(fd)
        # O_NONBLOCK is shared with the sender, so a default timeout must not set it. A socket
        # object that is told SOCK_NONBLOCK leaves the flag alone.
        sock.__init__(family, kind | _SOCK_NONBLOCK, protocol, fd)  # type: ignore[misc]
        if waits or not _SOCK_NONBLOCK:
            sock.settimeout(None if waits else 0.0)
    except OSError as exc:
        reraise(exc, f"descriptor {fd}", ErrType.BAD_CLONE)


_SOCK_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)


def to_file(
    self: Descriptor,
    mode: str | None = None,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    name: str | None = None,
) -> IO[Any]:
    """Return a file object that owns the descriptor from now on.

    The arguments are those of ``open()``; ``name`` is the file's ``name``. Without a mode, the
    file is binary and allows what the descriptor allows. Nothing is truncated; ``"a"`` seeks to
    the end.

    A descriptor that reads and writes and has no offset (a socket, a terminal) becomes an
    `io.BufferedRWPair`. ``O_NONBLOCK`` stays set, since the sender may need it, but the file
    blocks all the same; only with ``buffering=0`` does it return None. Raises `Error`
    (``BAD_CLONE``) if the descriptor does not allow the mode, and what ``open()`` raises. The
    Descriptor is then unchanged.
    """
    check_file_arguments(mode, buffering, encoding, errors, newline)
    if mode is not None and "b" not in mode:
        # Here, so that an EncodingWarning names the line of the caller.
        encoding = io.text_encoding(encoding)
    return self._open_as((mode, buffering, encoding, errors, newline, name), False)  # type: ignore[no-any-return]


def to_conn(self: Descriptor) -> socket.socket:
    """Return a `socket.socket` that owns the descriptor from now on.

    It has the descriptor's family, type and protocol. ``O_NONBLOCK`` stays as it is, and the
    timeout matches it: 0.0 if set, else None. `Error` (``BAD_CLONE``) if it is not a socket;
    the Descriptor is then unchanged.
    """
    return self._open_as(None, False)  # type: ignore[no-any-return]


def is_same_file(self: Descriptor, other: int | HasFileno) -> bool:
    """Whether both refer to one open file description, as duplicates do (two opens do not).

    Where the system cannot tell, the inode decides: on Linux before 6.10 in a sandbox without
    kcmp(2), and on other systems.
    """
    if not isinstance(other, int):
        other = _number_of(other, "is_same_file")
    elif not 0 <= other < 1 << 31:
        raise Error(f"there is no descriptor {other}", ErrType.NO_FD)
    same = same_file(self.fileno(), other)
    # Check again: another thread may have closed it, and the number been reused.
    self.fileno()
    return same


def kind(self: Descriptor) -> str:
    """The type of the open file, as ``fstat(2)`` and, on Linux, ``/proc`` report it.

    ``"regular file"``, ``"directory"``, ``"fifo"``, ``"socket"``, ``"character device"``,
    ``"block device"``, ``"symlink"`` (opened with ``O_PATH``). For files without a path Linux
    reports ``"memfd"``, ``"eventfd"``, ``"epoll"``, ``"timerfd"``, ``"signalfd"``,
    ``"inotify"``, ``"pidfd"``, ``"io_uring"`` and others; if unknown, it is ``"anonymous"``.
    `Error` (``UNKNOWN``) if fstat(2) fails.
    """
    fd, mode = self.fileno(), self._mode()
    if mode < 0:
        # `fileno` raises if it is closed.
        self.fileno()
        raise from_errno(-mode, ErrType.UNKNOWN, f"the kind of descriptor {fd}")
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is None or kind == "regular file":
        # A memfd is a regular file as well, and so is a pidfd to newer kernels.
        kind = _kind_by_link(fd) or kind or "anonymous"
        # Check again: another thread may have closed it, and the number been reused.
        self.fileno()
    return kind


def _kind_by_link(fd: int) -> str | None:
    """Name what Linux calls ``anon_inode:[eventpoll]``, ``/memfd:name (deleted)`` and the like."""
    try:
        link = os.readlink(f"/proc/self/fd/{fd}")
    except OSError as exc:
        if from_handler(exc):
            raise  # pragma: no cover - traced runs have no handler that raises
        return None
    if link.startswith("/memfd:") and link.endswith(" (deleted)"):
        return "memfd"
    kind, _, name = link.partition(":")
    if kind == "anon_inode":
        name = name.strip("[]")
        return {"eventpoll": "epoll"}.get(name, name)
    return "pidfd" if kind == "pidfd" else None
