"""Twisted's ``sendFileDescriptor`` and ``IFileDescriptorReceiver`` at the other end."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from helpers import is_private, memory
from peers import LIMIT, python, running, succeeded

import conduit
from conduit import Conduit

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("twisted") is None, reason="not installed: Twisted"
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path in paths:
        path.write_text(f"file {path.name}")
    return [str(path) for path in paths]


def test_each_descriptor_that_twisted_sends_arrives_by_itself(
    tmp_path: Path, files: list[str]
) -> None:
    with conduit.Listener(tmp_path / "socket") as listener:
        with running(*python("twisted_peer.py", "send", str(listener.path), *files)) as twisted:
            with listener.accept(LIMIT) as link:
                link.timeout = LIMIT
                for name in ("one", "two", "three"):
                    with link.receive_file("r") as file:
                        assert file.read() == f"file {name}"
                        assert is_private(file.fileno())
                with pytest.raises(conduit.PeerClosedError):
                    link.receive_file()
            succeeded(twisted)


def test_descriptors_of_twisted_arrive_as_whole_messages(tmp_path: Path, files: list[str]) -> None:
    with conduit.Listener(tmp_path / "socket") as listener:
        with running(*python("twisted_peer.py", "send", str(listener.path), *files)) as twisted:
            with listener.accept(LIMIT) as link:
                link.timeout = LIMIT
                for name in ("one", "two", "three"):
                    with link.receive() as message:
                        assert message.data == b"\0"
                        [descriptor] = message.fds
                        with descriptor.to_file("r") as file:
                            assert file.read() == f"file {name}"
            succeeded(twisted)


def test_twisted_receives_what_a_conduit_transfers(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running(*python("twisted_peer.py", "receive", str(path))) as twisted:
        assert twisted.stdout is not None
        assert twisted.stdout.readline() == "listening\n"
        with Conduit.connect(path, timeout=LIMIT) as link:
            link.transfer_fd(memory(b"a plain transfer"))
            link.transfer(memory(b"two"), memory(b"at once"), data=b"with a message")
            link.transfer(data=b", and nothing else")
        out = succeeded(twisted)
    assert out.splitlines() == [
        "a plain transfer",
        "two",
        "at once",
        r"b'\x00with a message, and nothing else'",
    ]
