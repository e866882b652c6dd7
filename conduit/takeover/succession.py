"""The predecessor's side: answers all successors that come, and hands over to one of them.

`Succession.step` does what can be done at once and never waits, so a silent peer delays no other. A
thread calls it in a loop, or the program's own loop does, whenever ``fileno()`` is readable. Only
one call at a time works: a second one, from a signal handler, say, returns at once.

`Succession.leave` may interrupt it at any line, from another thread or a signal handler. It closes
what `step` may be using; that call then finds its conduits closed, and ends quietly.
"""

from __future__ import annotations

import logging
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from conduit._conduit import Conduit
from conduit._syscalls import monotonic
from conduit.errors import Error, Ignoring, PeerClosedError, WouldBlockError, from_handler
from conduit.listener import Listener
from conduit.peer import Peer, admits
from conduit.takeover import protocol
from conduit.takeover.holdings import Holdings, Sent
from conduit.takeover.protocol import Side
from conduit.takeover.talk import NOTHING, Talk, closing

log: logging.Logger = logging.getLogger("conduit.takeover")

PAUSE = 0.1
"""Seconds between two attempts at what a full system, or a dying process, does not allow yet."""

_MOST = 128
"""The most sessions at a time; the oldest that has said nothing makes room for a new one."""

_AT_ONCE = 16
"""How many connections one step accepts, and how many messages it takes from each."""


class _Session:
    """One peer at the control socket, usually a successor."""

    def __init__(self, conduit: Conduit) -> None:
        self.fd = conduit.fileno()
        self.talk = Talk(conduit, Side.PREDECESSOR)
        self.peer = conduit.peer
        self.deadline = monotonic() + protocol.GREETING
        self.sent = Sent()
        self.events = selectors.EVENT_READ
        self.is_shut = False


class Succession:
    """The conversations with successors.

    Attributes:
        refusal: why no successor may take over now; empty if one may.
        followed: whether a successor owns everything.
        over: whether it does, and nothing is left to do here.
        line: the conduit to the successor, then.
        asking: whether a function of the program's is running in `step`.
        guest: a function, called in `step`, that gets the conduit and the first message of an
            allowed peer whose message is not of the takeover protocol; None to ignore those.
        watch: called every 0.1 seconds in `step`, until it returns False.
    """

    def __init__(
        self,
        holdings: Holdings,
        *,
        who: object,
        allow: Callable[[Peer], bool],
        timeout: float,
        bell: Conduit,
        ring: Callable[[], object],
    ) -> None:
        self.refusal: str = "it is not ready itself yet"
        self.followed: bool = False
        self.over: bool = False
        self.line: Conduit | None = None
        self.asking: bool = False
        self.guest: Callable[[Conduit, dict[str, Any]], object] | None = None
        self.watch: Callable[[], bool] | None = None
        self.timeout = timeout
        self._holdings = holdings
        self._who = who
        self._allow = allow
        self._ring = ring
        self._control: Listener | None = None
        self._control_fd = -1
        self._rest_until: float | None = None
        self._sessions: dict[int, _Session] = {}
        self._chosen: _Session | None = None
        self._is_left = False
        # The thread in `step`. Not a lock: it would stay locked if a handler raised just after.
        self._stepper: dict[str, int] = {}
        self._is_stepping = False
        self._selector = _new_selector()
        self._fd: int = self._selector.fileno()
        # It ends the waiting of `step`.
        self._selector.register(bell, selectors.EVENT_READ, nothing)

    def fileno(self) -> int:
        """Return a descriptor that is readable when `step` has something to do.

        Once this is closed, its number may be another's.
        """
        return self._fd

    def listen(self, control: Listener) -> None:
        """Answer connections to a control socket."""
        self._control = control
        self._control_fd = control.fileno()
        try:
            self._selector.register(self._control_fd, selectors.EVENT_READ, self._accept)
        except (ValueError, KeyError):
            # It is closed meanwhile.
            if not self._is_left:
                raise

    def step(self) -> None:
        """Do what can be done."""
        me = threading.get_ident()
        if self._is_left or self._stepper.setdefault("is", me) != me or self._is_stepping:
            return
        self._is_stepping = True
        try:
            for key, _ in self._selector.select(0):
                # One session's step may close another session.
                if key.fd in self._selector.get_map():
                    key.data()
            self._look_at_clock()
        except Exception as exc:
            # All of it may be closed while it is used.
            if not self._is_left or from_handler(exc):
                raise
        finally:
            self._is_stepping = False
            self._stepper.clear()

    def until_next(self) -> float:
        """Return the seconds until the next deadline."""
        times = [session.deadline for session in self._sessions.copy().values()]
        # Read once, since another thread may be in `step`.
        if (rest_until := self._rest_until) is not None:
            times.append(rest_until)
        if self.watch is not None:
            times.append(monotonic() + PAUSE)
        return max(0.0, min(times) - monotonic()) if times else 3600.0

    def _look_at_clock(self) -> None:
        now = monotonic()
        if self.watch is not None and not self.watch():
            self.watch = None
        if self._rest_until is not None and now >= self._rest_until and not self.followed:
            self._rest_until = None
            self._selector.register(self._control_fd, selectors.EVENT_READ, self._accept)
        for session in list(self._sessions.copy().values()):
            if now >= session.deadline:
                self._expire(session)

    def _accept(self) -> None:
        control = self._control
        assert control is not None
        for _ in range(_AT_ONCE):
            try:
                conduit = control.admit(0)
            except WouldBlockError:
                return
            except Error as exc:
                if self._is_left or self.followed:
                    return
                # No room for a connection just now; who waits goes on waiting.
                log.warning("%s", exc)
                self._selector.unregister(self._control_fd)
                self._rest_until = monotonic() + PAUSE
                return
            assert conduit is not None
            try:
                self._begin(conduit)
            except Exception as exc:
                if from_handler(exc):
                    raise
                if self._is_left:
                    return
                log.warning("a connection was not answered: %s", exc)

    def _begin(self, conduit: Conduit) -> None:
        try:
            session = _Session(conduit)
            # Here, and not in the listener, so that who is refused hears why.
            self.asking = True
            try:
                is_allowed = admits(self._allow, session.peer, self._who)
            finally:
                self.asking = False
            self._make_room()
            self._sessions[session.fd] = session
            self._selector.register(
                session.fd, selectors.EVENT_READ, partial(self._advance, session)
            )
        except BaseException:
            # It comes again, since nothing is said.
            self._sessions = {
                fd: each for fd, each in self._sessions.items() if each.talk.conduit is not conduit
            }
            conduit.close()
            raise
        if not is_allowed:
            self._refuse(session, f"{session.peer} is not allowed")

    def _make_room(self) -> None:
        if len(self._sessions) >= _MOST:
            sessions = self._sessions.copy().values()
            self._end(next(session for session in sessions if session is not self._chosen))

    def _advance(self, session: _Session) -> None:
        """Advance one session until it has to wait."""
        try:
            for _ in range(_AT_ONCE):
                if session.talk.flush():
                    self._watch(session, selectors.EVENT_WRITE)
                    return
                if session.talk.conversation.is_refused:
                    self._see_off(session)
                    break
                message = session.talk.receive()
                if message is NOTHING:
                    break
                with closing(message):
                    self._answer(session, message)
                if self.followed or session.fd not in self._sessions:
                    return
            self._watch(session, selectors.EVENT_READ)
        except Exception as exc:
            if from_handler(exc):
                raise
            if self._is_left or self.followed:
                return
            self._fail(session, exc)
        finally:
            if self._is_left and not self.followed:
                # What was put into the outbox while it was closed.
                session.talk.close()

    def _watch(self, session: _Session, events: int) -> None:
        if session.events != events and session.fd in self._sessions:
            self._selector.modify(session.fd, events, partial(self._advance, session))
            session.events = events

    def _answer(self, session: _Session, message: dict[str, Any]) -> None:
        talk = session.talk
        kind = talk.conversation.hear(message)
        if kind is None and self.guest is not None and talk.conversation.is_new:
            self._forget(session)
            self.guest(talk.conduit, message)
        elif kind == "hello":
            version = protocol.version_for(message)
            if refusal := self._refusal_for(message, version):
                self._refuse(session, refusal)
                return
            assert version is not None
            self._chosen = session
            session.deadline = monotonic() + self.timeout
            talk.say("welcome", protocol.welcome(version, len(self._holdings)))
            self._give(session)
            talk.say("control", {"socket": self._control})
        elif kind == "ready":
            session.deadline = monotonic() + protocol.GREETING
            # What was opened and offered while the successor started.
            session.sent.again = True
            self._give(session)
            talk.say("confirmed")
        elif kind == "done":
            self._hand_over(session)

    def _refusal_for(self, message: dict[str, Any], version: int | None) -> str:
        if self.refusal:
            return self.refusal
        if self._chosen is not None:
            return f"another takeover is under way, by pid {self._chosen.peer.pid}"
        if version is None:
            spoken = ", ".join(map(str, protocol.VERSIONS))
            return f"it speaks version {spoken} of the protocol, not {message.get('versions')}"
        return ""

    def _give(self, session: _Session) -> None:
        self.asking = callable(self._holdings.state) and session.sent.again
        try:
            for kind, fields in self._holdings.gifts(session.sent):
                session.talk.say(kind, fields, keep=kind != "state")
        finally:
            self.asking = False

    def _hand_over(self, session: _Session) -> None:
        self.followed = True
        with ExitStack() as last:
            # From the last to the first, whatever fails.
            last.callback(self._finish)
            last.callback(self._holdings.close)
            last.callback(self._keep_line, session)
            last.callback(self._close_control)
            self._chosen = None
            for other in list(self._sessions.values()):
                if other is not session:
                    self._end(other)

    def _finish(self) -> None:
        self.over = True
        self._ring()

    def _close_control(self) -> None:
        control = self._control
        assert control is not None
        if self._rest_until is None:
            self._selector.unregister(self._control_fd)
        self._rest_until = None
        try:
            control.close(unlink=False)
        except Error as exc:
            log.warning("%s", exc)

    def _keep_line(self, session: _Session) -> None:
        """Tell the successor that all is its own, and keep the conduit to it."""
        self._forget(session)
        try:
            session.talk.say("over")
            # It has read all that was sent before, and so there is room.
            session.talk.flush()
            session.talk.conduit.timeout = None
            self.line = session.talk.conduit
            if self._is_left:
                # `close` may have looked for it already.
                self.line.close()
        except Error as exc:
            log.warning("the successor is gone already: %s", exc)
            session.talk.close()

    def _fail(self, session: _Session, exc: Exception) -> None:
        """After any failure, tell the successor that this process goes on serving."""
        gone = isinstance(exc, PeerClosedError)
        if session is self._chosen or not (gone or session.talk.conversation.is_refused):
            log.warning(
                "a takeover by pid %d failed, and this process goes on serving: %s",
                session.peer.pid,
                exc,
            )
        if gone or session.talk.conversation.is_refused:
            self._end(session)
        else:
            self._refuse(session, str(exc))

    def _refuse(self, session: _Session, reason: str) -> None:
        if session is self._chosen:
            self._chosen = None
        session.talk.clear()
        session.deadline = monotonic() + protocol.GREETING
        session.talk.say("refused", protocol.refused(reason))
        self._advance(session)

    def _see_off(self, session: _Session) -> None:
        """Wait until a refused peer has read why and closed its end."""
        # Not closed at once: with unread data here, the peer could lose the reason.
        if not session.is_shut:
            session.is_shut = True
            session.talk.conduit.shutdown(socket.SHUT_WR)
        session.talk.drain()

    def _expire(self, session: _Session) -> None:
        """Give up a session whose deadline has passed, unless its ``done`` has come."""
        if session.talk.conversation.is_refused:
            self._end(session)
            return
        self._hear_last(session)
        if not self.followed:
            self._fail(session, protocol.failure("it was not ready in time: the deadline passed"))

    def _hear_last(self, session: _Session) -> None:
        """Process what has arrived, after the peer can no longer send."""
        talk = session.talk
        with Ignoring(Error):
            talk.conduit.shutdown(socket.SHUT_RD)
            while (message := talk.receive()) is not NOTHING:
                with closing(message):
                    if talk.conversation.hear(message) == "done":
                        self._hand_over(session)
                        return

    def _forget(self, session: _Session) -> None:
        self._sessions.pop(session.fd, None)
        with Ignoring(KeyError, ValueError):
            self._selector.unregister(session.fd)
        if session is self._chosen:
            self._chosen = None

    def _end(self, session: _Session) -> None:
        self._forget(session)
        session.talk.close()

    def leave(self) -> bool:
        """Stop answering, and return whether a successor follows. What is open stays open.

        A successor that has received everything follows; it only sees the end of the stream.
        """
        self.refusal = "it is closing"
        self._is_left = True
        chosen = self._chosen
        if chosen is not None and not self.followed:
            with Ignoring(Error):
                self._hear_last(chosen)
        return self.followed or (chosen is not None and chosen.talk.conversation.received)

    def close(self) -> None:
        """Close all conversations, and the line."""
        self._is_left = True
        # First: a connection being accepted just now can no longer be watched, or is among these.
        self._selector.close()
        for session in list(self._sessions.copy().values()):
            session.talk.close()
        self._sessions.clear()
        if self.line is not None:
            with Ignoring(Error):
                self.line.close()


def _new_selector() -> Any:
    """Return the system's own selector, which has a descriptor to poll.

    gevent's has none. Nothing waits in the selector's ``select()`` here, only in poll(2) for its
    descriptor, and gevent's poll lets other greenlets run.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return selectors.DefaultSelector()
    return monkey.get_original("selectors", "DefaultSelector")()


def nothing() -> None:
    """Do nothing."""
