"""A server that does what its standard input says: a call in each line, an answer to each."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from conduit import Conduit
from conduit._syscalls import monotonic
from conduit.takeover import Takeover, protocol
from conduit.takeover.inheritance import Inheritance
from conduit.takeover.talk import NOTHING, TYPE, Outgoing, Talk


def identity(sock: socket.socket) -> list[Any]:
    """By which a socket is known to be the same in another process."""
    cookie = sock.getsockopt(socket.SOL_SOCKET, 57, 8)  # SO_COOKIE
    return [os.fstat(sock.fileno()).st_ino, cookie.hex()]


def is_open(number: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{number}")


class Server:
    """The calls."""

    def __init__(self) -> None:
        self.takeover: Takeover
        self.sockets: dict[str, socket.socket] = {}
        self.held: socket.socket

    def enter(self, path: str, **kwargs: Any) -> int | None:
        self.takeover = Takeover(path, **kwargs)
        return self.takeover.predecessor and self.takeover.predecessor.pid

    def listen(self, name: str, host: str, port: int | None = None, **kwargs: Any) -> list[Any]:
        sock = self.takeover.listen(host, port, name=name, **kwargs)
        self.sockets[name] = sock
        return [identity(sock), self.address(name)]

    def listen_to_many(self, count: int) -> None:
        for index in range(count):
            self.listen(f"listener {index}", "127.0.0.1", 0)

    def limit(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def identities(self) -> dict[str, list[Any]]:
        return {name: identity(sock) for name, sock in self.sockets.items()}

    def address(self, name: str) -> Any:
        address = self.sockets[name].getsockname()
        return os.fsdecode(address) if isinstance(address, bytes) else address

    def offer(self, text: str) -> None:
        self.takeover.offer(text.encode())

    def state(self) -> str:
        return self.takeover.state.decode()

    def ready(self) -> list[str]:
        return list(self.takeover.ready())

    def dropped(self) -> list[str]:
        return list(self.takeover.dropped)

    def wait(self, timeout: float | None = None) -> bool:
        return self.takeover.wait(timeout)

    def accept(self, name: str) -> None:
        """Serve one connection: tell it who serves."""
        connection, _ = self.sockets[name].accept()
        with connection:
            connection.sendall(b"%d" % os.getpid())

    def hold(self, name: str) -> None:
        """Accept a connection, which is answered later."""
        self.held = self.sockets[name].accept()[0]

    def answer_held(self) -> None:
        """Serve the connection that was accepted."""
        with self.held:
            self.held.sendall(b"%d" % os.getpid())

    def give_up_after(self, seconds: float) -> None:
        """Wait no longer for the other side of a takeover."""
        protocol.GREETING = seconds
        if hasattr(self, "takeover"):
            succession = self.takeover._succession
            succession.timeout = seconds
            for session in succession._sessions.copy().values():
                session.deadline = monotonic() + seconds
            # It is asleep until the deadline that was.
            Conduit.connect(self.takeover.path, type=TYPE).close()

    def give_up_once_stopped(self, pid: int) -> None:
        """Wait for the other side of a takeover until it is stopped, and all it said has come."""
        inheritance: Any = Inheritance
        wait, was_stopped = inheritance._await, False

        def wait_or_give_up(self: object, talk: object, events: int, deadline: float) -> Any:
            nonlocal was_stopped
            # Nothing has come since it was seen to be stopped.
            if was_stopped:
                deadline = 0.0
            with open(f"/proc/{pid}/stat") as stat:
                was_stopped = stat.read().rpartition(")")[2].split()[0] == "T"
            conduit, events, left = wait(self, talk, events, deadline)
            return conduit, events, min(left, 0.01)

        inheritance._await = wait_or_give_up

    def conversations(self) -> list[bool]:
        """Whether each of those who are connected was refused."""
        sessions = self.takeover._succession._sessions.copy().values()
        return [session.talk.conversation.is_refused for session in sessions]

    def fork(self) -> int:
        """Start a worker, which lives until its standard input ends."""
        with warnings.catch_warnings():
            # Forking with threads is what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            sys.stdin.read()
            os._exit(0)
        return pid

    def close(self) -> list[Any]:
        """Close all, and return the threads and descriptors that are left."""
        for sock in self.sockets.values():
            sock.close()
        self.takeover.close()
        gc.collect()
        threads = [thread.name for thread in threading.enumerate()][1:]
        listed = map(int, os.listdir("/proc/self/fd"))
        return [threads, [number for number in listed if number > 2 and is_open(number)]]

    def fail_at(self, when: str, what: str, kind: str, number: int = signal.SIGKILL) -> None:
        """Be killed, or stopped, before or after a message of a kind is sent or received."""
        talk: Any = Talk
        outgoing: Any = Outgoing
        step, receive = outgoing.step, talk.receive

        def fail() -> None:
            # Once: one that is stopped may go on.
            outgoing.step, talk.receive = step, receive
            # To this thread, which goes no further then. Another may be slow to stop the process.
            signal.pthread_kill(threading.get_ident(), number)

        def step_or_die(self: Outgoing, channel: object) -> int:
            if self.message["kind"] == kind and when == "before":
                fail()
            events: int = step(self, channel)
            if self.message["kind"] == kind and when == "after" and not events:
                fail()
            return events

        def receive_and_die(self: object) -> Any:
            message = receive(self)
            if message is not NOTHING and message["kind"] == kind:
                fail()
            return message

        if what == "send":
            outgoing.step = step_or_die
        else:
            talk.receive = receive_and_die


def main() -> None:
    server = Server()
    for line in sys.stdin:
        name, args, kwargs = json.loads(line)
        call: Callable[..., Any] = getattr(server, name)
        try:
            answer = {"result": call(*args, **kwargs)}
        except Exception as exc:
            answer = {"error": type(exc).__name__, "says": str(exc)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
