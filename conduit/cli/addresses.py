"""The addresses of ``conduit run --listen``."""

from __future__ import annotations

import os
import re
import socket
from typing import NamedTuple

from conduit.paths import absolute


class Address(NamedTuple):
    """Where to listen.

    Attributes:
        key: the name by which a successor asks for the socket.
        name: the name that COMMAND reads in LISTEN_FDNAMES.
        host: the host; the path, if there is no port.
        port: None for a Unix socket.
        type: ``SOCK_STREAM`` or ``SOCK_DGRAM``.
    """

    key: str
    name: str
    host: str
    port: int | None
    type: int


def parse_address(text: str) -> Address:
    """Read ``[NAME=]ADDR``.

    Raises:
        ValueError: it is not an address; the message says what is wrong.
        Error: it is a relative path, and the current directory is gone.
    """
    given, place = "", text
    if not text.startswith(("/", "./", "../", "@")) and "=" in text:
        given, _, place = text.partition("=")
        if not 0 < len(given.encode()) < 256 or ":" in given or not given.isprintable():
            raise ValueError(f"{given!r} cannot be a name: 1 to 255 bytes, no colon, printable")
    # What sd_listen_fds(3) calls a socket without a name.
    name = given or "unknown"
    if place.startswith(("/", "./", "../", "@")):
        # The successor may be started in another directory.
        path = place if place.startswith("@") else os.fsdecode(absolute(place))
        return Address(_key(given, path, place), name, path, None, socket.SOCK_STREAM)
    if url := re.fullmatch(r"(\w+://|(?:tcp|unix):)(.*[^/])/*", place):
        scheme, plain = url.groups()
        raise ValueError(f"{text!r}: write only {plain}, without {scheme}")
    udp = place.startswith("udp:")
    host, colon, port = place.removeprefix("udp:").rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        hint = ""
        if place.isascii() and place.isdigit() and int(place) < 65536:
            hint = f"; for a port on every address, write :{place}"
        elif place and not colon and "/" in place:
            hint = f"; for a Unix socket, write ./{place}"
        raise ValueError(f"{text!r} is no HOST:PORT, [IPV6]:PORT, udp:HOST:PORT or path{hint}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address as [{host}]:{port}")
    try:
        host.encode("idna")
    except UnicodeError as exc:
        raise ValueError(f"{text!r}: {host!r} cannot be a host: {exc.__cause__ or exc}") from exc
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    return Address(_key(given, place, place), name, host, int(port), kind)


def _key(given: str, where: str, place: str) -> str:
    """Return the name by which a successor asks for a socket: the given one, or where it is."""
    if not given and len(os.fsencode(where)) > 255:
        raise ValueError(f"{where!r} has more than 255 bytes: give it a name, as in web={place}")
    return given or where
