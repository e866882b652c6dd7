"""A program that starts at once: a server has done its imports, and gets each caller's streams.

    python examples/warm_worker.py serve SOCKET
    python examples/warm_worker.py run SOCKET [ARGUMENT...] < input > output

The server imports what is slow to import, and waits. For each run it gets the caller's standard
input, output and error, and forks. The child uses them as its own, be they a terminal, a pipe or a
file; no byte goes through the server. Only the server's user and root may call.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback

import conduit


def work(arguments: list[str]) -> int:
    """Do what the program is for: here, number the lines of the input. Return its exit status."""
    number = 0
    for number, line in enumerate(sys.stdin, 1):
        print(number, *arguments, line, end="")
    print(f"{number} lines, in {os.getpid()}", file=sys.stderr)
    return 0 if number else 1


def work_with(message: conduit.Message) -> int:
    """Work in this process, with the streams that came as its own; return its exit status."""
    for number, stream in enumerate(message.fds):
        os.dup2(stream.fileno(), number)
    message.close()
    try:
        status = work(json.loads(message.data))
        sys.stdout.flush()
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    return status


def serve(path: str) -> None:
    """Fork a child for each caller, until Ctrl-C."""
    # Nobody waits for the children: each tells its status itself.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with conduit.Listener(path, type=socket.SOCK_SEQPACKET) as listener:
        print("ready", flush=True)
        while True:
            try:
                with listener.accept() as client:
                    # A caller that connects and says nothing delays the others no longer than this.
                    client.timeout = 5
                    with client.receive(max_fds=3) as message:
                        if os.fork() == 0:
                            try:
                                listener.close()
                                client.transfer(data=b"%d" % work_with(message))
                            finally:
                                os._exit(0)
            except conduit.Error as error:
                print(error, file=sys.stderr)


def run(path: str, arguments: list[str]) -> int:
    """Lend the server this process's streams; return the exit status once it is done."""
    with conduit.Conduit.connect(path, type=socket.SOCK_SEQPACKET) as server:
        server.transfer(0, 1, 2, data=json.dumps(arguments).encode(), keep=True)
        return int(server.receive().data)


def main() -> int:
    task, path, *arguments = sys.argv[1:]
    if task == "run":
        return run(path, arguments)
    with contextlib.suppress(KeyboardInterrupt):
        serve(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
