"""The other process of a test: ``python other_process.py TASK NUMBER [ARGUMENT...]``.

It has one end of a Unix socket under NUMBER, does its task with it, and prints a JSON object of
what it saw.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from typing import Any

from conduit import Conduit


def read(link: Conduit) -> dict[str, Any]:
    """Receive a file and read it on."""
    with link.receive_file() as file:
        offset = file.tell()
        return {"mode": file.mode, "offset": offset, "rest": file.read().decode()}


def read_pipe(link: Conduit) -> dict[str, Any]:
    """Receive the reading end of a pipe and read it to its end."""
    with link.receive_file() as file:
        return {"mode": file.mode, "rest": file.read().decode()}


def write(link: Conduit) -> dict[str, Any]:
    """Receive a file and write to it."""
    with link.receive_file() as file:
        file.write(b"by the other process")
        return {"mode": file.mode}


def talk(link: Conduit) -> dict[str, Any]:
    """Receive a connected socket, answer what comes, and tell what it is."""
    with link.receive_conn() as sock:
        seen = {
            "family": sock.family,
            "type": sock.type,
            "proto": sock.proto,
            "timeout": sock.gettimeout(),
            "peer": sock.getpeername(),
        }
        sock.settimeout(30)
        sock.send(sock.recv(64).upper())
        return seen


def accept(link: Conduit) -> dict[str, Any]:
    """Receive a listener and serve one connection."""
    with link.receive_conn() as listener:
        address = listener.getsockname()
        conn, _ = listener.accept()
        with conn:
            conn.sendall(str(os.getpid()).encode())
        return {"pid": os.getpid(), "address": address}


def terminal(link: Conduit) -> dict[str, Any]:
    """Receive a terminal and use it."""
    with link.receive_file("r+", encoding="utf-8") as file:
        columns = os.get_terminal_size(file.fileno()).columns
        line = file.readline()
        file.write("read " + line)
        return {"tty": file.isatty(), "columns": columns, "line": line}


def memory(link: Conduit) -> dict[str, Any]:
    """Receive memory, map it and change it."""
    number = link.receive_fd()
    with mmap.mmap(number, 0) as mapped:
        seen = mapped[:5].decode()
        mapped[:5] = b"there"
    os.close(number)
    return {"seen": seen}


def directory(link: Conduit) -> dict[str, Any]:
    """Receive a directory, list it, and open a file in it."""
    number = link.receive_fd()
    names = os.listdir(number)
    file = os.open("inside", os.O_RDONLY, dir_fd=number)
    found = os.read(file, 64).decode()
    os.close(file)
    os.close(number)
    return {"names": names, "found": found}


def null(link: Conduit) -> dict[str, Any]:
    """Receive /dev/null, write and read."""
    with link.receive_file() as file:
        file.write(b"gone")
        file.flush()
        status = os.fstat(file.fileno())
        return {"device": status.st_rdev, "read": file.read().decode()}


def give(link: Conduit, path: str) -> dict[str, Any]:
    """Open a file, read its first line, and move it, a listener and a socket."""
    with open(path, encoding="utf-8") as file, socket.create_server(("127.0.0.1", 0)) as listener:
        line = file.readline()
        address = listener.getsockname()
        client = socket.create_connection(address)
        link.transfer_file(file)
        link.transfer_conn(listener)
        link.transfer_conn(client)
        return {"line": line, "address": address, "closed": file.closed and client.fileno() == -1}


def die(link: Conduit, path: str) -> dict[str, Any]:
    """Move a file and die at once."""
    link.transfer_fd(os.open(path, os.O_RDONLY))
    os.kill(os.getpid(), 9)
    raise AssertionError("unreachable")


def many(link: Conduit, count: str) -> dict[str, Any]:
    """Receive many files."""
    contents = []
    for _ in range(int(count)):
        with link.receive_file() as file:
            contents.append(file.read().decode())
    return {"contents": contents}


TASKS: dict[str, Any] = {
    task.__name__: task
    for task in (
        read,
        read_pipe,
        write,
        talk,
        accept,
        terminal,
        memory,
        directory,
        null,
        give,
        die,
        many,
    )
}

if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[2])) as end, Conduit.from_conn(end) as conduit:
        conduit.timeout = 30
        print(json.dumps(TASKS[sys.argv[1]](conduit, *sys.argv[3:])))
