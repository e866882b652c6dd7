"""Move an open file, a TCP connection and a listening socket to another process.

    python examples/demo/sender.py

This program opens all three, begins to use them, and gives them away. The other program,
receiver.py beside it, carries on: it reads the file from where this one stopped, answers the
client of the connection, and accepts on the listener. Exits with 0 if all of that came true.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from conduit import Conduit

RECEIVER = Path(__file__).with_name("receiver.py")
LINES = ["a line for the sender\n", "a line for the receiver\n", "and another\n"]
PATIENCE = 20.0


def say(text: str) -> None:
    print(f"sender   {os.getpid():>7}  {text}", flush=True)


def ask(client: socket.socket) -> str:
    """Read what the server at the other end answers, up to the end."""
    with client, client.makefile(encoding="utf-8") as answer:
        return answer.read()


def main() -> int:
    ours, theirs = Conduit.pair()
    ours.timeout = PATIENCE
    with theirs:
        # The receiver inherits its end of the pair; what it gets later, it gets through that.
        receiver = subprocess.Popen(
            [sys.executable, RECEIVER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
    with receiver, ours, tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "lines.txt")
        path.write_text("".join(LINES), encoding="utf-8")
        file = path.open(encoding="utf-8")
        first = file.readline()
        say(f"read from the file      {first!r}")

        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        client = socket.create_connection(address, timeout=PATIENCE)
        conn, peer = listener.accept()
        say(f"accepted the client     port {peer[1]}")
        say(f"listens on              port {address[1]}")

        ours.transfer_file(file)
        ours.transfer_conn(conn)
        ours.transfer_conn(listener)
        moved = file.closed and conn.fileno() == listener.fileno() == -1
        say(f"moved all three         its own copies are {'closed' if moved else 'OPEN'}")

        answer = ask(client)
        say(f"the client was told     {answer!r}")
        newcomer = ask(socket.create_connection(address, timeout=PATIENCE))
        say(f"a new client was told   {newcomer!r}")

    true = (
        moved
        and answer == "".join(LINES[1:])
        and newcomer == f"process {receiver.pid}"
        and receiver.returncode == 0
    )
    say("all three work in the other process" if true else "FAILED")
    return 0 if true else 1


if __name__ == "__main__":
    sys.exit(main())
