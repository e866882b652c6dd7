"""Wayland: words of 32 bits; what a message is says how many descriptors come with it.

The format is that of https://wayland.freedesktop.org/docs/html/ch04.html, "Wire Format".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from conduit import Conduit, Descriptor, Reader

Message = tuple[int, int, bytes, tuple[Descriptor, ...]]
"""The object, the opcode, the arguments, and the descriptors, which stand in no word of theirs."""


def receive_message(reader: Reader, count_of_fds: Callable[[int, int], int]) -> Message:
    """Receive one message; a function tells how many descriptors an opcode of an object has."""
    obj, word = struct.unpack("=II", reader.receive_exactly(8))
    size, opcode = word >> 16, word & 0xFFFF
    if size < 8 or size % 4:
        raise ValueError(f"a message of {size} bytes")
    arguments = reader.receive_exactly(size - 8)
    return obj, opcode, arguments, reader.take_fds(count_of_fds(obj, opcode))


def send_message(link: Conduit, obj: int, opcode: int, *words: int, fds: tuple[int, ...]) -> None:
    size = 8 + 4 * len(words)
    link.transfer(*fds, data=struct.pack(f"={2 + len(words)}I", obj, size << 16 | opcode, *words))


WL_SHM, CREATE_POOL = 3, 0
"""The object that a client has bound as wl_shm, and the request that brings a pool's memory."""


def main() -> None:
    """Create a pool of shared memory, between two requests without descriptors."""
    ours, theirs = Conduit.pair()
    with ours, theirs, Reader(theirs) as reader:
        send_message(ours, 1, 0, 2, fds=())
        pool = os.memfd_create("pool")
        os.ftruncate(pool, 4096)
        send_message(ours, WL_SHM, CREATE_POOL, 4, 4096, fds=(pool,))
        send_message(ours, 1, 0, 5, fds=())
        for _ in range(3):
            obj, opcode, arguments, descriptors = receive_message(
                reader, lambda obj, opcode: int((obj, opcode) == (WL_SHM, CREATE_POOL))
            )
            print(obj, opcode, len(arguments), [each.kind for each in descriptors])
            for descriptor in descriptors:
                descriptor.close()


if __name__ == "__main__":
    main()
