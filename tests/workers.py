"""What the processes that `multiprocessing` starts do; they import this, so it imports little."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from multiprocessing import get_context, util
from multiprocessing.connection import Connection
from typing import Any

import conduit.multiprocessing
from conduit import Conduit, Descriptor, Listener, Peer

module: Any = conduit.multiprocessing


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def nobody(peer: Peer) -> bool:
    """Allow no one."""
    return False


def use(thing: Any) -> str:
    """Do with a thing what it is for, and close it; what was seen."""
    with thing:
        assert not os.get_inheritable(thing.fileno())
        if isinstance(thing, Conduit):
            thing.transfer(data=b"from the worker")
            return f"{thing.name} {thing.timeout}"
        if isinstance(thing, Descriptor):
            return f"{thing.name} {os.pread(thing.fileno(), 100, 0).decode()}"
        if isinstance(thing, Listener):
            with thing.accept(10) as conduit:
                conduit.transfer(data=b"from the worker")
            return os.path.basename(os.fsdecode(thing.path))
        if isinstance(thing, socket.socket):
            thing.sendall(b"from the worker")
            return str(thing.gettimeout())
        assert isinstance(thing, io.BufferedReader)
        return f"{thing.mode} {thing.read().decode()}"


def use_all(things: list[Any]) -> list[str]:
    """Use some things, and see that nothing else was opened for them."""
    before = descriptor_count()
    seen = [use(thing) for thing in things]
    assert descriptor_count() == before - len(things)
    return seen


def answer(writer: Connection, things: list[Any]) -> None:
    writer.send(use_all(things))


def answer_from_pipe(writer: Connection, reader: Connection) -> None:
    answer(writer, reader.recv())


def answer_from_queue(writer: Connection, queue: Any) -> None:
    answer(writer, queue.get())


def answer_from_dict(writer: Connection, shared: Any) -> None:
    answer(writer, shared["things"])


def answer_by_child(writer: Connection, method: str, things: list[Any]) -> None:
    """Hand on what came to a process of this one's own."""
    context: Any = get_context(method)
    child = context.Process(target=answer, args=(writer, things))
    child.start()
    for thing in things:
        thing.close()
    child.join()
    assert child.exitcode == 0


def count_content(writer: Connection, queue: Any, count: int) -> None:
    """Take so many descriptors from a queue; whether each had its own content, and is gone."""
    first = descriptor_count()
    for place in range(count):
        with queue.get() as descriptor:
            assert os.pread(descriptor.fileno(), 100, 0) == b"%d" % place
    writer.send(descriptor_count() - first)


def content_of(descriptors: list[Descriptor]) -> list[bytes]:
    contents = []
    for descriptor in descriptors:
        with descriptor:
            contents.append(os.pread(descriptor.fileno(), 100, 0))
    return contents


def answer_content(writer: Connection, descriptors: list[Descriptor]) -> None:
    writer.send(content_of(descriptors))


def read_both(writer: Connection, first: Any, second: Any) -> None:
    """Close the first of two that are one file; the second is open all the same."""
    assert first.fileno() != second.fileno()
    first.close()
    assert second.fileno() > 2
    writer.send(os.pread(second.fileno(), 100, 0))
    second.close()


def wait_to_be_killed(writer: Connection, queue: Any) -> None:
    """Hold a queue, and take nothing from it."""
    writer.send(os.getpid())
    signal.pause()


def kill_itself(thing: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def open_memory(content: bytes, name: str) -> Descriptor:
    descriptor = Descriptor(os.memfd_create("worker"), name)
    os.write(descriptor.fileno(), content)
    return descriptor


def send_and_die(writer: Connection) -> None:
    with open_memory(b"lost", "lost") as descriptor:
        writer.send(descriptor)
    os._exit(0)


def put_and_return(queue: Any, ending: Connection) -> None:
    """Put a descriptor in a queue and return; tell when the process has begun to end."""
    util.Finalize(None, ending.send, args=("ending",), exitpriority=-20)
    queue.put(open_memory(b"of one that ends", "left"))


def send_and_return(writer: Connection, linger: float) -> None:
    module.LINGER = linger
    with open_memory(b"not taken in time", "late") as descriptor:
        writer.send(descriptor)


def store(shared: Any) -> None:
    """Put two descriptors into a manager's dictionary."""
    with open_memory(b"stored", "one") as one, open_memory(b"as well", "other") as other:
        shared["one"] = one
        shared["other"] = other


def limit_lifetime(seconds: float) -> None:
    conduit.multiprocessing.register(lifetime=seconds)


def return_open() -> Descriptor:
    return open_memory(b"a result", "result")


def forget(writer: Connection) -> None:
    """Send what nobody is going to take, and wait until it is closed."""
    limit_lifetime(0.05)
    before = descriptor_count()
    reader, end = os.pipe()
    with Descriptor(end) as descriptor, open(reader, "rb") as pipe:
        unread, unwritten = get_context().Pipe(duplex=False)
        with unread, unwritten, contextlib.suppress(ValueError):
            # Nothing expires meanwhile.
            with module._lock:
                unwritten.send(descriptor)
                [shelf] = module._shelves
            descriptor.close()
            assert pipe.read() == b""
            assert shelf.ended.wait(30)
    writer.send(descriptor_count() - before)
