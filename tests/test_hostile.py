"""A peer that sends whatever the system lets it send, in any order.

The steps are chosen by hypothesis, and in the long run by a seeded generator. After each of them
all that is open must be what the objects of the test own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, TypeVar

import pytest
from helpers import (
    PORTABLE,
    borrowed,
    is_open,
    is_private,
    memory,
    open_descriptors,
    room_for,
    stdin_closed,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sides import ALL_KINDS, close_all, identity

from conduit import MAX_FDS, Conduit, Descriptor, Error, ErrType, PeerClosedError, WouldBlockError

T = TypeVar("T")
Identity = tuple[int, int]

SCM_CREDENTIALS = 2
SO_PASSPIDFD = 76

PATTERN = random.Random(5).randbytes(1 << 19)
SIZES = [0, 0, 1, 1, 1, 2, 3, 100, 4096, 65536, 100_000, 300_000]
COUNTS = [0, 0, 1, 1, 1, 2, 3, 7, 252, 253]
TOO_MANY = [254, 400]


class Choose(Protocol):
    """Pick one of several, as hypothesis or a generator of random numbers will have it."""

    def __call__(self, options: Sequence[T], /) -> T: ...


class Msghdr(ctypes.Structure):
    """``struct msghdr`` of Linux, which carries what `socket.sendmsg` refuses to."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_char_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class Iovec(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = [
        ("base", ctypes.c_char_p),
        ("len", ctypes.c_size_t),
    ]


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.sendmsg.restype = ctypes.c_ssize_t
LIBC.sendmsg.argtypes = [ctypes.c_int, ctypes.POINTER(Msghdr), ctypes.c_int]


def raw_sendmsg(number: int, data: bytes, control: bytes, flags: int) -> int:
    """Send without waiting, with a control buffer of any content."""
    part = Iovec(data, len(data))
    message = Msghdr(
        iov=ctypes.addressof(part), iovlen=1, control=control or None, controllen=len(control)
    )
    flags |= socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    sent: int = LIBC.sendmsg(number, ctypes.byref(message), flags)
    if sent < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return sent


HEADER = struct.Struct("@Nii")


def record(level: int, kind: int, body: bytes, stretch: int = 0) -> bytes:
    """Form a control message whose header lies about its length by ``stretch`` bytes."""
    length = max(HEADER.size + len(body) + stretch, 0)
    return HEADER.pack(length, level, kind) + body + bytes(-len(body) % 8)


def rights_in(control: bytes) -> list[int]:
    """The descriptors that Linux finds in control messages it has accepted."""
    numbers: list[int] = []
    offset = 0
    while offset + HEADER.size <= len(control):
        length, level, kind = HEADER.unpack_from(control, offset)
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            count = (length - HEADER.size) // 4
            numbers += struct.unpack_from(f"@{count}i", control, offset + HEADER.size)
        offset += (length + 7) // 8 * 8
    return numbers


def unread(number: int) -> int:
    """Bytes that wait to be received."""
    return int.from_bytes(fcntl.ioctl(number, termios.FIONREAD, bytes(4)), "little")


@dataclass
class Stream:
    """Bytes on a stream, and the descriptors that go with some of them, by the byte's place."""

    data: bytearray = field(default_factory=bytearray)
    fds: dict[int, list[Identity]] = field(default_factory=dict)
    end: int = 0

    def put(self, data: bytes, fds: list[Identity]) -> None:
        if data:
            self.fds[self.end] = fds
            self.data += data
            self.end += len(data)

    def take(self, size: int) -> tuple[bytes, list[Identity]]:
        start = self.end - len(self.data)
        data = bytes(self.data[:size])
        del self.data[:size]
        places = [place for place in self.fds if place < start + size]
        return data, [one for place in places for one in self.fds.pop(place)]


@dataclass
class Packets:
    """Messages on a socket that keeps them apart."""

    queue: deque[tuple[bytes, list[Identity]]] = field(default_factory=deque)

    def put(self, data: bytes, fds: list[Identity]) -> None:
        self.queue.append((data, fds))

    def take(self, size: int) -> tuple[bytes, list[Identity]]:
        return self.queue.popleft()


def assert_told(error: Error) -> None:
    """Every failure has a type, and is told by a sentence."""
    assert isinstance(error.type, ErrType)
    assert error.errno is None or error.errno in errno.errorcode
    sentence = str(error)
    assert sentence.isprintable()
    assert len(sentence.split()) > 4
    assert not any(word in sentence for word in ("None", "Errno", "ErrType", "NULL"))


class Duel:
    """A conduit and its hostile peer, and what each of them must find."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        mine, self.peer = socket.socketpair(socket.AF_UNIX, kind)
        self.link = Conduit.from_conn(mine, name="duel")
        mine.close()
        self.coming: Stream | Packets = Stream() if kind == socket.SOCK_STREAM else Packets()
        self.going: Stream | Packets = Stream() if kind == socket.SOCK_STREAM else Packets()
        self.directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM), *socket.socketpair()]
        self.pipe = os.pipe()
        self.files = [memory(b"%d" % i) for i in range(5)]
        self.files += [self.directory, *self.pipe, *(sock.fileno() for sock in self.sockets)]
        self.held: list[int | IO[Any] | socket.socket | Descriptor] = []
        self.sender_ended = self.receiver_ended = False
        self.sent = 0
        self.story: list[str] = []
        # From now on it has what it is woken by, and nothing is made unseen.
        self.link.timeout = 0.001
        with pytest.raises(TimeoutError):
            self.link.receive()
        self.link.timeout = 0
        self.open = open_descriptors()

    def close(self) -> None:
        self.release()
        self.link.close()
        self.peer.close()
        for sock in self.sockets:
            sock.close()
        close_all(self.files[:8])

    def release(self) -> None:
        for each in self.held:
            os.close(each) if isinstance(each, int) else each.close()
        self.held.clear()

    def check(self) -> None:
        """What is open is what the objects own."""
        owned = {each if isinstance(each, int) else each.fileno() for each in self.held}
        found = open_descriptors()
        assert found.keys() == self.open.keys() | owned
        assert not self.open.keys() & owned
        assert all(found[number] == name for number, name in self.open.items())

    def payload(self, size: int) -> bytes:
        start = self.sent * 97 % (len(PATTERN) - size)
        self.sent += 1
        return PATTERN[start : start + size]

    def some(self, count: int, start: int) -> list[int]:
        return [self.files[(start + i * 7) % len(self.files)] for i in range(count)]

    # What the peer does

    def peer_sends(self, choose: Choose) -> None:
        """Send one message of any form, and keep in mind what of it must arrive."""
        control = b""
        for _ in range(choose([0, 1, 1, 1, 2, 3])):
            control += self.control(choose)
        if choose([False] * 15 + [True]):
            control = control[: choose(range(64))]
        if choose([False] * 15 + [True]):
            control += PATTERN[: choose(range(64))]
        flags = socket.MSG_OOB if choose([False] * 7 + [True]) else 0
        self.peer_puts(self.payload(choose(SIZES)), control, flags)

    def peer_sends_plainly(self, choose: Choose) -> None:
        """Send plain transfers."""
        for number in self.some(choose([1, 2, 3]), choose(range(len(self.files)))):
            body = struct.pack("@i", number)
            self.peer_puts(b"\0", record(socket.SOL_SOCKET, socket.SCM_RIGHTS, body), 0)

    def peer_puts(self, data: bytes, control: bytes, flags: int) -> None:
        if self.peer.fileno() < 0:
            return
        try:
            sent = raw_sendmsg(self.peer.fileno(), data, control, flags)
        except OSError as exc:
            self.story.append(f"refused: {exc}")
            return
        self.coming.put(data[:sent], [identity(number) for number in rights_in(control)])

    def control(self, choose: Choose) -> bytes:
        """One control message: of descriptors, of credentials, or something else, maybe false."""
        form = choose(["rights"] * 12 + ["credentials"] * 3 + ["forged", "bad", "other"])
        stretch = choose([0] * 80 + [-20, -8, -4, -3, -1, 1, 4, 8, 1 << 20])
        mine = os.getpid(), os.getuid(), os.getgid()
        if form == "rights":
            numbers = self.some(choose(COUNTS + TOO_MANY[:1]), choose(range(8)))
            body = struct.pack(f"@{len(numbers)}i", *numbers)
            # What is beyond the numbers is not to be taken for some.
            if stretch > 0:
                body += b"\xff" * 8
            return record(socket.SOL_SOCKET, socket.SCM_RIGHTS, body, stretch - 8 * (stretch > 0))
        if form == "credentials":
            body = struct.pack("@iII", *mine)
            return record(socket.SOL_SOCKET, SCM_CREDENTIALS, body, stretch)
        if form == "forged":
            # Numbers that are open here: nothing may close them.
            body = struct.pack("@iII", mine[0], self.files[0], self.files[1])
            return record(socket.SOL_SOCKET, SCM_CREDENTIALS, body, stretch)
        if form == "bad":
            numbers = [*self.some(choose(range(3)), 0), choose([-1, -100, 1 << 20])]
            body = struct.pack(f"@{len(numbers)}i", *numbers)
            return record(socket.SOL_SOCKET, socket.SCM_RIGHTS, body)
        level, kind = choose([(41, 1), (0, 0), (socket.SOL_SOCKET, 4), (socket.SOL_SOCKET, 99)])
        return record(level, kind, PATTERN[: choose([0, 4, 12, 100])], stretch)

    def peer_receives(self, choose: Choose) -> None:
        """Take what the conduit has sent: it is what the conduit was told to send."""
        if self.peer.fileno() < 0:
            return
        space = socket.CMSG_SPACE(4 * MAX_FDS)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, control, _, _ = self.peer.recvmsg(1 << 20, space, flags)
        except OSError as exc:
            assert exc.errno in (errno.EAGAIN, errno.ECONNRESET)
            return
        numbers = [n for _, _, body in control for n in struct.unpack(f"@{len(body) // 4}i", body)]
        try:
            if data or not self.receiver_ended:
                expected = self.going.take(len(data))
                assert (data, [identity(number) for number in numbers]) == expected
        finally:
            close_all(numbers)

    def peer_shuts(self, choose: Choose) -> None:
        """Close the peer's end, or half of it."""
        how = choose([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR, None])
        if self.peer.fileno() < 0:
            return
        if how is None:
            self.open.pop(self.peer.fileno())
            self.peer.close()
        else:
            with contextlib.suppress(OSError):
                self.peer.shutdown(how)
        if self.kind != socket.SOCK_DGRAM:
            self.sender_ended |= how != socket.SHUT_RD
        self.receiver_ended |= how != socket.SHUT_WR

    # What the conduit's own side does

    def link_shuts(self, choose: Choose) -> None:
        """Close a half of the conduit's end."""
        how = choose([socket.SHUT_RD, socket.SHUT_WR])
        with borrowed(self.link.fileno()) as sock, contextlib.suppress(OSError):
            sock.shutdown(how)
        self.sender_ended |= how == socket.SHUT_RD
        self.receiver_ended |= how == socket.SHUT_WR

    def link_asks(self, choose: Choose) -> None:
        """Ask for control messages besides descriptors, or no longer."""
        option = choose([socket.SO_PASSCRED, SO_PASSPIDFD])
        with borrowed(self.link.fileno()) as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, choose([0, 1]))

    def link_receives(self, choose: Choose) -> None:
        """Receive a message of any form."""
        max_data = choose([1, 2, 3, 100, 65536, 1 << 20])
        max_fds = choose([0, 1, 2, 7, 252, MAX_FDS, MAX_FDS])
        with self.received(choose, max_data, max_fds) as found:
            message = self.link.receive(max_data, max_fds)
            found.append((message.data, [fd.fileno() for fd in message.fds]))
            self.held += message.fds

    def link_receives_one(self, choose: Choose) -> None:
        """Receive a plain transfer."""
        name = choose(["receive_fd", "receive_file", "receive_conn"])
        with self.received(choose, 1, 1, name) as found:
            one = getattr(self.link, name)()
            found.append((None, [one if isinstance(one, int) else one.fileno()]))
            self.held.append(one)

    @contextlib.contextmanager
    def received(
        self, choose: Choose, max_data: int, max_fds: int, plain: str | None = None
    ) -> Iterator[list[tuple[bytes | None, list[int]]]]:
        """See that what a call returns or raises is what must come of what had arrived."""
        found: list[tuple[bytes | None, list[int]]] = []
        where = choose(["usual"] * 4 + ["room", "low"])
        room = choose(range(4)) if where == "room" else MAX_FDS
        surroundings: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if where == "low":
            surroundings = stdin_closed()
        elif where == "room":
            surroundings = room_for(room)
        before = unread(self.link.fileno())
        error = None
        with surroundings:
            try:
                yield found
            except Error as exc:
                error = exc.with_traceback(None)
                assert_told(error)
        self.story.append(str(error))
        if isinstance(self.coming, Stream):
            assert before == len(self.coming.data)
            arrived = bool(before)
            consumed = before - unread(self.link.fileno())
            assert consumed <= max_data
            assert consumed or not before
        else:
            arrived = bool(self.coming.queue)
            consumed = 0
        if not arrived:
            expected = PeerClosedError if self.sender_ended else WouldBlockError
            assert isinstance(error, expected)
            return
        data, fds = self.coming.take(consumed)
        if error is not None:
            assert not found
            self.judge(error, data, fds, max_data, max_fds, room, plain)
            return
        assert len(fds) <= min(max_fds, room)
        assert plain is None or len(fds) == 1
        [(got, numbers)] = found
        assert got == data or (got is None and len(data) <= 1)
        assert [identity(number) for number in numbers] == fds
        assert all(is_private(number) and number > 2 for number in numbers)

    def judge(
        self,
        error: Error,
        data: bytes,
        fds: list[Identity],
        max_data: int,
        max_fds: int,
        room: int,
        plain: str | None,
    ) -> None:
        """An error must have its reason in what had arrived."""
        if isinstance(error, PeerClosedError):
            # Elsewhere an empty packet that nothing but the end follows is taken for the end.
            assert self.kind == socket.SOCK_SEQPACKET
            assert not data and not fds
            assert PORTABLE
        elif error.type is ErrType.BAD_CLONE:
            assert len(fds) == 1
            sockets = [identity(sock.fileno()) for sock in self.sockets]
            if plain == "receive_file":
                assert fds[0] == identity(self.directory)
            else:
                assert plain == "receive_conn" and fds[0] not in sockets
        else:
            assert error.type is ErrType.BAD_CTRL_MESG
            if error.errno == errno.EMFILE:
                assert len(fds) > room
            elif error.errno == errno.EMSGSIZE:
                assert len(data) > max_data
            else:
                assert error.errno is None
                assert len(fds) > max_fds or (plain is not None and len(fds) != 1)

    def link_transfers(self, choose: Choose) -> None:
        """Send a message, while the peer does not listen, is full, or is gone."""
        count = choose(COUNTS + TOO_MANY)
        data = self.payload(choose(SIZES) or (count == 0))
        keep, as_objects = choose([True, False]), choose([True, False])
        bad = choose([None] * 5 + [-1, 1 << 20])
        if self.sent % 2:
            data = data[:1]
        originals = self.some(count, choose(range(8)))
        numbers = [fcntl.fcntl(n, fcntl.F_DUPFD_CLOEXEC, 3) for n in originals]
        items: list[int | Descriptor] = [*map(Descriptor, numbers)] if as_objects else [*numbers]
        fds = [identity(number) for number in numbers]
        try:
            self.link.transfer(
                *items, *([] if bad is None else [bad]), data=data or None, keep=keep
            )
        except Error as exc:
            error: Error | None = exc.with_traceback(None)
            assert_told(exc)
            if exc.errno == errno.ECONNREFUSED and isinstance(self.coming, Packets):
                # Linux's datagram sockets forget what a peer sent once they learn that it is gone.
                self.coming.queue.clear()
            if exc.sent:
                assert isinstance(self.going, Stream)
                self.going.put(data[: exc.sent], fds)
        else:
            error = None
            assert count <= MAX_FDS and bad is None
            self.going.put(data or b"\0", fds)
        self.story.append(str(error))
        closed = error is None and not keep
        assert all(is_open(number) is not closed for number in numbers)
        if not closed:
            assert [identity(number) for number in numbers] == fds
            close_all([i.detach() if isinstance(i, Descriptor) else i for i in items])
        if error is None:
            return
        if count + (bad is not None) > MAX_FDS:
            assert (error.type, error.errno) == (ErrType.BAD_CTRL_MESG, errno.EINVAL)
        elif bad == -1:
            assert error.type is ErrType.NO_FD
        else:
            assert error.type is ErrType.FAILED_TRANSFER
            ended = self.receiver_ended or self.sender_ended
            assert (
                isinstance(error, WouldBlockError)
                or ended
                or error.errno
                in (
                    errno.EMSGSIZE,
                    errno.ETOOMANYREFS,
                    errno.EBADF if bad else None,
                    None if isinstance(self.going, Stream) else errno.EAGAIN,
                )
            )

    def forgets(self, choose: Choose) -> None:
        """Close what was received and kept."""
        self.release()


STEPS: list[Callable[[Duel, Choose], None]] = [
    *[Duel.peer_sends] * 8,
    *[Duel.peer_sends_plainly] * 2,
    *[Duel.link_receives] * 4,
    *[Duel.link_receives_one] * 3,
    *[Duel.link_transfers] * 3,
    *[Duel.peer_receives] * 3,
    Duel.link_asks,
    Duel.forgets,
    Duel.peer_shuts,
    Duel.link_shuts,
]


def play(kind: int, choose: Choose, longest: int) -> None:
    """Let the two do so many things at most."""
    duel = Duel(kind)
    # One of the last steps ends what could be sent; before, all the others have their turn.
    steps = choose(range(1, longest))
    try:
        for place in range(steps):
            ending = place > steps - 8
            step = choose(STEPS if ending else STEPS[:-2])
            duel.story.append(step.__name__)
            step(duel, choose)
            duel.check()
    except BaseException as exc:
        exc.add_note("\n".join(duel.story))
        raise
    finally:
        duel.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    database=None,
    # To look for a shorter example may take minutes; what has happened is told by the failure.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_a_peer_sends_is_received_as_it_was_sent_or_is_an_error(
    kind: int, data: st.DataObject
) -> None:
    """A1, A3, A10, B1, B2, B3, B4, B5, B18, C1, C2, D1, D4, D5, E31, R1, X1, X2, X4."""

    def choose(options: Sequence[T], /) -> T:
        return data.draw(st.sampled_from(options))

    play(kind, choose, 40)


@pytest.mark.long
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_peer_sends_for_long_is_received_as_it_was_sent_or_is_an_error(
    kind: int, seed: int
) -> None:
    """The same rows, in longer sequences."""
    generator = random.Random(f"{seed}, {kind}")
    for _ in range(150):
        play(kind, generator.choice, 200)
