"""jeepney: descriptors in D-Bus messages, with a conduit where the bus would be."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import is_private, memory
from peers import LIMIT

from conduit import Conduit

jeepney = pytest.importorskip("jeepney", reason="not installed: jeepney")
blocking = pytest.importorskip("jeepney.io.blocking")


def signal(*arguments: Any) -> Any:
    """A signal that carries a string and two descriptors."""
    emitter = jeepney.DBusAddress("/test", interface="test.Descriptors")
    return jeepney.new_signal(emitter, "Passed", "shh", arguments)


@contextmanager
def bus() -> Iterator[tuple[Conduit, Any]]:
    """A conduit that has greeted as a bus does, and jeepney's connection to it."""
    mine, theirs = socket.socketpair()
    with mine, Conduit.from_conn(mine) as link:
        mine.close()
        link.timeout = LIMIT
        hello = jeepney.message_bus.Hello()
        hello.header.serial = 1
        link.transfer(data=jeepney.new_method_return(hello, "s", (":1.1",)).serialise(serial=1))
        with blocking.DBusConnection(theirs, enable_fds=True) as connection:
            with link.receive() as message:
                assert b"Hello" in message.data
            yield link, connection


def test_a_message_of_jeepney_arrives_with_its_descriptors() -> None:
    numbers = [memory(b"one"), memory(b"other")]
    with bus() as (link, connection):
        connection.send(signal("with files", *numbers))
        with link.receive() as message:
            parser = jeepney.Parser()
            parser.add_data(message.data, message.fds)
            _, *descriptors = parser.get_next_message().body
            for descriptor, expected in zip(descriptors, (b"one", b"other"), strict=True):
                assert is_private(descriptor.fileno())
                with descriptor.to_file() as file:
                    assert file.read() == expected
    for number in numbers:
        os.close(number)


def test_jeepney_takes_the_descriptors_of_a_transfer() -> None:
    numbers = [memory(b"one"), memory(b"other")]
    with bus() as (link, connection):
        data = signal("with files", *numbers).serialise(serial=2, fds=array.array("i"))
        link.transfer(*numbers, data=data)
        _, *descriptors = connection.receive(timeout=LIMIT).body
        for descriptor, expected in zip(descriptors, (b"one", b"other"), strict=True):
            with descriptor.to_file("rb") as file:
                assert file.read() == expected
