"""`Takeover`, which programs use: this process's place in a line of servers.

It is the successor of one process, and may be the predecessor of another. As a successor it has an
`Inheritance`; `_drive` waits for its steps in the caller's thread, `conduit.aio.AsyncTakeover` on
its event loop. As a predecessor it has a `Succession`, which a thread drives, the event loop, or
the program with `step`.

**No lock** is held that `close` would have to wait for, so a signal handler may call `close` at any
line. What threads share changes in single steps: an entry of a dict, an attribute. Every wait also
watches the bell: a socket whose other end `close` closes first, or on an event loop a function that
`close` calls. Everything in `close` can be done twice, since `close` may interrupt itself.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from conduit import systemd
from conduit._conduit import Conduit, Descriptor
from conduit._handle import Handle
from conduit._syscalls import monotonic
from conduit.closing import Closing
from conduit.errors import Error, ErrType, Ignoring, from_handler, reraise
from conduit.listener import Listener
from conduit.mistakes import path_from
from conduit.objects import fd_of
from conduit.paths import absolute, unlink_own
from conduit.peer import Peer, same_user_or_root
from conduit.takeover import protocol, sockets
from conduit.takeover.holdings import Held, Holdings
from conduit.takeover.inheritance import Inheritance, Steps
from conduit.takeover.room import with_room
from conduit.takeover.sockets import closed_on_error, is_at
from conduit.takeover.spares import Spares
from conduit.takeover.succession import PAUSE, Succession, log, nothing
from conduit.takeover.watch import has_ended, wait_for

if TYPE_CHECKING:
    from _typeshed import HasFileno, StrOrBytesPath

_LONGEST_NAME = 255
"""The most bytes of a name."""

_BACKLOG = 128
"""How many successors may wait to be answered."""

_PATIENCE = 5.0
"""Seconds that `close` waits for the thread to end; it does nothing that takes long."""

_open: weakref.WeakSet[Takeover] = weakref.WeakSet()
"""The open `Takeover` objects of this process."""


_T = TypeVar("_T")


class Takeover(Closing):
    """This process's place in a line of servers, each of which takes over from the last.

    Takeover(path, timeout=60.0, allow=None, thread=True) connects to the predecessor that listens
    at ``path``, and receives its sockets and its state. Without a predecessor it listens there
    itself. Then, in this order: `listen` for each socket, `ready` once requests are served, `wait`
    for a successor, drain, `close` (or leave the ``with``).

    Until `ready` returns, the predecessor goes on serving. It continues for good if this process
    dies, closes, or takes longer than the predecessor's timeout. If the predecessor dies instead,
    this process has all it received, and `ready` makes it the owner.

    A thread answers successors from the beginning, whatever the program does meanwhile; what is not
    possible yet is refused at once, with a reason. With ``thread=False`` there is no thread, for
    programs that fork or have their own loop: they watch `fileno` and call `step`.

    Any thread may call any method. A signal handler may call `close` at any line.

    In a forked child this object is closed, and removes nothing. The sockets that `listen` returned
    are open in the child, too.

    Args:
        path: of the control socket, the same for all servers of the line; ``"@name"`` is abstract
            on Linux.
        timeout: seconds that a successor of this process may take from its first message until it
            is ready.
        allow: a function that says whether a `Peer`, predecessor or successor, is accepted; by
            default this process's user and root are. Successors are checked where they are
            answered.
        thread: whether a thread answers successors.

    Attributes:
        path: as given.
        dropped: the names of the predecessor's sockets that this process did not ask for, and that
            are closed here; filled by `ready`.

    Raises:
        TakeoverError: the predecessor refuses (another takeover is under way, it is not ready
            itself, it speaks another version), or is not allowed.
        Error: the control socket can neither be reached nor made.
    """

    path: str | bytes
    dropped: tuple[str, ...]

    def __init__(
        self,
        path: StrOrBytesPath,
        *,
        timeout: float = 60.0,
        allow: Callable[[Peer], bool] | None = None,
        thread: bool = True,
    ) -> None:
        try:
            self._prepare(path, timeout, allow, thread)
            self._drive(self._find())
            # Only now: the table of descriptors grows faster while no thread shares it.
            if self._thread is not None:
                self._start(self._thread)
        except BaseException:
            self._abandon()
            raise

    def _prepare(
        self,
        path: StrOrBytesPath,
        timeout: float,
        allow: Callable[[Peer], bool] | None,
        thread: bool,
    ) -> None:
        """Set what `close` needs, before there is anything to close."""
        self.path = path_from(path)
        self.dropped = ()
        self._allow = same_user_or_root if allow is None else allow
        self._ready = False
        self._closed = False
        self._paths: dict[str, tuple[int, int]] = {}
        self._spares = Spares()
        self._activated: list[Descriptor] | None = None
        # Before anything is opened: see `systemd.announced`. Only `listen` needs it.
        self._misled: tuple[str, ErrType, int | None] | None = None
        try:
            systemd.announced()
        except Error as exc:
            if from_handler(exc):
                raise  # pragma: no cover - traced runs have no handler that raises
            self._misled = str(exc), exc.type, exc.errno
        # One thread at a time takes sockets from those that were passed.
        self._taking = threading.RLock()
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()
        # For an event loop: what to call when there is something new to wait for, or nothing any
        # more, and what is watched, which is closed by who watches it.
        self._wake: Callable[[], object] = nothing
        self._watched: Handle | None = None
        self._bell, self._rope = Conduit.pair()
        try:
            try:
                here = with_room(sockets.own_namespace)
                self._inherited = Holdings(here)
                self._inheritance = Inheritance(
                    self.path,
                    self._inherited,
                    who=self,
                    allow=self._allow,
                    check_open=self._check_open,
                )
                # What a successor gets.
                self._own = Holdings(here)
                self._succession = Succession(
                    self._own,
                    who=self,
                    allow=self._allow,
                    timeout=timeout,
                    bell=self._bell,
                    ring=self._ring,
                )
            except OSError as exc:
                reraise(exc, f"{self!r}: watching successors")
        except BaseException:
            self._bell.close()
            self._rope.close()
            raise
        if thread:
            # The thread waits at the gate until there is something to answer.
            self._gate.acquire()
            self._thread = threading.Thread(target=self._run, name="conduit-takeover", daemon=True)
        _open.add(self)

    def _abandon(self) -> None:
        """Close it, if `_prepare` has run."""
        if hasattr(self, "_succession"):
            self.close()

    def _start(self, thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError as exc:
            self._thread = None
            raise Error(
                f"{self!r}: there is no room for the thread that answers successors: {exc}; "
                "without one, use thread=False",
                ErrType.NO_FD,
                errno.EAGAIN,
            ) from exc

    def _run(self) -> None:
        """Answer successors, in a thread of its own."""
        # Not released again: nothing else waits there, and `close` may release it a second time.
        self._gate.acquire()
        while not self._is_over:
            try:
                self._step(3600.0)
            except Exception:
                log.exception("answering successors failed, and goes on")
                time.sleep(PAUSE)

    def __repr__(self) -> str:
        return f"<conduit.takeover.Takeover {self.path!r}>"

    def listen(
        self,
        host: str,
        port: int | None = None,
        *,
        name: str | None = None,
        type: int = socket.SOCK_STREAM,
        backlog: int = 128,
        mode: int = 0o600,
    ) -> socket.socket:
        """Return a socket at an address: the predecessor's if it has one there, else a new one.

        The predecessor's is taken if it has the same name, address and type. It is the same socket:
        its options are kept, and connections that wait in its queue are accepted here. Both
        processes share its blocking mode while both run: leave it as it is, or set it to what the
        predecessor's server uses.

        Otherwise a socket that the service manager passed (`conduit.systemd.listen_fds`) is taken
        if it has the type, and the name or the address. The first call that looks for one takes all
        that were passed; `close` closes those that were not asked for.

        If the address is in use and there was a predecessor, even one that was killed, it is tried
        again for 10 seconds: the predecessor or its worker may be closing it. If the descriptors
        do not fit, the soft limit of open files is raised, up to the hard one (getrlimit(2));
        children inherit it.

        The path of a Unix socket is removed when there is no successor. A server that removes it by
        itself (asyncio's from Python 3.13 on, unless ``cleanup_socket=False``) removes its
        successor's path. The successor puts it back within 0.1 seconds (with ``thread=False``, at
        the next `step` or in `wait`), as long as the `Takeover` of that server's process is open.

        The address of a socket includes the scope (``fe80::1%eth0``) and, from Linux 5.14 on, the
        network namespace. A socket that the predecessor opened in its own network namespace is not
        taken if this object was made in another; one that a service manager opened elsewhere for
        both is.

        Args:
            host: an address to bind, or a host name with one address; ``""`` is every address, of
                both families where the system has both. So is ``"::"``, unless ``"0.0.0.0"`` with
                the same port was asked for before. Without a port, the path of a Unix socket
                (``"@name"`` is abstract on Linux).
            port: a number; 0 lets the system choose, or takes whatever port the predecessor's
                socket of that name has.
            name: by which a successor asks for it; by default ``host:port`` or the path.
            type: ``SOCK_STREAM``, which listens, or ``SOCK_DGRAM``, which is only bound.
            backlog: of a new socket: how many connections may wait to be accepted.
            mode: of a new Unix socket: the permission bits of its path.

        Returns:
            a socket object, which the caller owns. This object keeps a duplicate for a successor
            until it is closed or has handed over; so long the socket stays open.

        Raises:
            ValueError: the name is taken in this process, or longer than 255 bytes.
            Error: ``NO_FD``, with the errno, if there is no such socket to be had (``EINVAL`` if
                the host name stands for several addresses); without it, if this is closed. As
                `conduit.systemd.listen_fds`.
        """
        return self._drive(self._listen(host, port, name, type, backlog, mode))

    def adopt(self, sock: socket.socket, name: str) -> socket.socket:
        """Return the predecessor's socket of a name; if it has none, return ``sock``.

        For sockets that `listen` does not make: with options set before ``bind``, of another
        family, or one of several with ``SO_REUSEPORT``. No path is removed with such a socket.

        Args:
            sock: any socket. It is closed if the predecessor has one of that name.
            name: by which a successor asks for it.

        Returns:
            a socket object, which the caller owns. This object keeps a duplicate for a
            successor, as that of `listen`.

        Raises:
            ValueError: as `listen`.
            Error: ``NO_FD``, with the errno, if there is no room for a duplicate; without it, if
                this is closed. ``sock`` is open then, and the caller's.
        """
        self._check_new(name)
        old = self._inherited.sockets.get(name)
        try:
            kept = with_room(partial(sockets.duplicate, sock if old is None else old.sock))
        except OSError as exc:
            reraise(exc, f"adopting {name!r}")
        if old is None:
            self._hold(name, Held(kept, None, None))
            return sock
        self._inherited.sockets.pop(name, None)
        self._hold(name, old._replace(sock=kept))
        sock.close()
        return old.sock

    def keep(self, name: str, item: int | HasFileno | None) -> None:
        """Keep any descriptor for a successor, which gets it with `take`.

        For a file in memory, a pipe, a live connection. It replaces what was kept under that name;
        None only removes that.

        Args:
            name: by which the successor asks for it.
            item: an int or whatever has a ``fileno()``, which stays open and the caller's: a
                duplicate is kept, until this is closed or has handed over. Flush a file first.

        Raises:
            ValueError: the name is longer than 255 bytes.
            Error: ``NO_FD``, with the errno, if there is no room for a duplicate; without it, if
                this is closed.
        """
        self._check_open()
        _check_length(name)
        if item is None:
            kept = None
        else:
            try:
                fd = item if isinstance(item, int) else fd_of(item)
                kept = Descriptor(with_room(partial(os.dup, fd)), name)
            except OSError as exc:
                reraise(exc, f"keeping {name!r}")
        old = self._own.items.pop(name, None)
        if kept is not None:
            self._own.items[name] = kept
            if self._closed or self._succession.followed:
                self._own.close()
        if old is not None:
            old.close()

    def take(self, name: str) -> Descriptor | None:
        """Return what the predecessor kept under a name; None if nothing, or if it was taken.

        The caller owns it. It is not kept for this process's own successor: that takes a `keep`.
        What the predecessor kept since this process connected to it is there once `ready` has
        returned. What is not taken is closed when this is closed or has handed over.
        """
        return self._inherited.items.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what the predecessor kept and `take` has not returned."""
        return tuple(self._inherited.items)

    def offer(self, state: bytes | Callable[[], bytes]) -> None:
        """Offer any number of bytes to the successor, which finds them in its ``state``.

        Bytes are there when the successor has connected. A function is called when a successor is
        ready, in the thread that answers it; its result is there when the successor's `ready`
        returns. From that call on this process should not change its state. If the function raises,
        the takeover fails, and this process goes on serving.

        The bytes are copied twice. For many megabytes it is cheaper to fill a file in memory
        beforehand and `keep` it; the successor maps it.
        """
        self._own.state = state if callable(state) else bytes(state)

    def ready(self) -> tuple[str, ...]:
        """Say that requests are served: the predecessor drains, and a successor may come.

        The predecessor's sockets that were not asked for are closed, and their paths removed. From
        now on `listen` also finds sockets that the predecessor opened after this process connected.
        A second call does nothing.

        Returns:
            their names, which are also in ``dropped``.

        Raises:
            TakeoverError: the predecessor does not hand over, since this process took too long, or
                it does not answer. It goes on serving. This process must not serve: close this.
            Error: ``NO_FD`` if this is closed.
        """
        return self._drive(self._become_ready())

    def _become_ready(self) -> Steps[tuple[str, ...]]:
        self._check_open()
        if self._ready:
            return self.dropped
        late: BaseException | None = None
        # From now on, what came since this process connected can be asked for.
        unwanted = list(self._inherited.sockets)
        inheritance = self._inheritance
        if inheritance.talk is not None:
            control = inheritance.control
            assert control is not None
            # Made first: a failure after the handover would raise in the new owner.
            with self._duplicate(control) as sock:
                try:
                    # Before the predecessor drains, and its server removes them.
                    for path, inode in self._own.paths().items():
                        self._spares.add(path, inode)
                    late = yield from inheritance.take_over()
                except BaseException:
                    self._spares.close()
                    raise
                self._paths.update(self._own.paths())
                inheritance.talk = None
                # Again, so that the system names this process to those who connect.
                sock.listen(_BACKLOG)
            self._succession.watch = self._put_back
            self._answer(control)
        dropped = []
        for name in unwanted:
            old = self._inherited.sockets.pop(name, None)
            if old is None:
                continue
            dropped.append(name)
            if old.path is not None and old.inode is not None:
                _remove(old.path, old.inode)
            old.sock.close()
        self.dropped = tuple(dropped)
        if dropped:
            log.info("closed sockets of the predecessor not asked for: %s", self.dropped)
        self._ready = True
        self._succession.refusal = ""
        if late is not None:
            raise late
        return self.dropped

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a successor is ready: from then on it serves, and this process drains.

        `close` ends the wait. With ``thread=False``, this answers successors meanwhile.

        Args:
            timeout: seconds; None for ever.

        Returns:
            whether there is one.
        """
        deadline = math.inf if timeout is None else monotonic() + timeout
        while not self._is_over:
            left = deadline - monotonic()
            if self._thread is None:
                self._step(max(0.0, left))
            else:
                self._poll(None, 0, max(0.0, left))
            if left <= 0:
                break
        return self._succession.over or (self._closed and self._succession.followed)

    @property
    def _is_over(self) -> bool:
        """Whether there is nothing to wait for any more, and nobody to answer."""
        return self._closed or self._succession.over

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when `wait` would return.

        With ``thread=False``, also when `step` has something to do. This object still owns it. An
        event loop may watch it; there is nothing to read from it. -1 once this is closed.
        """
        if self._closed:
            return -1
        return self._bell.fileno() if self._thread is not None else self._succession.fileno()

    def step(self) -> None:
        """Answer successors, as far as that can be done without waiting.

        With ``thread=False``, call it whenever `fileno` is readable, until ``wait(0)`` is true.
        Call it every few seconds as well: only this call notices a deadline that has passed. It
        never waits, but runs ``allow`` and an offered function. If a thread answers, or once this
        is closed, it does nothing.
        """
        if self._thread is None:
            self._succession.step()

    def _receive_guests(self, guest: Callable[[Conduit, dict[str, Any]], object]) -> None:
        """Have a function answer peers that come to the control socket for something else.

        In `step`, it gets the conduit, which it then owns, and the first message. Such peers must
        be allowed, as a successor must.
        """
        self._succession.guest = guest

    def _until_step(self) -> float:
        """Return after how many seconds `step` has something to do, whatever `fileno` says."""
        return self._succession.until_next()

    @property
    def predecessor(self) -> Peer | None:
        """The `Peer` whose sockets were received; None at a fresh start."""
        return self._inheritance.predecessor

    @property
    def state(self) -> bytes:
        """The bytes that the predecessor offered; empty if it offered none.

        If it offered a function, or offers other bytes meanwhile, they are here once `ready` has
        returned.
        """
        assert isinstance(self._inherited.state, bytes)
        return self._inherited.state

    @property
    def predecessor_line(self) -> Conduit | None:
        """A conduit to the predecessor, whose ``successor`` is the other end.

        It is there once `ready` has returned: for live connections with their state, or datagrams
        that reach the wrong process. The predecessor's end closes with its `Takeover`. None without
        a predecessor. This object owns and closes it.
        """
        return self._inheritance.line

    @property
    def successor(self) -> Conduit | None:
        """A conduit to the successor, whose ``predecessor_line`` is the other end.

        None until this process has handed over, or if the successor ended at that moment. This
        object owns and closes it.
        """
        return self._succession.line

    def close(self) -> None:
        """Leave the line, and close what this object holds. A second call does nothing.

        A predecessor that has not handed over goes on serving. If there is no successor, the paths
        of the control socket and of this process's Unix sockets are removed. If a takeover is under
        way and the successor has received everything, the successor becomes the owner.

        It returns in any thread and signal handler, whatever it interrupts. If the thread that
        answers is in ``allow`` or an offered function, that thread ends after it.
        """
        self._closed = True
        _open.discard(self)
        self._ring()
        with Ignoring(RuntimeError):
            self._gate.release()
        self._join()
        followed = self._succession.leave()
        control = self._inheritance.control
        if control is not None:
            # The path stays where the predecessor is still the owner.
            try:
                control.close(unlink=not followed and self._inheritance.talk is None)
            except Error as exc:
                log.warning("%s", exc)
        self._spares.close()
        while self._paths:
            path, inode = self._paths.popitem()
            if not followed:
                _remove(path, inode)
        self._release()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _ring(self) -> None:
        """End every wait that watches the bell, now and later."""
        with Ignoring(Error):
            self._rope.shutdown()
        self._wake()

    def _join(self) -> None:
        """Wait for the thread to end, unless it runs a function of the program's."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        deadline = monotonic() + _PATIENCE
        while thread.is_alive() and not self._succession.asking and monotonic() < deadline:
            thread.join(0.02)

    def _release(self) -> None:
        """Close all descriptors of this object, without telling any peer."""
        self._succession.close()
        self._inheritance.close()
        self._rope.close()
        self._bell.close()
        self._own.close()
        while self._activated:
            self._activated.pop().close()

    def _close_in_child(self) -> None:
        """In a forked child, close the copies, which would hide the parent's end from peers."""
        self._closed = True
        if self._inheritance.control is not None:
            self._inheritance.control.close(unlink=False)
        self._paths.clear()
        self._spares.forget()
        self._release()
        if self._watched is not None:
            self._watched.close()

    def _listen(
        self, host: str, port: int | None, name: str | None, type: int, backlog: int, mode: int
    ) -> Steps[socket.socket]:
        if port is None and not host.startswith("@"):
            # Absolute, since this process and its successors may change directory.
            host = os.fsdecode(absolute(host))
        if name is None:
            name = host if port is None else f"{host}:{port}"
        self._check_new(name)
        try:
            old = self._inherited.sockets.get(name)
            if old is not None and is_at(old, host, port, type, self._own.namespace):
                sock = old.sock
                held = old._replace(sock=with_room(partial(sockets.duplicate, sock)))
                # `close` may have taken it out.
                self._inherited.sockets.pop(name, None)
            else:
                inode = None
                passed = with_room(partial(self._passed, name, host, port, type))
                if passed is None:
                    sock, inode = yield from self._bind(host, port, type, mode, backlog)
                else:
                    sock = passed
                with closed_on_error(sock):
                    if inode is not None:
                        self._paths[host] = inode
                    same = with_room(partial(sockets.duplicate, sock))
                    held = Held(same, host if port is None else None, inode)
        except OSError as exc:
            reraise(exc, f"listening as {name!r}")
        self._hold(name, held)
        return sock

    def _hold(self, name: str, held: Held) -> None:
        """Keep a socket for a successor, unless one has taken over, or this is closed."""
        self._own.sockets[name] = held
        if self._closed or self._succession.followed:
            self._own.close()

    def _check_new(self, name: str) -> None:
        """Check that a socket of that name may be opened."""
        self._check_open()
        _check_length(name)
        if name in self._own.sockets:
            raise ValueError(f"there is a socket named {name!r} already")

    def _check_open(self) -> None:
        if self._closed:
            raise Error(f"{self!r} is closed", ErrType.NO_FD)

    def _passed(self, name: str, host: str, port: int | None, type: int) -> socket.socket | None:
        with self._taking:
            if self._activated is None:
                if self._misled is not None and systemd.announced()[0]:
                    # These numbers are this process's own by now.
                    raise Error(*self._misled)
                self._activated = list(systemd.listen_fds())
            return sockets.passed(self._activated, name, host, port, type)

    def _bind(
        self, host: str, port: int | None, type: int, mode: int, backlog: int
    ) -> Steps[tuple[socket.socket, tuple[int, int] | None]]:
        deadline = monotonic() + protocol.GREETING
        here = self._own.namespace
        while True:
            try:
                held = self._own.sockets.copy().values()
                return with_room(partial(sockets.bind, host, port, type, mode, backlog, held, here))
            except OSError as exc:
                # A handler's OSError has another errno, or none.
                inherited = self._inherited.sockets.copy().values()
                if (
                    exc.errno != errno.EADDRINUSE
                    or not self._inheritance.met
                    # Under another name the predecessor's stays in use until `ready`.
                    or any(is_at(old, host, port, type, here) for old in inherited)
                    or monotonic() > deadline
                ):
                    raise
            yield None, 0, PAUSE
            self._check_open()

    def _drive(self, steps: Steps[_T]) -> _T:
        """Run all steps, and wait between them."""
        with contextlib.closing(steps):
            try:
                wait = next(steps)
                while True:
                    try:
                        self._poll(*wait)
                    except BaseException as exc:
                        # The steps may end in spite of it, with a result.
                        wait = steps.throw(exc)
                    else:
                        wait = next(steps)
            except StopIteration as done:
                result: _T = done.value
                return result

    def _step(self, timeout: float) -> None:
        """Answer successors, once one says something or ``timeout`` seconds have passed."""
        succession = self._succession
        self._poll(None, 0, min(timeout, succession.until_next()), succession.fileno())
        succession.step()

    def _poll(self, conduit: Conduit | None, events: int, timeout: float, fd: int = -1) -> None:
        """Wait for a conduit, the bell, a descriptor to become readable, or the timeout."""
        watched = [(self._bell, select.POLLIN)]
        if conduit is not None:
            watched.append((conduit, events))
        # If the conduit is closed, this object is, too.
        wait_for(watched, timeout, fd)

    def _put_back(self) -> bool:
        """Put back the paths that the predecessor removed; return whether it may remove more."""
        # Asked first, so that what it removed just before its end is put back, too.
        is_draining = self.predecessor_line is not None and not has_ended(self.predecessor_line)
        self._spares.restore()
        if not is_draining:
            self._spares.close()
        return is_draining

    def _find(self) -> Steps[None]:
        """Receive what the predecessor has; without one, listen in its place."""
        yield from self._inheritance.find()
        if self._inheritance.talk is None:
            assert self._inheritance.control is not None
            self._answer(self._inheritance.control)
            self._check_open()

    def _answer(self, control: Listener) -> None:
        """Start answering successors."""
        self._succession.listen(control)
        with Ignoring(RuntimeError):
            self._gate.release()
        # On an event loop, the task that answers may be in a wait that is now too long.
        self._wake()

    def _duplicate(self, control: Listener) -> socket.socket:
        try:
            return sockets.duplicate(control)
        except OSError as exc:
            reraise(exc, f"{self!r}: taking over")


def _close_in_child() -> None:
    for takeover in list(_open):
        takeover._close_in_child()


os.register_at_fork(after_in_child=_close_in_child)


def _check_length(name: str) -> None:
    # A name may be a path, of any bytes.
    if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        raise ValueError(f"a name has at most {_LONGEST_NAME} bytes, unlike {name!r}")


def _remove(path: str, inode: tuple[int, int]) -> None:
    """Remove the path of a socket, if it is still that socket; log a failure."""
    try:
        unlink_own(path, inode)
    except OSError as exc:
        if from_handler(exc):
            raise  # pragma: no cover - traced runs have no handler that raises
        log.warning("the path of a socket stays: %s", exc)
