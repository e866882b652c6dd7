"""The errors of conduit, and the one place where an errno becomes one of them."""

from __future__ import annotations

import enum
import errno as codes
import os

TYPE_CHECKING = False  # A checker takes it for true. `typing` takes long to import.
if TYPE_CHECKING:
    from typing import NoReturn


class ErrType(enum.IntEnum):
    """What kind of failure an `Error` is: the constants of Go's net-conduit, in its order."""

    UNKNOWN = 0
    """Nothing more is known."""
    NO_FD = 1
    """An argument has no descriptor, or the conduit is closed."""
    FAILED_TRANSFER = 2
    """The message could not be sent or received."""
    FAILED_CLOSE = 3
    """It was sent, but closing the local copy failed; or ``close()`` failed."""
    BAD_CLONE = 4
    """Duplicating or adopting a descriptor failed."""
    BAD_CTRL_MESG = 5
    """The control message is malformed, truncated, or holds the wrong number of descriptors."""


class Error(OSError):
    """A call of this library failed.

    Not all that a call raises is an `Error`. An argument with an impossible value (a negative
    timeout, an unknown file mode) is a `ValueError` and one of the wrong type a `TypeError`, as in
    the standard library. What a signal handler or the caller's own function raises stays itself.

    Attributes:
        type: the kind of failure, an `ErrType`.
        errno: the system's number, or None where the system reported nothing.
        strerror: the same in words.
        sent: how many bytes of the payload had left before the failure. If it is 0, nothing was
            transferred, and the caller still owns everything.

    ``str()`` of it is a sentence: which conduit, what failed, what to do.
    """

    type: ErrType
    sent: int

    def __init__(
        self,
        message: str,
        type: ErrType = ErrType.UNKNOWN,
        errno: int | None = None,
        *,
        sent: int = 0,
    ) -> None:
        if errno is None:
            super().__init__(message)
        else:
            super().__init__(errno, os.strerror(errno))
        self.type = ErrType(type)
        self.sent = sent
        self._message = message

    def __str__(self) -> str:
        return self._message

    def __reduce__(self) -> tuple[object, ...]:
        return self.__class__, (self._message, self.type, self.errno), self.__dict__


class PeerClosedError(Error, EOFError):
    """The peer is gone: the end of the stream, EPIPE, ECONNRESET."""


class TransferTimeoutError(Error, TimeoutError):
    """The deadline passed. Nothing was transferred, unless `sent` says otherwise."""


class WouldBlockError(Error, BlockingIOError):
    """The timeout is 0 and the socket is not ready. `sent` says how much was transferred."""


class TakeoverError(Error):
    """The predecessor does not hand over, or the successor does not take over."""


class DescriptorTypeError(Error, TypeError):
    """An argument is of a type that has no descriptor. The error's ``type`` is ``NO_FD``."""


# The class; why it waited, unless the caller gives a reason; what ended the wait.
_WAITING: dict[int, tuple[type[Error], str, str]] = {
    codes.EAGAIN: (WouldBlockError, "it is not ready", "the timeout is 0"),
    codes.ETIMEDOUT: (TransferTimeoutError, "nothing was transferred", "the deadline passed"),
}

_SENTENCES = {
    codes.EMFILE: "this process has no room for more descriptors; close some, or raise "
    "RLIMIT_NOFILE (ulimit -n)",
    codes.ENFILE: "the system has no room for more open files (fs.file-max)",
    codes.ENOTSOCK: "it is not a socket",
}

# A transfer to a peer that is gone; ECONNREFUSED and ENOTCONN are a datagram socket's.
_PEER_GONE = {
    codes.EPIPE: "the peer is gone",
    codes.ECONNRESET: "the peer is gone, and did not read all that was sent to it",
    codes.ECONNREFUSED: "the peer is gone",
    codes.ENOTCONN: "it has no peer, or no longer",
}

_TRANSFER_SENTENCES = {
    codes.ETOOMANYREFS: "this user has too many descriptors on their way, unread; let the "
    "receivers read, or raise RLIMIT_NOFILE (ulimit -n)",
    codes.EMSGSIZE: "the message is longer than the socket can take at once; send less, or use "
    "a stream",
    codes.EPERM: "a security policy forbids it, or the peer takes no descriptors (SO_PASSRIGHTS)",
    codes.EINVAL: "the system refuses to pass one of the descriptors (an io_uring, say), or the "
    "socket is a listening one",
    codes.EAFNOSUPPORT: "it is not a Unix socket, and only those carry descriptors",
    codes.EBADF: "its descriptor was closed elsewhere",
    codes.EDEADLK: "this thread is sending on it already, and was interrupted by a signal handler "
    "or the like, for which it cannot wait",
}

_CLOSE_SENTENCES = {
    codes.EBADF: "its number was closed elsewhere or given to another file, or the system cannot "
    "tell; what has it now was left alone",
}

_MESSAGE_SENTENCES = {
    codes.EMFILE: "this process had no room for the descriptors of a message (all closed); close "
    "others first, or raise RLIMIT_NOFILE (ulimit -n)",
}


def prefix_message(error: Error, prefix: str) -> None:
    """Put what an error is about, such as one item of several, in front of its sentence."""
    error._message = f"{prefix}: {error._message}"


def from_handler(exc: BaseException) -> bool:
    """Whether an exception was raised by a signal handler, and not by the code it interrupted.

    Such an exception stays itself, wherever it strikes; what a user's object raises becomes an
    `Error`. A handler is recognised by its frame: only a handler has the frame below its own as an
    argument. What is not an `Exception`, such as KeyboardInterrupt, counts as a handler's.
    """
    if not isinstance(exc, Exception):
        return True
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_back is not None:
            for value in frame.f_locals.values():
                if value is frame.f_back or (
                    type(value) is tuple and any(each is frame.f_back for each in value)
                ):
                    return True
        traceback = traceback.tb_next
    return False


class Ignoring:
    """`contextlib.suppress`, except that what a signal handler raises is not suppressed."""

    def __init__(self, *types: type[Exception]) -> None:
        self._types = types

    def __enter__(self) -> None:
        pass

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> bool:
        return isinstance(exc, self._types) and not from_handler(exc)


def refusal(
    what: str, size: int, least: int, most: int, count: int, err: int, ended: bool, withheld: bool
) -> Error:
    """Make the `Error` for a message that a call received and cannot return.

    Args:
        what: which conduit.
        size: how many bytes the call had room for.
        least: the fewest descriptors it accepts.
        most: the most.
        count: how many came; they are closed.
        err: why the message is not whole, as an errno, or 0.
        ended: whether it is not a message but the end.
        withheld: whether the system withheld a descriptor.
    """
    what = f"{what}: receiving"
    if ended:
        return PeerClosedError(f"{what}: the peer closed its end", ErrType.FAILED_TRANSFER)
    if err:
        why = None
        if err == codes.EMSGSIZE:
            why = (
                f"a message was longer than the {size} bytes asked for, and is lost; its "
                "descriptors are closed"
            )
        return from_errno(err, ErrType.BAD_CTRL_MESG, what, why)
    if withheld:
        why = (
            "the system withheld a descriptor (all that came are closed): a security policy, or "
            "this process had no room for a moment"
        )
    elif least:
        closed = " (all closed)" if count else ""
        why = (
            f"expected 1 descriptor, received {count}{closed}; receive() takes messages of any form"
        )
    else:
        why = f"expected at most {most} descriptors, received {count} (all closed)"
    return Error(f"{what}: {why}", ErrType.BAD_CTRL_MESG)


def from_errno(
    errno: int, type: ErrType, what: str, why: str | None = None, *, sent: int = 0
) -> Error:
    """Make the `Error` for a system call that failed.

    Args:
        errno: the errno of the call; it decides the class.
        type: the kind of failure.
        what: which conduit failed, and at what.
        why: a sentence that says more than the usual one for this errno.
        sent: how many bytes of the payload had left.

    Returns:
        the error, for the caller to raise.
    """
    cls = Error
    if errno in _WAITING:
        cls, usual, limit = _WAITING[errno]
        why = f"{why or usual}, and {limit}"
    sentences = _SENTENCES
    if type is ErrType.FAILED_TRANSFER:
        sentences = _SENTENCES | _PEER_GONE | _TRANSFER_SENTENCES
        if errno in _PEER_GONE:
            cls = PeerClosedError
    elif type is ErrType.BAD_CTRL_MESG:
        sentences = _SENTENCES | _MESSAGE_SENTENCES
    elif type is ErrType.FAILED_CLOSE:
        sentences = _SENTENCES | _CLOSE_SENTENCES
    name = codes.errorcode.get(errno)
    sentence = why or sentences.get(errno)
    if sentence is None:
        sentence = f"{os.strerror(errno)} [{name or errno}]"
    elif name is not None:
        sentence = f"{sentence} [{name}: {os.strerror(errno)}]"
    return cls(f"{what}: {sentence}", type, errno, sent=sent)


def reraise(
    exc: OSError, what: str, type: ErrType = ErrType.NO_FD, why: str | None = None
) -> NoReturn:
    """Raise an `OSError` as an `Error`, as `from_errno` makes it.

    The exception itself if it is an `Error` already, or if a signal handler raised it.
    """
    if isinstance(exc, Error) or from_handler(exc):
        raise exc
    errno = exc.errno or codes.EINVAL
    if why is None and exc.strerror != os.strerror(errno):
        # From the resolver, which has numbers of its own, or a message of Python's.
        why = exc.strerror or str(exc)
    raise from_errno(errno, type, what, why) from exc
