"""The other process of test_multiprocessing.py: ``multiprocessing_peer.py TASK NUMBER FORM``.

It has one end of a Unix stream socket under NUMBER. FORM names one of the forms of
tests/multiprocessing_forms.py, which descriptors are passed in.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from conduit import Conduit

sys.path.insert(0, str(Path(__file__).parents[1]))

from multiprocessing_forms import FORMS

# The stubs of the standard library leave out what only some systems have.
DupFd: Any = reduction.DupFd


def send(end: Connection[Any, Any]) -> None:
    """Send a pipe's reading end as a handle."""
    reader, writer = os.pipe()
    os.write(writer, b"through multiprocessing")
    os.close(writer)
    reduction.send_handle(end, reader, os.getppid())
    os.close(reader)


def receive(end: Connection[Any, Any]) -> None:
    """Receive a handle, and write to it."""
    handle = reduction.recv_handle(end)
    os.write(handle, b"written by multiprocessing")
    os.close(handle)


def sends(end: Connection[Any, Any]) -> None:
    """Send several descriptors."""
    numbers = [os.memfd_create("test") for _ in range(5)]
    for turn, number in enumerate(numbers):
        os.write(number, b"file %d" % turn)
    with socket.socket(fileno=os.dup(end.fileno())) as sock:
        reduction.sendfds(sock, numbers)  # type: ignore[attr-defined,unused-ignore]


def receives(end: Connection[Any, Any]) -> None:
    """Receive several descriptors, and write to them."""
    with socket.socket(fileno=os.dup(end.fileno())) as sock:
        for turn, number in enumerate(reduction.recvfds(sock, 5)):
            os.write(number, b"written %d" % turn)


def answer(pipe: Connection[Any, Any]) -> None:
    """In a worker: take a socket and a handle that were pickled, and send both back pickled."""
    sock, handle = pipe.recv()
    number = handle.detach()
    sock.sendall(b"by the worker, ")
    os.write(number, b"by the worker, ")
    pipe.send((sock, DupFd(number)))
    # Until they have been fetched.
    pipe.recv()
    sock.close()
    os.close(number)


def relay(end: Connection[Any, Any]) -> None:
    """Receive by a conduit, have a worker use it through pickling, move what comes back."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=answer, args=(theirs,))
    worker.start()
    with Conduit(end.fileno()) as link, link.receive() as message:
        first, second = message.fds
        with first.to_conn() as sock, second:
            ours.send((sock, DupFd(second.fileno())))
            back, handle = ours.recv()
            number = handle.detach()
            ours.send(None)
        worker.join()
        assert worker.exitcode == 0
        back.sendall(b"and back")
        os.write(number, b"and back")
        link.transfer(back, number, data=pickle.dumps("moved"))


TASKS = {task.__name__: task for task in (send, receive, sends, receives, relay)}

if __name__ == "__main__":
    with Connection(int(sys.argv[2])) as connection:
        # Under the names by which send_handle() and recv_handle() call them, too.
        vars(reduction).update(vars(FORMS[sys.argv[3]]))
        TASKS[sys.argv[1]](connection)
