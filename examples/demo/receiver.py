"""The other program of the demo; sender.py starts it, and says what it is about.

Its one argument is the number of the Unix socket that it inherits.
"""

import os
import sys

from conduit import Conduit

PATIENCE = 20.0


def say(text: str) -> None:
    print(f"receiver {os.getpid():>7}  {text}", flush=True)


def main(number: int) -> None:
    with Conduit(number, "sender") as sender:
        sender.timeout = PATIENCE
        file = sender.receive_file("r", encoding="utf-8")
        conn = sender.receive_conn()
        listener = sender.receive_conn()

    # What is received is an ordinary file and two ordinary sockets, and this process's own.
    with file, conn:
        rest = file.read()
        say(f"read on in the file     {rest!r}")
        say(f"answers the client      port {conn.getpeername()[1]}")
        conn.sendall(rest.encode())

    with listener:
        listener.settimeout(PATIENCE)
        newcomer, address = listener.accept()
        say(f"accepted a new client   port {address[1]}")
        with newcomer:
            newcomer.sendall(f"process {os.getpid()}".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
