"""vhost-user: a header of 12 bytes, and the descriptors with it; read by number and never ahead.

The format is that of https://qemu-project.gitlab.io/qemu/interop/vhost-user.html. It tells in many
ways how many descriptors a request has, so that it is easier not to count: what
`Conduit.receive_exactly` returns with a header came with it, since it reads no byte behind it.
"""

from __future__ import annotations

import os
import struct

from conduit import Conduit, Descriptor

HEADER = struct.Struct("=III")
MAX_PAYLOAD = 4096
MAX_FDS = 8
VERSION = 1
SET_OWNER, SET_VRING_KICK = 3, 12


def receive_request(link: Conduit) -> tuple[int, bytes, tuple[Descriptor, ...]]:
    """Receive the number of a request, its payload and its descriptors."""
    head = link.receive_exactly(HEADER.size, max_fds=MAX_FDS)
    try:
        request, flags, size = HEADER.unpack(head.data)
        if flags & 3 != VERSION or size > MAX_PAYLOAD:
            raise ValueError(f"flags {flags:#x}, a payload of {size} bytes")
        payload = link.receive_exactly(size, max_fds=0).data if size else b""
    except BaseException:
        head.close()
        raise
    return request, payload, head.fds


def main() -> None:
    """Send a request without descriptors, glued to one with a descriptor, and receive both."""
    ours, theirs = Conduit.pair()
    with ours, theirs:
        ours.transfer(data=HEADER.pack(SET_OWNER, VERSION, 0))
        kick = os.open(os.devnull, os.O_RDONLY)
        ours.transfer(kick, data=HEADER.pack(SET_VRING_KICK, VERSION, 8) + bytes(8))
        for _ in range(2):
            request, payload, descriptors = receive_request(theirs)
            print(request, len(payload), [descriptor.kind for descriptor in descriptors])
            for descriptor in descriptors:
                descriptor.close()


if __name__ == "__main__":
    main()
