"""Whether an installed conduit works: python tools/try_installed.py, on any system.

Moves one descriptor of each kind, a message, and what a listener accepts, by nothing but the
standard library and the installed package.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path

import conduit


def move_file() -> None:
    """A pipe's end arrives as a file that can be written to."""
    ours, theirs = conduit.Conduit.pair()
    with ours, theirs:
        reader, writer = os.pipe()
        ours.transfer_fd(writer)
        with theirs.receive_file("w", encoding="utf-8") as file:
            file.write("arrived")
        with open(reader, encoding="utf-8") as file:
            assert file.read() == "arrived"


def move_socket() -> None:
    """A socket arrives as one."""
    ours, theirs = conduit.Conduit.pair()
    here, there = socket.socketpair()
    with ours, theirs, here:
        ours.transfer_conn(there)
        with theirs.receive_conn() as sock:
            here.sendall(b"arrived")
            assert sock.recv(100) == b"arrived"


def move_message_between_processes() -> None:
    """A child connects to a listener and sends bytes with two descriptors."""
    # What macOS gives for temporary files is longer than the path of a socket may be.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = str(Path(directory) / "s")
        with conduit.Listener(path) as listener:
            child = os.fork()
            if child == 0:
                with conduit.Conduit.connect(path, timeout=60) as client:
                    client.transfer(*os.pipe(), data=b"two")
                os._exit(0)
            with listener.accept(timeout=60) as server, server.receive() as message:
                assert server.peer.uid == os.getuid()
                assert message.data == b"two"
                assert len(message.fds) == 2
            assert os.waitpid(child, 0)[1] == 0


def main() -> None:
    """Do it all, and say what did it."""
    move_file()
    move_socket()
    move_message_between_processes()
    print(f"conduit works on Python {sys.version.split()[0]}: {Path(conduit.__file__).parent}")


if __name__ == "__main__":
    main()
