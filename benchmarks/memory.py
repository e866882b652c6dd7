"""How much memory and how many descriptors one object takes, beside those of the standard library.

A thousand of each are made, and what Python's allocator gave for them is divided by that; what the
kernel keeps for a socket comes on top, and is the same for whoever opens one. What an object is
made from, such as the socket of a `Conduit`, is made before and not counted.
"""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import conduit
from conduit.aio import AsyncConduit
from conduit.channel import Channel
from conduit.listener import Listener
from conduit.reader import Reader

MANY = 1000


class Figures(NamedTuple):
    """What one object takes: bytes, and descriptors."""

    size: int
    fds: float


def _open_fds() -> int:
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    return len(os.listdir(directory))


def _taken(make: Callable[[Any], Any], prepared: list[Any]) -> tuple[Figures, list[Any]]:
    gc.collect()
    fds = _open_fds()
    tracemalloc.start()
    objects: list[Any] = [None] * len(prepared)
    before = tracemalloc.get_traced_memory()[0]
    for index, each in enumerate(prepared):
        objects[index] = make(each)
    gc.collect()
    size = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    count = len(prepared)
    return Figures(round(size / count), (_open_fds() - fds) / count), objects


def measure() -> dict[str, Figures]:
    """Return the figures of each kind of object."""
    with ExitStack() as stack:

        def descriptor(_: object = None) -> conduit.Descriptor:
            return stack.enter_context(conduit.Descriptor(os.open(os.devnull, os.O_RDONLY)))

        def end(_: object = None) -> socket.socket:
            one, other = socket.socketpair()
            stack.enter_context(one)
            return stack.enter_context(other)

        def link(_: object = None) -> conduit.Conduit:
            with end() as sock:
                return stack.enter_context(conduit.Conduit.from_conn(sock))

        def message(conduits: tuple[conduit.Conduit, conduit.Conduit]) -> conduit.Message:
            conduits[0].transfer(0, keep=True)
            return stack.enter_context(conduits[1].receive())

        directory = stack.enter_context(tempfile.TemporaryDirectory())

        def listener(index: int) -> Listener:
            return stack.enter_context(Listener(f"{directory}/{index}"))

        ends = [end() for _ in range(MANY)]
        pair = conduit.Conduit.pair()
        for each in pair:
            stack.enter_context(each)
        links = [link() for _ in range(MANY)]
        kinds: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
            "`Conduit`, with a duplicate": (
                lambda sock: stack.enter_context(conduit.Conduit.from_conn(sock)),
                ends,
            ),
            "`Conduit`, that borrows": (lambda sock: conduit.Conduit(sock.fileno()), ends),
            "`AsyncConduit`, with a duplicate": (AsyncConduit.from_conn, ends),
            "`Descriptor`": (descriptor, ends),
            "`Message` with one `Descriptor`": (message, [pair] * MANY),
            "`Reader`": (Reader, links),
            "`Channel`": (Channel, links),
            "`Listener`": (listener, list(range(MANY))),
            "`socket.socket`": (lambda sock: socket.socket(fileno=os.dup(sock.fileno())), ends),
            '`open(..., "rb")`': (lambda _: stack.enter_context(open(os.devnull, "rb")), ends),
        }
        results = {}
        for name, (make, prepared) in kinds.items():
            results[name], objects = _taken(make, prepared)
            for obj in objects:
                getattr(obj, "close", lambda: None)()
        return results
