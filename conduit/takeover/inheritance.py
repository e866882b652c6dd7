"""The successor's side: finds the predecessor, receives what it has, and becomes the owner.

Its calls are generators that yield what they wait for, with a deadline: `Takeover` waits for it in
the caller's thread, `conduit.aio.AsyncTakeover` on its event loop.

`Takeover.close` may interrupt it at any line, and closes what is used here. The interrupted call
then finds that it is closed.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from conduit._conduit import Conduit, Descriptor
from conduit._syscalls import monotonic
from conduit.errors import (
    Error,
    ErrType,
    Ignoring,
    PeerClosedError,
    TakeoverError,
    WouldBlockError,
    from_handler,
)
from conduit.listener import Listener
from conduit.peer import Peer, admits
from conduit.takeover import protocol
from conduit.takeover.holdings import Holdings
from conduit.takeover.protocol import Side, State, failure
from conduit.takeover.room import make_room
from conduit.takeover.succession import PAUSE, log
from conduit.takeover.talk import NOTHING, TYPE, Talk, closing

_SPARE = 64
"""How many descriptors to make room for beside those that the predecessor announces."""

_MOST = 1 << 16
"""The most descriptors that room is made for before they come."""

_T = TypeVar("_T")

Wait = tuple[Conduit | None, int, float]
"""What to wait for: the events of a conduit, if any, for at most so many seconds."""

Steps = Generator[Wait, None, _T]
"""A call in steps: yields what to wait for, and returns its result."""


class Inheritance:
    """What comes from the predecessor, and the conversation with it.

    Args:
        path: of the control socket.
        holdings: where to put what comes.
        who: the object that asks ``allow``, for the log.
        allow: a function that says whether a predecessor is accepted.
        check_open: a function that raises once this is closed.

    Attributes:
        control: the control socket, the predecessor's or a fresh one; None until there is one.
        holdings: what came and was not asked for.
        line: the conduit to the predecessor once it has handed over.
        met: whether there was a process at the path, or it left the path behind: it may still have
            its sockets open.
        predecessor: the process whose sockets came; None at a fresh start.
        talk: the conversation; None once the caller has noted that the predecessor handed over.
    """

    def __init__(
        self,
        path: str | bytes,
        holdings: Holdings,
        *,
        who: object,
        allow: Callable[[Peer], bool],
        check_open: Callable[[], None],
    ) -> None:
        self.control: Listener | None = None
        self.holdings = holdings
        self.line: Conduit | None = None
        self.met: bool = False
        self.predecessor: Peer | None = None
        self.talk: Talk | None = None
        self._path = path
        self._who = who
        self._allow = allow
        self._check_open = check_open

    def close(self) -> None:
        """Close all but the control socket, without telling the predecessor."""
        if self.talk is not None:
            self.talk.close()
        if self.line is not None:
            self.line.close()
        self.holdings.close()

    def find(self) -> Steps[None]:
        """Receive what the predecessor has; without one, listen in its place."""
        deadline = monotonic() + protocol.GREETING
        while (conduit := (yield from self._connect())) is not None:
            self.met = True
            talk = self.talk = Talk(conduit, Side.SUCCESSOR)
            peer = conduit.peer
            if not admits(self._allow, peer, self._who):
                raise failure(f"{self._path!r} is served by {peer}, who is not allowed")
            try:
                yield from self._inherit(talk, peer)
                self._check_open()
                return
            except PeerClosedError:
                if monotonic() > deadline:
                    raise
            log.warning("the predecessor died; going on with what came from it")
            talk.close()
            self.talk = None
            if self.control is not None:
                # Nobody would answer there, and this process would be its own predecessor.
                self.control.close(unlink=False)
                self.control = None
            # It may still be listening: a process that is killed closes one thing after another.
            yield None, 0, PAUSE
        self._check_open()

    def _connect(self) -> Steps[Conduit | None]:
        """Connect to the predecessor; if there is none, listen in its place and return None."""
        deadline = monotonic() + protocol.GREETING
        while True:
            self._check_open()
            try:
                return Conduit.connect(self._path, type=TYPE, timeout=0, name=f"to {self._path!r}")
            except WouldBlockError:
                if monotonic() > deadline:
                    raise failure(
                        f"the predecessor at {self._path!r} does not answer: its queue of "
                        "connections is full, and the deadline passed"
                    ) from None
            except Error as exc:
                if exc.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise
                # What is at a path and does not listen was left by one that was killed.
                is_left = exc.errno == errno.ECONNREFUSED and os.path.exists(self._path)
                self.met = self.met or is_left
                try:
                    self.control = Listener(self._path, type=TYPE, allow=_anybody)
                    return None
                except Error as exc:
                    # Somebody was faster, and is the predecessor then, unless it never listens.
                    if (
                        exc.errno != errno.EADDRINUSE
                        or not _is_socket(self._path)
                        or monotonic() > deadline
                    ):
                        raise
            yield None, 0, PAUSE

    def _inherit(self, talk: Talk, peer: Peer) -> Steps[None]:
        talk.say("hello", protocol.hello())
        # It may be gone already, and what it said before is still to be read.
        with Ignoring(PeerClosedError):
            yield from self._flush(talk)
        while talk.conversation.state is not State.GIVEN:
            if (yield from self._hear(talk)) != "welcome":
                self.predecessor = peer
        talk.say("received")
        try:
            yield from self._flush(talk)
        except PeerClosedError:
            yield from self._hear_refusal(talk)
            raise

    def take_over(self) -> Steps[BaseException | None]:
        """Become the owner, or raise if the predecessor remains the owner.

        Returns:
            the exception of a signal handler or a cancellation that came too late, when the
            predecessor could no longer remain the owner.
        """
        talk = self.talk
        assert talk is not None
        done, late = None, None
        try:
            try:
                talk.say("ready")
                yield from self._flush(talk)
                while talk.conversation.state is not State.CONFIRMED:
                    yield from self._hear(talk)
                done = talk.say("done")
                yield from self._flush(talk)
                yield from self._hear_that_it_is_over(talk)
            except PeerClosedError:
                yield from self._hear_refusal(talk)
                log.warning("the predecessor died before it handed over; going on without it")
        except BaseException as exc:
            if isinstance(exc, Error | ValueError) and not from_handler(exc):
                talk.close()
                if isinstance(exc, TakeoverError):
                    raise
                raise failure(f"the predecessor does not hand over: {exc}") from exc
            # Once ``done`` has left, this process is the owner.
            if done is None or not done.has_left:
                talk.close()
                raise
            late = exc
        if talk.conversation.state is State.OVER:
            talk.conduit.timeout = None
            self.line = talk.conduit
        else:
            talk.close()
        return late

    def _hear_refusal(self, talk: Talk) -> Steps[None]:
        """Raise the refusal that a closed connection left unread; if there is none, it is dead."""
        with Ignoring(PeerClosedError):
            while True:
                yield from self._hear(talk)

    def _hear_that_it_is_over(self, talk: Talk) -> Steps[None]:
        """Wait until it has closed the control socket, where a successor might still reach it."""
        deadline = monotonic() + protocol.GREETING
        while talk.conversation.state is State.DONE:
            try:
                if self._take(talk) is NOTHING:
                    yield self._await(talk, select.POLLIN, deadline)
            except (Error, ValueError) as exc:
                # All else than its end or a refusal is too late to matter.
                if from_handler(exc) or isinstance(exc, PeerClosedError):
                    raise
                if talk.conversation.is_refused:
                    raise
                return

    def _flush(self, talk: Talk) -> Steps[None]:
        """Send all of the outbox."""
        deadline = monotonic() + protocol.GREETING
        while events := talk.flush():
            yield self._await(talk, events, deadline)

    def _hear(self, talk: Talk) -> Steps[Any]:
        """Wait for a message, take what it brings, and return its kind."""
        deadline = monotonic() + protocol.GREETING
        while (kind := self._take(talk)) is NOTHING:
            yield self._await(talk, select.POLLIN, deadline)
        return kind

    def _take(self, talk: Talk) -> Any:
        """Take what a message brings, and return its kind; `NOTHING` if none has come."""
        message = self._receive(talk)
        if message is NOTHING:
            return message
        with closing(message):
            kind = talk.conversation.hear(message)
            if kind == "welcome" and isinstance(message.get("descriptors"), int):
                # Twice: each is kept, and duplicated for the caller. The peer may say any number.
                make_room(min(2 * message["descriptors"], _MOST) + _SPARE)
            if kind == "control":
                self._receive_control(message)
            elif kind is not None:
                self.holdings.receive(kind, message)
            return kind

    def _receive(self, talk: Talk) -> Any:
        try:
            return talk.receive()
        except Error as exc:
            if isinstance(exc, PeerClosedError) or exc.type is not ErrType.BAD_CTRL_MESG:
                raise
            raise failure(f"a message that is not of the takeover protocol: {exc}") from exc

    def _receive_control(self, message: dict[str, Any]) -> None:
        fd = message.get("socket")
        if not isinstance(fd, Descriptor):
            raise failure("a message (control) is malformed: it has no socket")
        try:
            with fd.to_conn() as sock:
                self.control = Listener.from_conn(sock, self._path, allow=_anybody)
        except Error as exc:
            raise failure(f"a message (control) is malformed: {exc}") from exc

    def _await(self, talk: Talk, events: int, deadline: float) -> Wait:
        left = deadline - monotonic()
        self._check_open()
        if left <= 0:
            raise failure(
                f"the predecessor does not hand over: {talk.conduit.peer} does not answer, and "
                "the deadline passed"
            )
        return talk.conduit, events, left


def _anybody(peer: Peer) -> bool:
    return True


def _is_socket(path: str | bytes) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
