"""A privilege broker: it opens files and binds ports for an unprivileged child.

    python examples/broker.py [DIRECTORY]

The child drops its privileges, if it has any, and asks for what it needs over a Channel. The broker
decides, answers with the descriptor or a refusal, and keeps nothing open. The child can use only
what it was given.
"""

import contextlib
import errno
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conduit import Channel, Conduit, Descriptor, Error, PeerClosedError

NOBODY = 65534


class Broker:
    """What the child may have, and the functions that open it."""

    def __init__(self, directory: Path, ports: range) -> None:
        self.directory = directory.resolve()
        self.ports = ports
        self.operations: dict[str, Callable[..., Any]] = {"open": self.open, "bind": self.bind}

    def open(self, path: str) -> Any:
        # Resolved first: neither ".." nor a symbolic link leads out.
        real = (self.directory / path).resolve()
        if not real.is_relative_to(self.directory):
            raise PermissionError(errno.EACCES, f"{path} is not in the directory")
        return real.open("rb")

    def bind(self, port: int) -> Any:
        if port not in self.ports:
            raise PermissionError(errno.EACCES, f"port {port} is not allowed")
        return socket.create_server(("127.0.0.1", port))

    def serve(self, channel: Channel) -> None:
        """Answer until the child closes, which is a `PeerClosedError`."""
        while True:
            try:
                answer = self.answer(channel.receive())
            except PeerClosedError:
                raise
            except Error:
                # What is no message costs that packet, and not the broker.
                answer = {"ok": False, "error": "not a message"}
            # What is in the answer is moved, and closed here, also if it cannot be sent.
            with answer.get("result", contextlib.nullcontext()):
                channel.send(answer)

    def answer(self, request: Any) -> dict[str, Any]:
        try:
            operation = self.operations[request.pop("op")]
            return {"ok": True, "result": operation(**request)}
        except OSError as exc:
            # Not all of it, which has the path as the broker sees it.
            return {"ok": False, "error": exc.strerror}
        except Exception as exc:
            return {"ok": False, "error": f"not a request: {type(exc).__name__}"}


def ask(channel: Channel, op: str, **arguments: Any) -> Descriptor:
    channel.send({"op": op, **arguments})
    answer = channel.receive()
    if not answer["ok"]:
        raise PermissionError(answer["error"])
    result: Descriptor = answer["result"]
    return result


def child(channel: Channel) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    with ask(channel, "open", path="secret.txt").to_file("r") as file:
        print(f"user {os.geteuid()} reads: {file.read().strip()}")
    with ask(channel, "bind", port=0).to_conn() as listener:
        print(f"user {os.geteuid()} listens on port {listener.getsockname()[1]}")
    forbidden: list[dict[str, Any]] = [
        {"op": "open", "path": "../../etc/shadow"},
        {"op": "bind", "port": 22},
        {"op": "open", "path": "a\0b"},
    ]
    for request in forbidden:
        try:
            ask(channel, **request).close()
        except PermissionError as exc:
            print(f"refused: {exc}")
    channel.conduit.transfer(data=b"rubbish")
    print(f"refused: {channel.receive()['error']}")


def main() -> None:
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "secret.txt").write_text("for those who are given it\n")
        run(Path(name))


def run(directory: Path) -> None:
    # Packets: what the child sends that is no message is the loss of that alone.
    ours, theirs = Conduit.pair(type=socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    if os.fork() == 0:
        ours.close()
        with Channel(theirs) as channel:
            child(channel)
        sys.stdout.flush()
        os._exit(0)
    theirs.close()
    with Channel(ours, max_fds=1) as channel, contextlib.suppress(PeerClosedError):
        Broker(directory, ports=range(1)).serve(channel)
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))


if __name__ == "__main__":
    main()
