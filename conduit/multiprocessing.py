"""Send objects with descriptors through `multiprocessing`: importing this module is enough.

From then on, `Conduit`, `Descriptor`, `Listener`, binary files and sockets go wherever
`multiprocessing` pickles: ``Process(args=...)``, queues, pipes, managers, pools and
`concurrent.futures.ProcessPoolExecutor`, whatever the start method. What is sent is shared, never
moved: it stays open here, and what arrives is another descriptor of the same open file.

A pickle is bytes, and bytes carry no descriptor. There are two ways round that:

- A process that is being spawned inherits it, as in `multiprocessing` itself.
- Otherwise the pickle holds a ticket: the address of a socket on which this process listens, a key,
  and a proof. The process that unpickles it connects, sends the key, and receives the proof with
  the descriptor. The key keeps out processes without the pickle. The proof exposes a process that
  has bound the address after this one left it.

Until then a duplicate is open here. It is closed when it was fetched (once), when its lifetime is
over, when this process ends, and at once in a forked child. Nothing tells that a ticket is lost,
say with a worker that was killed, so only the lifetime bounds it. The lifetime is long: a ticket
that waits behind long tasks must still be valid when its turn comes, or the pool fails.

``multiprocessing.resource_sharer`` is simpler, but has faults, which are why this exists. A
descriptor that nobody fetches stays open for ever. If the sender has ended, it cannot be fetched.
Every child inherits what arrives. Its thread and its socket never end.

Threads share ``_shelves``, one for each lifetime in use, and all that they hold; ``_lock`` protects
them. It is held while the process forks, so that the child finds them whole. The thread of a shelf
waits without the lock, and ends with the last item on the shelf. So a program with nothing on its
way has no socket and no thread, which `os.fork` would warn about. The lock is reentrant, since a
signal handler may pickle, too.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import io
import os
import select
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import parent_process, reduction, util
from multiprocessing.context import get_spawning_popen
from typing import IO, Any, NamedTuple, Protocol

from conduit import objects
from conduit._conduit import Conduit, Descriptor
from conduit._syscalls import monotonic, offset_of
from conduit.errors import (
    Error,
    ErrType,
    PeerClosedError,
    WouldBlockError,
    from_handler,
)
from conduit.listener import Listener
from conduit.peer import Peer

__all__ = ["register"]

LIFETIME = 3600.0
"""The default for how many seconds a pickled descriptor can be unpickled."""

LINGER = 10.0
"""Seconds that a worker waits at its exit until what it sent is fetched."""

_PATIENCE = 60.0
"""Seconds to wait for the process that sent something, which may be stopped."""

_PAUSE = 0.1
"""Seconds after which to accept again if there was no room for a connection."""

_KEY_SIZE = 16

_INHERITABLE = 128
"""The most descriptors that a process inherits; the fork server's message takes 253 in all."""

_SIGNALS = signal.valid_signals()

_lifetime = LIFETIME
_lock = threading.RLock()
_shelves: list[_Shelf] = []


def register(*, lifetime: float = LIFETIME) -> None:
    """Let descriptors go through `multiprocessing` from now on, in this process.

    Importing the module does this. Call it to set another lifetime, or if other code has replaced
    the registration since. It does not affect `pickle` and `copy`. A process that unpickles
    something of this library is registered, too, with the default lifetime.

    Args:
        lifetime: for how many seconds something sent from now on can be unpickled; then its
            duplicate is closed, and unpickling it raises `Error`. It must be longer than anything
            waits in a queue: a pool worker fails if its task does not unpickle.

    Raises:
        ValueError: ``lifetime`` is not more than 0.
    """
    global _lifetime  # noqa: PLW0603
    if not lifetime > 0:
        raise ValueError(f"lifetime must be more than 0 seconds, not {lifetime!r}")
    _lifetime = float(lifetime)
    for cls, reducer in _REDUCERS.items():
        reduction.register(cls, reducer)


class _Inherited(Protocol):
    """What `multiprocessing` pickles for a descriptor that a new process inherits."""

    def detach(self) -> int: ...


class _Ticket(NamedTuple):
    """Where to fetch a descriptor, and how each side recognises the other."""

    address: str
    key: bytes
    proof: bytes


class _Item(NamedTuple):
    """A descriptor that waits to be fetched."""

    descriptor: Descriptor
    proof: bytes
    deadline: float


class _Shelf:
    """The items of one lifetime that wait to be fetched: the oldest expires first.

    All of it is used with ``_lock`` held, except for the wait in `_run`.
    """

    def __init__(self, lifetime: float) -> None:
        self.lifetime = lifetime
        self.address = _new_address()
        self.items: dict[bytes, _Item] = {}
        self._guests: dict[int, Conduit] = {}
        self._closed = False
        self._listener = Listener(self.address)
        self.ended = threading.Event()
        _shelves.append(self)
        try:
            # Not a Thread: if a signal handler raises in its start(), the object is inconsistent.
            _thread.start_new_thread(self._run, ())
        except BaseException as exc:
            # The thread may run all the same, and ends when it sees this.
            self.close()
            if isinstance(exc, RuntimeError) and not from_handler(exc):
                raise Error(f"sending by multiprocessing: {exc}", ErrType.UNKNOWN) from exc
            raise

    def close(self) -> None:
        """Close all items, the listener, and the connections."""
        if self._closed:
            return
        self._closed = True
        _shelves.remove(self)
        waiting: list[Any] = [item.descriptor for item in self.items.values()]
        for each in [*waiting, *self._guests.values(), self._listener]:
            # A failure to close a duplicate does not matter: the program has its own descriptor.
            with contextlib.suppress(Error):
                each.close()

    def _run(self) -> None:
        # A signal that this thread takes would not interrupt a system call of the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        ready: set[int] = set()
        try:
            while True:
                with _lock:
                    if self._closed:
                        return
                    has_room = self._serve(ready)
                    self._drop_expired()
                    if not self.items:
                        # With the lock held, so that nobody adds an item to a closed shelf.
                        self.close()
                        return
                    poll = select.poll()
                    for fd in self._guests:
                        poll.register(fd, select.POLLIN)
                    if has_room:
                        poll.register(self._listener, select.POLLIN)
                    oldest = next(iter(self.items.values()))
                seconds = min(oldest.deadline - monotonic(), LIFETIME if has_room else _PAUSE)
                ready = {fd for fd, _ in poll.poll(max(0, seconds) * 1000)}
        finally:
            with _lock:
                self.close()
            self.ended.set()

    def _serve(self, ready: set[int]) -> bool:
        """Answer the guests that sent a key, and accept one more; False if there is no room."""
        for fd in ready & self._guests.keys():
            with contextlib.suppress(Error), self._guests.pop(fd) as guest:
                self._answer(guest)
        if self._listener.fileno() in ready:
            try:
                newcomer = self._listener.admit(0)
            except Error as exc:
                return isinstance(exc, WouldBlockError)
            if newcomer is not None:
                newcomer.timeout = 0
                self._guests[newcomer.fileno()] = newcomer
        return True

    def _answer(self, guest: Conduit) -> None:
        """Send a guest what its key is for, and close it here: a key works once."""
        item = self.items.pop(guest.receive(_KEY_SIZE, 0).data, None)
        if item is not None:
            with item.descriptor:
                guest.transfer(item.descriptor, data=item.proof)

    def _drop_expired(self) -> None:
        now = monotonic()
        while self.items:
            key, item = next(iter(self.items.items()))
            if item.deadline > now:
                break
            with contextlib.suppress(Error):
                self.items.pop(key).descriptor.close()


def _new_address() -> str:
    name = f"conduit-{os.getpid()}-{os.urandom(8).hex()}"
    # An abstract name goes when the process ends, even if it is killed.
    return f"@{name}" if sys.platform == "linux" else os.path.join(util.get_temp_dir(), name)


def _share(fd: int) -> _Ticket:
    """Keep a duplicate of a descriptor until it is fetched; return its ticket."""
    key, proof = os.urandom(_KEY_SIZE), os.urandom(_KEY_SIZE)
    try:
        _lock.acquire()
        descriptor = _duplicate(fd)
        try:
            lifetime = _lifetime
            shelf = next((shelf for shelf in _shelves if shelf.lifetime == lifetime), None)
            if shelf is None:
                shelf = _Shelf(lifetime)
            shelf.items[key] = _Item(descriptor, proof, monotonic() + lifetime)
        except BaseException:
            descriptor.close()
            raise
    finally:
        # Not by a with statement: from Python 3.14 on, a signal handler can raise between its
        # acquire and its block, and leave it locked for ever.
        try:  # noqa: SIM105 - a call in which a handler could raise
            _lock.release()
        except RuntimeError:  # pragma: no cover - a signal handler's
            pass  # pragma: no cover
    return _Ticket(shelf.address, key, proof)


def _duplicate(fd: int) -> Descriptor:
    """Return a duplicate, made by sending it once: a descriptor that cannot be sent fails here.

    The duplicate has an owner from the first instant, even if a signal handler raises.
    """
    one, other = Conduit.pair()
    with one, other:
        one.transfer_fd(fd, keep=True)
        return other.receive().fds[0]


def _carry(fd: int) -> _Inherited | _Ticket:
    """Return what stands for a descriptor in the pickle that is being made."""
    popen: Any = get_spawning_popen()
    # Two objects cannot inherit one number; and standard streams are replaced in the child.
    if popen and fd > 2 and fd not in popen._fds and len(popen._fds) < _INHERITABLE:
        inherited: _Inherited = popen.DupFd(popen.duplicate_for_child(fd))
        return inherited
    return _share(fd)


def _take(carried: _Inherited | _Ticket, what: str) -> Descriptor:
    """Return the descriptor that a pickle stands for; the caller owns it."""
    if not isinstance(carried, _Ticket):
        return Descriptor(carried.detach())
    try:
        with Conduit.connect(carried.address, timeout=_PATIENCE, name="multiprocessing") as link:
            link.transfer(data=carried.key)
            message = link.receive(_KEY_SIZE, 1)
    except PeerClosedError as exc:
        raise _void(what, None) from exc
    except Error as exc:
        if exc.errno in (errno.ECONNREFUSED, errno.ENOENT):
            raise _void(what, exc.errno) from exc
        raise Error(f"unpickling {what}: {exc}", ErrType.FAILED_TRANSFER, exc.errno) from exc
    if message.data != carried.proof or len(message.fds) != 1:
        message.close()
        raise _void(what, None)
    return message.fds[0]


def _void(what: str, code: int | None) -> Error:
    return Error(
        f"unpickling {what}: its descriptor is gone. It was unpickled before (only once is "
        "possible), or not in time (see conduit.multiprocessing.register), or the process that "
        "pickled it has ended, or runs as another user",
        ErrType.FAILED_TRANSFER,
        code,
    )


def _reduce_descriptor(descriptor: Descriptor) -> tuple[Any, ...]:
    return _rebuild_descriptor, (_carry(descriptor.fileno()), descriptor.name)


def _rebuild_descriptor(carried: _Inherited | _Ticket, name: str) -> Descriptor:
    # One call, all in C: no signal handler can run while nothing owns the number.
    taken = [_take(carried, f"a Descriptor {name!r}")]
    [descriptor] = map(Descriptor, map(Descriptor.detach, taken), [name]) if name else taken
    return descriptor


def _reduce_conduit(conduit: Conduit) -> tuple[Any, ...]:
    return _rebuild_conduit, (_carry(conduit.fileno()), conduit.name, conduit.timeout)


def _rebuild_conduit(carried: _Inherited | _Ticket, name: str, timeout: float | None) -> Conduit:
    with _take(carried, f"a Conduit {name!r}") as descriptor:
        conduit = Conduit.from_conn(descriptor, name=name)
    conduit.timeout = timeout
    return conduit


def _reduce_listener(listener: Listener) -> tuple[Any, ...]:
    allow = listener._allow
    # First: if allow cannot be pickled, no duplicate is made.
    reduction.ForkingPickler.dumps(allow)
    return _rebuild_listener, (_carry(listener.fileno()), listener.path, allow)


def _rebuild_listener(
    carried: _Inherited | _Ticket, path: str | bytes, allow: Callable[[Peer], bool]
) -> Listener:
    with _take(carried, f"a Listener at {path!r}") as descriptor:
        listener = Listener.from_conn(descriptor, path, allow=allow)
    # The path stays the sender's to remove.
    listener._place.release(unlink=False)
    return listener


def _reduce_socket(sock: socket.socket) -> tuple[Any, ...]:
    return _rebuild_socket, (_carry(objects.fd_of(sock)), sock.gettimeout())


def _rebuild_socket(carried: _Inherited | _Ticket, timeout: float | None) -> socket.socket:
    with _take(carried, "a socket") as descriptor:
        sock = descriptor.to_conn()
    # Not if O_NONBLOCK is set, which all who share the socket have: it stays non-blocking.
    if timeout and sock.gettimeout() is not None:
        sock.settimeout(timeout)
    return sock


def _reduce_raw(file: io.FileIO) -> tuple[Any, ...]:
    return _reduce_file(file, file.mode, 0)


def _reduce_reader(file: io.BufferedReader) -> tuple[Any, ...]:
    return _reduce_file(file, "rb")


def _reduce_writer(file: io.BufferedWriter) -> tuple[Any, ...]:
    return _reduce_file(file, "ab" if "a" in str(file.mode) else "wb")


def _reduce_random(file: io.BufferedRandom) -> tuple[Any, ...]:
    return _reduce_file(file, str(file.mode))


def _reduce_duplex(file: objects.DuplexFile) -> tuple[Any, ...]:
    return _reduce_file(file, None)


def _reduce_file(file: Any, mode: str | None, buffering: int = -1) -> tuple[Any, ...]:
    objects.prepare(file, keep=True)
    return _rebuild_file, (_carry(objects.fd_of(file)), mode, buffering, objects.name_of(file))


def _rebuild_file(
    carried: _Inherited | _Ticket, mode: str | None, buffering: int, name: str
) -> IO[bytes]:
    with _take(carried, f"a file {name!r}") as descriptor:
        offset = offset_of(descriptor.fileno())
        file: IO[bytes] = descriptor.to_file(mode, buffering, name=name or None)
    if mode in ("ab+", "a+b") and offset >= 0:
        # Opening it for appending went to the end; put the offset back, which the sender shares.
        file.seek(offset)
    return file


def _reduce_temporary(wrapper: Any) -> tuple[Any, ...]:
    # The sender removes the name, so only the file inside is sent.
    file = wrapper.file
    return _REDUCERS[type(file)](file)


def _refuse_text(file: io.TextIOWrapper) -> tuple[Any, ...]:
    raise TypeError(
        f"cannot pickle {file!r}: the newline argument that it was opened with is not known; "
        "flush it, send its buffer (file.buffer), and make an io.TextIOWrapper of that again"
    )


_REDUCERS: dict[type[Any], Callable[[Any], tuple[Any, ...]]] = {
    Descriptor: _reduce_descriptor,
    Conduit: _reduce_conduit,
    Listener: _reduce_listener,
    socket.socket: _reduce_socket,
    io.FileIO: _reduce_raw,
    io.BufferedReader: _reduce_reader,
    io.BufferedWriter: _reduce_writer,
    io.BufferedRandom: _reduce_random,
    objects.DuplexFile: _reduce_duplex,
    io.TextIOWrapper: _refuse_text,
    tempfile._TemporaryFileWrapper: _reduce_temporary,
}


def _close_all() -> None:
    for shelf in _shelves[:]:
        shelf.close()


def _finish() -> None:
    """At the exit of a worker, wait until what it sent is fetched; then close the rest.

    A process that waits for a result has read it by now, but may not have unpickled it. The main
    process does not wait: when it exits, all its children have ended.
    """
    deadline = monotonic() + (LINGER if parent_process() else 0)
    for shelf in _shelves[:]:
        shelf.ended.wait(max(0, deadline - monotonic()))
    with _lock:
        _close_all()


def _finish_at_exit(_: object = None) -> None:
    # After the queues have pickled what was put in them (-5); before the temporary directory is
    # removed (-100).
    util.Finalize(None, _finish, exitpriority=-50)


def _close_in_child() -> None:
    # The threads do not exist here; the parent's go on serving.
    _close_all()
    _lock.release()
    # A Finalize runs only in the process that registered it.
    _finish_at_exit()


os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_close_in_child
)
# A process that multiprocessing starts clears its finalizers first.
util.register_after_fork(_finish_at_exit, _finish_at_exit)
_finish_at_exit()
register()
