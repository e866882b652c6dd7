"""What holds on every system. Where there is no /proc, as on macOS, little else of the suite runs.

So these tests use stream sockets, pipes and files only, and nothing that Linux alone has.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import try_installed
from helpers import is_open, is_private

from conduit import (
    Conduit,
    Descriptor,
    Error,
    ErrType,
    Listener,
    PeerClosedError,
    WouldBlockError,
)


@pytest.fixture
def pair() -> Iterator[tuple[Conduit, Conduit]]:
    """Two connected conduits."""
    ours, theirs = Conduit.pair()
    with ours, theirs:
        yield ours, theirs


def test_what_an_installed_conduit_is_tried_with_works() -> None:
    # It forks, so it is a process without the threads of other tests.
    program = [sys.executable, "-W", "error", try_installed.__file__]
    said = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said.startswith("conduit works")


def test_what_was_sent_is_closed_here_and_private_there(pair: tuple[Conduit, Conduit]) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    ours.transfer_fd(writer)
    assert not is_open(writer)
    arrived = theirs.receive_fd()
    assert is_private(arrived)
    os.write(arrived, b"x")
    os.close(arrived)
    assert os.read(reader, 2) == b"x"
    os.close(reader)


def test_what_was_kept_stays_open(pair: tuple[Conduit, Conduit]) -> None:
    ours, theirs = pair
    with Descriptor(os.open("/", os.O_RDONLY)) as mine:
        ours.transfer(mine, keep=True)
        assert stat.S_ISDIR(os.fstat(mine.fileno()).st_mode)
        with theirs.receive() as message:
            assert len(message.fds) == 1


def test_many_descriptors_arrive_in_their_order(pair: tuple[Conduit, Conduit]) -> None:
    ours, theirs = pair
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, str(place)) for place in range(20)]
        numbers = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
        ours.transfer(*numbers, data=b"twenty")
        with theirs.receive() as message:
            assert message.data == b"twenty"
            for path, arrived in zip(paths, message.fds, strict=True):
                assert os.path.samestat(os.fstat(arrived.fileno()), path.stat())


def test_a_refused_item_sends_nothing_and_closes_nothing(pair: tuple[Conduit, Conduit]) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(Error) as caught:
        ours.transfer(reader, writer)
    assert caught.value.errno == errno.EBADF
    os.close(reader)
    theirs.timeout = 0
    with pytest.raises(WouldBlockError):
        theirs.receive()


def test_no_message_within_the_timeout_is_a_timeout(pair: tuple[Conduit, Conduit]) -> None:
    _, theirs = pair
    theirs.timeout = 0.01
    with pytest.raises(TimeoutError):
        theirs.receive()


def test_a_peer_that_closed_is_named(pair: tuple[Conduit, Conduit]) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(PeerClosedError):
        theirs.receive()
    reader, writer = os.pipe()
    with pytest.raises(Error):
        theirs.transfer_fd(writer)
    os.close(writer)
    os.close(reader)


def test_more_descriptors_than_asked_for_are_closed(pair: tuple[Conduit, Conduit]) -> None:
    ours, theirs = pair
    ours.transfer(*os.pipe())
    with pytest.raises(Error) as caught:
        theirs.receive_fd()
    assert caught.value.type is ErrType.BAD_CTRL_MESG


def test_a_peer_that_uses_the_standard_library_is_understood() -> None:
    mine, peer = socket.socketpair()
    with mine, peer, Conduit.from_conn(mine) as link:
        reader, writer = os.pipe()
        socket.send_fds(peer, [b"x"], [reader])
        arrived = link.receive_fd()
        link.transfer_fd(writer)
        data, numbers, _, _ = socket.recv_fds(peer, 10, 1)
        assert data == b"\0"
        for number in (reader, arrived, *numbers):
            os.close(number)


def test_every_public_name_is_there_and_others_are_none() -> None:
    program = (
        "import conduit\n"
        "found = {name: getattr(conduit, name) for name in conduit.__all__}\n"
        "assert set(found) <= set(dir(conduit))\n"
        "assert not hasattr(conduit, 'Reciever')\n"
    )
    subprocess.run([sys.executable, "-P", "-W", "error", "-c", program], check=True)


def test_a_listener_removes_its_path() -> None:
    # What macOS gives for temporary files is longer than the path of a socket may be.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory, "s")
        with Listener(path):
            assert stat.S_ISSOCK(path.stat().st_mode)
            Conduit.connect(path).close()
        assert not path.exists()
