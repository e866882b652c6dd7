"""The other process of test_twisted.py: ``python twisted_peer.py TASK PATH [FILE...]``."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet import endpoints as _endpoints
from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

# The reactor is a module to a type checker, and the endpoints are not typed.
reactor: Any = _reactor
endpoints: Any = _endpoints


class Sender(Protocol):
    """Sends each file, with one byte of its own, when it is connected."""

    def __init__(self, paths: list[str]) -> None:
        self._numbers = [os.open(path, os.O_RDONLY) for path in paths]

    def connectionMade(self) -> None:  # noqa: N802
        transport: Any = self.transport
        for number in self._numbers:
            transport.sendFileDescriptor(number)
        transport.write(b"\0" * len(self._numbers))
        transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        for number in self._numbers:
            os.close(number)
        reactor.stop()


@implementer(IFileDescriptorReceiver)
class Receiver(Protocol):
    """Prints what comes: files by their content, and in the end the bytes."""

    def __init__(self) -> None:
        self._data = b""

    def fileDescriptorReceived(self, descriptor: int) -> None:  # noqa: N802
        with open(descriptor) as file:
            print(file.read())

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self._data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        print(self._data)
        reactor.stop()


def send(path: str, *files: str) -> None:
    """Connect, and send files."""
    endpoints.connectProtocol(endpoints.UNIXClientEndpoint(reactor, path), Sender(list(files)))


def receive(path: str) -> None:
    """Listen, say so, and receive on the one connection that comes."""

    def listening(_: object) -> None:
        print("listening", flush=True)

    endpoints.UNIXServerEndpoint(reactor, path).listen(Factory.forProtocol(Receiver)).addCallback(
        listening
    )


TASKS = {"send": send, "receive": receive}

if __name__ == "__main__":
    reactor.callWhenRunning(TASKS[sys.argv[1]], *sys.argv[2:])
    reactor.run()
