"""D-Bus: a header says how long a message is, and its field UNIX_FDS how many descriptors it has.

The format is that of https://dbus.freedesktop.org/doc/dbus-specification.html, "Message Format".
"""

from __future__ import annotations

import os
import struct

from conduit import Conduit, Descriptor, Reader

MAX_MESSAGE = 128 << 20
UNIX_FDS = 9


def aligned(offset: int, to: int) -> int:
    return -(-offset // to) * to


def count_of_fds(order: str, fields: bytes) -> int:
    """Look for UNIX_FDS in the array of header fields."""
    place = 0
    while place < len(fields):
        place = aligned(place, 8)
        code, signature = fields[place], fields[place + 2 : place + 3]
        # A field is a code and a variant, whose signature is its length, one letter and NUL.
        place += 4
        if signature == b"g":
            place += 1 + fields[place] + 1
            continue
        if signature not in (b"s", b"o", b"u"):
            raise ValueError(f"header field {code} has the signature {signature!r}")
        (value,) = struct.unpack_from(f"{order}I", fields, place)
        if code == UNIX_FDS:
            return int(value)
        place += 4 if signature == b"u" else 4 + value + 1
    return 0


def receive_message(reader: Reader) -> tuple[bytes, tuple[Descriptor, ...]]:
    """Receive one message, with its descriptors."""
    head = reader.receive_exactly(16)
    order = {b"l": "<", b"B": ">"}[head[:1]]
    length, _, fields = struct.unpack_from(f"{order}III", head, 4)
    rest = aligned(fields, 8) + length
    if rest > MAX_MESSAGE:
        raise ValueError(f"a message of {rest} bytes")
    message = reader.receive_exactly(rest)
    return head + message, reader.take_fds(count_of_fds(order, message[:fields]))


def signal(serial: int, body: bytes, *fields: bytes) -> bytes:
    """Return a signal with these header fields, each of which but the last is padded."""
    array = b"".join(field + bytes(-len(field) % 8) for field in fields[:-1]) + fields[-1]
    head = struct.pack("<4sIII", b"l\4\0\1", len(body), serial, len(array)) + array
    return head + bytes(-len(head) % 8) + body


def main() -> None:
    """Send a signal without descriptors, glued to one with two, and receive both."""
    path, fds = b"\1\1o\0\2\0\0\0/a\0", b"\x09\1u\0\2\0\0\0"
    ours, theirs = Conduit.pair()
    with ours, theirs, Reader(theirs) as reader:
        ours.transfer(data=signal(1, b"no file", path))
        ours.transfer(*os.pipe(), data=signal(2, b"a pipe", path, fds))
        for _ in range(2):
            message, descriptors = receive_message(reader)
            print(message[-6:], [descriptor.kind for descriptor in descriptors])
            for descriptor in descriptors:
                descriptor.close()


if __name__ == "__main__":
    main()
