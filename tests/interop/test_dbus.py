"""dbus-daemon: lines, then messages that say how many descriptors they have, read by a Reader."""

from __future__ import annotations

import os
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import is_private, memory
from peers import HERE, LIMIT, installed, needs, needs_name, running

from conduit import Conduit, Descriptor, Reader

jeepney = pytest.importorskip("jeepney", reason="not installed: jeepney")

blocking = pytest.importorskip("jeepney.io.blocking")

pytestmark = [needs("dbus-daemon"), needs_name]

FRAMING: dict[str, Any] = runpy.run_path(str(HERE.parent.parent / "examples/framing/dbus.py"))

CONFIG = """
<busconfig>
  <type>session</type>
  <listen>unix:path={path}</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


@contextmanager
def bus(directory: Path) -> Iterator[str]:
    """A bus of its own, and the path of its socket."""
    path = str(directory / "bus")
    (directory / "config").write_text(CONFIG.format(path=path))
    command = [installed("dbus-daemon"), "--nofork", "--nopidfile", "--nosyslog", "--print-address"]
    with running(*command, f"--config-file={directory / 'config'}") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("unix:path=")
        yield path


def log_in(link: Conduit, reader: Reader) -> str:
    """Speak the lines before the first message, and return the name that the bus gives."""
    link.transfer(data=b"\0AUTH EXTERNAL %s\r\n" % str(os.geteuid()).encode().hex().encode())
    assert reader.receive_until(b"\r\n").startswith(b"OK ")
    link.transfer(data=b"NEGOTIATE_UNIX_FD\r\n")
    assert reader.receive_until(b"\r\n") == b"AGREE_UNIX_FD"
    hello = jeepney.message_bus.Hello()
    link.transfer(data=b"BEGIN\r\n" + hello.serialise(serial=1))
    while True:
        message, fds = FRAMING["receive_message"](reader)
        assert fds == ()
        answer = parsed(message)
        if answer.header.message_type is jeepney.MessageType.method_return:
            return str(answer.body[0])


def parsed(message: bytes, descriptors: tuple[Descriptor, ...] = ()) -> Any:
    parser = jeepney.Parser()
    parser.add_data(message, descriptors)
    return parser.get_next_message()


def test_messages_arrive_through_the_bus_with_the_descriptors_that_they_say_they_have(
    tmp_path: Path,
) -> None:
    counts = [1, 0, 3, 2]
    with (
        bus(tmp_path) as path,
        Conduit.connect(path, timeout=LIMIT) as link,
        Reader(link) as reader,
    ):
        address = jeepney.DBusAddress("/o", bus_name=log_in(link, reader), interface="a.b")
        with blocking.open_dbus_connection(f"unix:path={path}", enable_fds=True) as connection:
            # All of them wait to be read, with what the bus says in between.
            for number, count in enumerate(counts):
                fds = [memory(b"file %d" % each) for each in range(count)]
                message = jeepney.new_method_call(
                    address, "Take", "i" + "h" * count, (number, *fds)
                )
                message.header.flags |= jeepney.MessageFlag.no_reply_expected
                connection.send(message)
                for fd in fds:
                    os.close(fd)
        for number, count in enumerate(counts):
            while b"Take" not in (received := FRAMING["receive_message"](reader))[0]:
                assert received[1] == ()
            data, descriptors = received
            assert parsed(data, descriptors).body[0] == number
            assert len(descriptors) == count
            for each, descriptor in enumerate(descriptors):
                assert is_private(descriptor.fileno())
                with descriptor.to_file() as file:
                    assert file.read() == b"file %d" % each
        assert reader.pending == 0
