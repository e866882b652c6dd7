"""What goes wrong when descriptors are passed, provoked: docs/hazards.md tells users of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import itertools
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drivers import settle
from helpers import (
    GENEROUS,
    PORTABLE,
    Call,
    as_int,
    borrowed,
    content,
    fill,
    in_child,
    is_open,
    memory,
    needs_descriptors,
    reserved_port,
    room_for,
    run_python,
    send,
    waits,
)
from sides import (
    ALL_KINDS,
    NOBODY,
    SYS_ADMIN,
    beside,
    close_all,
    files,
    is_at_eof,
    is_capable,
    needs_root,
    public_directory,
)

from conduit import (
    Conduit,
    Descriptor,
    DescriptorTypeError,
    Error,
    ErrType,
    Listener,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)
from conduit.aio import AsyncConduit

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]

STREAM = [pytest.param(socket.SOCK_STREAM, id="stream")]
SEQPACKET = [pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")]
DGRAM = [pytest.param(socket.SOCK_DGRAM, id="dgram")]

# From Linux's asm-generic/socket.h, mount.h and sched.h, and Python has no names for them.
SO_PASSRIGHTS = 83
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
MNT_FORCE, MNT_DETACH = 1, 2
CLONE_NEWNS, CLONE_NEWPID = 1 << 17, 1 << 29

# The same on every architecture of Linux that is younger than they are.
IO_URING_SETUP, OPENAT2 = 425, 437

libc = ctypes.CDLL(None, use_errno=True)


def system(function: str, *args: Any) -> int:
    """Call the C library, and raise what it reports."""
    result: int = getattr(libc, function)(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")
    return result


def take_descriptors(number: int, on: bool) -> None:
    """Let a socket take descriptors or not."""
    with borrowed(number) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, on)


def knows_passrights() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 1)
        except OSError:
            return False
    return True


needs_passrights = pytest.mark.skipif(
    not knows_passrights(), reason="Linux before 6.16 has no SO_PASSRIGHTS"
)
needs_admin = pytest.mark.skipif(
    not is_capable(SYS_ADMIN), reason="only an administrator (CAP_SYS_ADMIN) can mount and unshare"
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


# Receiving


@pytest.mark.hazard("A4", "C3", "L7")
@pytest.mark.parametrize("read", [os.read, lambda fd, size: os.readv(fd, [bytearray(size)])])
def test_who_reads_a_conduits_socket_otherwise_destroys_the_descriptors_and_leaks_none(
    wired: Wired, read: Callable[[int, int], object]
) -> None:
    link, peer = wired
    reader, writer = os.pipe()
    send(peer, [writer], b"1")
    os.close(writer)
    send(peer, [], b"2")
    read(link.fileno(), 1)
    assert is_at_eof(reader)
    assert link.receive().data == b"2"


@pytest.mark.hazard("A9")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_who_looks_ahead_takes_nothing_from_a_conduit(wired: Wired) -> None:
    link, peer = wired
    number = memory(b"seen and received")
    send(peer, [number])
    os.close(number)
    with borrowed(link.fileno()) as sock:
        _, [(_, _, rights)], _, _ = sock.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_PEEK)
    os.close(int.from_bytes(rights, sys.byteorder))
    with link.receive_file() as arrived:
        assert arrived.read() == b"seen and received"


@pytest.mark.hazard("B18", "O1", "O2")
@pytest.mark.parametrize("kind", STREAM)
@pytest.mark.parametrize("used", [False, True], ids=["first", "later"])
def test_a_descriptor_that_comes_out_of_band_arrives_in_its_place(wired: Wired, used: bool) -> None:
    link, peer = wired
    if used:
        peer.send(b"\0")
        assert link.receive().data == b"\0"
    number = memory(b"urgent")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, as_int(number))]
    peer.send(b"in ")
    try:
        peer.sendmsg([b"p"], rights, socket.MSG_OOB)
    except OSError as exc:
        pytest.skip(f"this system has no out-of-band bytes on Unix sockets: {exc}")
    os.close(number)
    peer.send(b"lace")
    received, arrived = b"", list[Descriptor]()
    while len(received) < 8:
        message = link.receive()
        received += message.data
        arrived += message.fds
    assert received == b"in place"
    [descriptor] = arrived
    assert content(descriptor.fileno()) == b"urgent"
    descriptor.close()
    link.timeout = 0
    with pytest.raises(WouldBlockError):
        link.receive()


@pytest.mark.hazard("B18")
@pytest.mark.parametrize("kind", SEQPACKET)
def test_nothing_comes_out_of_band_where_messages_are_kept_apart(wired: Wired) -> None:
    with pytest.raises(OSError) as caught:
        wired[1].send(b"!", socket.MSG_OOB)
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.hazard("C2")
@pytest.mark.parametrize("kind", STREAM)
def test_the_rest_of_a_stream_message_read_short_comes_glued_to_the_next_ones_descriptors(
    ends: Ends,
) -> None:
    one, other = ends
    first, second, third = files(3)
    one.transfer(first, data=b"BBBB")
    one.transfer(second, third, data=b"CCCC")
    with other.receive(max_data=2) as message:
        assert message.data == b"BB"
        assert [content(fd.fileno()) for fd in message.fds] == [b"0"]
    with other.receive() as message:
        assert message.data == b"BBCCCC"
        assert [content(fd.fileno()) for fd in message.fds] == [b"1", b"2"]


@pytest.mark.hazard("G11", "G13")
def test_a_low_water_mark_holds_no_message_back(wired: Wired) -> None:
    link, peer = wired
    with borrowed(link.fileno()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1000)
    receiving = Call(link.receive_file)
    assert receiving.is_waiting()
    number = memory(b"at once")
    send(peer, [number])
    os.close(number)
    with receiving.result() as file:
        assert file.read() == b"at once"


@needs_descriptors(4096)
@pytest.mark.hazard("P7")
def test_numbers_beyond_1023_are_waited_for_sent_and_received(ends: Ends) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        high = [fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 1500) for end in ends]
        one, other = map(Conduit, high)
        receiving = Call(other.receive_fd)
        assert receiving.is_waiting()
        number = memory(b"high")
        sent = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 2000)
        os.close(number)
        one.transfer_fd(sent)
        arrived = receiving.result()
        assert content(arrived) == b"high"
        os.close(arrived)
        close_all(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Receiving from strangers


@needs_passrights
@pytest.mark.hazard("B8", "E1")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_peer_that_takes_no_descriptors_is_told_apart_and_all_stays_here(wired: Wired) -> None:
    link, peer = wired
    take_descriptors(peer.fileno(), False)
    number = memory(b"kept")
    one, other = socket.socketpair()
    with one, other:
        attempts: list[Callable[[], None]] = [
            lambda: link.transfer_fd(number),
            lambda: link.transfer_conn(one),
            lambda: link.transfer(number, one, data=b"both"),
        ]
        for attempt in attempts:
            with pytest.raises(Error) as caught:
                attempt()
            assert (caught.value.type, caught.value.errno) == (
                ErrType.FAILED_TRANSFER,
                errno.EPERM,
            )
            assert "SO_PASSRIGHTS" in str(caught.value)
        one.send(b"open")
        assert other.recv(9) == b"open"
    link.transfer(data=b"bytes pass")
    assert peer.recv(99) == b"bytes pass"
    take_descriptors(peer.fileno(), True)
    link.transfer_fd(number)
    with Conduit(peer.fileno()) as receiver, receiver.receive_file() as arrived:
        assert arrived.read() == b"kept"


@needs_passrights
@pytest.mark.hazard("B8")
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_was_queued_before_descriptors_were_refused_still_arrives(wired: Wired) -> None:
    link, peer = wired
    number = memory(b"early")
    send(peer, [number])
    os.close(number)
    take_descriptors(link.fileno(), False)
    with link.receive_file() as arrived:
        assert arrived.read() == b"early"


@needs_passrights
@pytest.mark.hazard("G2")
def test_a_listener_can_refuse_descriptors_until_it_knows_who_sends_them(
    path: str, kind: int
) -> None:
    with Listener(path, type=kind) as listener:
        take_descriptors(listener.fileno(), False)
        with Conduit.connect(path, type=kind) as client:
            number = memory(b"welcome")
            with pytest.raises(Error) as caught:
                client.transfer_fd(number)
            assert caught.value.errno == errno.EPERM
            with listener.accept(GENEROUS) as link:
                with pytest.raises(Error) as caught:
                    client.transfer_fd(number)
                assert caught.value.errno == errno.EPERM
                take_descriptors(link.fileno(), True)
                client.transfer_fd(number)
                with link.receive_file() as arrived:
                    assert arrived.read() == b"welcome"


# Unread descriptors count against the limit of each process of the user that sends more.
@needs_descriptors(15_000)
@pytest.mark.hazard("E1", "L8")
def test_all_that_was_piled_up_unread_is_closed_with_the_conduit(ends: Ends) -> None:
    one, other = ends
    reader, writer = os.pipe()
    one.timeout = 0
    piled = 0
    while piled < 10:
        try:
            one.transfer(*[writer] * 253, keep=True)
        except WouldBlockError:
            break
        piled += 1
    assert piled > 5
    os.close(writer)
    other.close()
    assert is_at_eof(reader)


class Bomb:
    """A TCP connection whose last close waits for hours, until `defuse` reads what was sent."""

    def __init__(self) -> None:
        near, self.far = tcp_pair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3 * 3600))
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(bytes(1 << 16))
        self.port = near.getsockname()[1]
        self.number = near.detach()
        self.table = open("/proc/net/tcp")

    def wait_until_it_lingers(self, closing: Call[None]) -> None:
        """Return once it is being closed (FIN_WAIT1)."""
        while True:
            self.table.seek(0)
            for line in self.table.read().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == self.port and fields[3] == "04":
                    assert closing.thread.is_alive()
                    return
            assert closing.thread.is_alive(), "it is closed, and did not linger"
            os.sched_yield()

    def defuse(self) -> None:
        buffer = bytearray(1 << 20)
        while self.far.recv_into(buffer):
            pass

    def close(self) -> None:
        self.table.close()
        self.far.close()


def close_a_descriptor(link: Conduit) -> None:
    [descriptor] = link.receive().fds
    descriptor.close()


def close_a_message(link: Conduit) -> None:
    link.receive().close()


def drop_a_message(link: Conduit) -> None:
    link.receive()
    settle(link)


def refuse_a_message(link: Conduit) -> None:
    with pytest.raises(Error):
        link.receive(max_fds=0)


def have_no_room(link: Conduit) -> None:
    with room_for(0), pytest.raises(Error) as caught:
        link.receive()
    assert caught.value.errno == errno.EMFILE


def close_the_conduit(link: Conduit) -> None:
    link.close()


@pytest.mark.hazard("CY2", "E2", "L2")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "dispose",
    [
        close_a_descriptor,
        close_a_message,
        drop_a_message,
        refuse_a_message,
        pytest.param(
            have_no_room,
            marks=pytest.mark.skipif(
                PORTABLE, reason="received with the GIL, so that no child is made meanwhile"
            ),
        ),
        close_the_conduit,
    ],
)
def test_other_threads_run_while_a_lingering_socket_is_closed(
    ends: Ends, dispose: Callable[[Conduit], None]
) -> None:
    one, other = ends
    with contextlib.closing(Bomb()) as bomb:
        one.transfer_fd(bomb.number)
        closing = Call(dispose, other)
        bomb.wait_until_it_lingers(closing)
        bomb.defuse()
        closing.result()


@pytest.mark.hazard("E2")
def test_a_received_socket_that_is_told_not_to_linger_is_closed_at_once(ends: Ends) -> None:
    one, other = ends
    with contextlib.closing(Bomb()) as bomb:
        one.transfer_fd(bomb.number)
        with other.receive_conn() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


class Fuse:
    """A file system of one file, in a mount namespace of this process's own."""

    INIT, OPEN, FLUSH = 26, 14, 25

    def __init__(self, place: Path) -> None:
        place.touch()
        self.place = place
        self.owner = os.getpid()
        self.device = os.open("/dev/fuse", os.O_RDWR)
        system("unshare", CLONE_NEWNS)
        system("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        options = f"fd={self.device},rootmode=100000,user_id=0,group_id=0,allow_other"
        system("mount", b"never", os.fsencode(place), b"fuse", 0, options.encode())

    def end(self) -> None:
        """Give up what waits for an answer."""
        system("umount2", os.fsencode(self.place), MNT_FORCE | MNT_DETACH)

    def serve(self, report: int) -> None:
        """Let the file be opened, and be closed by who mounted it; tell who else closes it.

        In a process of its own, for one that waits for itself cannot be killed.
        """
        while True:
            try:
                request = os.read(self.device, 1 << 17)
            except OSError as exc:
                assert exc.errno == errno.ENODEV
                return
            _, operation, unique, _, _, _, caller = struct.unpack_from("IIQQIII", request)
            if operation == self.INIT:
                answer = struct.pack("IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
            elif operation == self.OPEN:
                answer = struct.pack("QII", 1, 0, 0)
            elif operation == self.FLUSH and caller == self.owner:
                answer = b""
            elif operation == self.FLUSH:
                os.write(report, b"!")
                continue
            else:
                continue
            os.write(self.device, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)


@needs_admin
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this system has no /dev/fuse")
@pytest.mark.hazard("E2b", "NFS")
def test_a_file_whose_file_system_never_answers_is_received_and_stops_only_who_closes_it(
    ends: Ends, tmp_path: Path
) -> None:
    if in_child(lambda: Fuse(tmp_path / "probe").end()):
        # The root of a chroot need not be a mount point, and a container may forbid it.
        pytest.skip("this process cannot mount a file system that only it sees")
    one, other = ends
    closing_began, report = os.pipe()
    over, end = os.pipe()

    def serve() -> None:
        os.close(end)
        fuse = Fuse(tmp_path / "file")
        with beside(lambda: fuse.serve(report)):
            os.close(fuse.device)
            one.transfer_fd(os.open(fuse.place, os.O_RDONLY))
            os.read(over, 1)
            fuse.end()

    with beside(serve):
        os.close(report)
        message = other.receive()
        assert message.fds[0].fileno() > 2
        closing = Call(message.close)
        assert os.read(closing_began, 1) == b"!"
        assert closing.thread.is_alive()
        os.close(end)
    with pytest.raises(Error) as caught:
        closing.result()
    assert caught.value.type is ErrType.FAILED_CLOSE
    assert message.fds[0].closed
    close_all([closing_began, over])


def lock_of_the_description(number: int) -> None:
    fcntl.fcntl(number, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))


def is_locked_for_others(path: Path) -> bool:
    def try_lock() -> None:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    return in_child(lambda: must_fail(BlockingIOError, try_lock)) == 0


def must_fail(expected: type[BaseException], function: Callable[[], object]) -> None:
    try:
        function()
    except expected:
        return
    # Quietly, for that is an answer too.
    os._exit(1)


@pytest.mark.hazard("E7")
@pytest.mark.parametrize(
    ("lock", "stays"),
    [
        (lambda number: fcntl.lockf(number, fcntl.LOCK_EX), False),
        (lock_of_the_description, True),
    ],
    ids=["posix", "ofd"],
)
def test_closing_a_received_file_drops_this_process_posix_locks_of_it_and_no_other(
    ends: Ends, tmp_path: Path, lock: Callable[[int], None], stays: bool
) -> None:
    one, other = ends
    place = tmp_path / "database"
    with open(place, "w+b") as file:
        lock(file.fileno())
        with beside(lambda: one.transfer_fd(os.open(place, os.O_RDONLY))):
            message = other.receive()
        assert is_locked_for_others(place)
        message.close()
        assert is_locked_for_others(place) == stays


@pytest.mark.hazard("E7")
def test_a_lock_of_the_description_travels_with_it(ends: Ends, tmp_path: Path) -> None:
    one, other = ends
    place = tmp_path / "database"
    file = open(place, "w+b")
    lock_of_the_description(file.fileno())
    one.transfer_file(file)
    with other.receive_file() as arrived:
        assert is_locked_for_others(place)
        assert arrived.fileno() > 2
    assert not is_locked_for_others(place)


@pytest.mark.hazard("E10")
def test_memory_that_its_sender_shrinks_kills_who_mapped_it_unless_it_is_sealed(
    ends: Ends,
) -> None:
    one, other = ends
    for seal in (0, fcntl.F_SEAL_SHRINK):
        sent = os.memfd_create("shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(sent, bytes(mmap.PAGESIZE))
        fcntl.fcntl(sent, fcntl.F_ADD_SEALS, seal)
        one.transfer_fd(sent, keep=True)
        with other.receive() as message:
            arrived = message.fds[0].fileno()
            assert fcntl.fcntl(arrived, fcntl.F_GET_SEALS) == seal

            def shrink_and_look(sent: int = sent, arrived: int = arrived) -> None:
                faulthandler.disable()
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                with mmap.mmap(arrived, 0, prot=mmap.PROT_READ) as mapped:
                    with contextlib.suppress(PermissionError):
                        os.ftruncate(sent, 0)
                    assert mapped[0] == 0

            assert in_child(shrink_and_look) == (0 if seal else -signal.SIGBUS)
        os.close(sent)


@needs_root
@pytest.mark.hazard("E12")
def test_a_received_directory_leads_out_of_a_chroot_and_shows_itself(
    ends: Ends, tmp_path: Path
) -> None:
    one, other = ends
    jail, outside = tmp_path / "jail", tmp_path / "outside"
    for place in (jail, outside, outside / "inner"):
        place.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (outside / "inner" / "allowed").write_bytes(b"allowed")

    def open_beneath(directory: int, name: bytes) -> int:
        # struct open_how: flags, mode, RESOLVE_BENEATH
        how = struct.pack("QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, 8)
        return system("syscall", OPENAT2, directory, name, how, len(how))

    def look() -> None:
        os.chroot(jail)
        os.chdir("/")
        with other.receive() as message:
            [directory] = message.fds
            assert directory.kind == "directory"
            escaped = os.open("../secret", os.O_RDONLY, dir_fd=directory.fileno())
            assert content(escaped) == b"secret"
            assert content(open_beneath(directory.fileno(), b"allowed")) == b"allowed"
            with pytest.raises(OSError) as caught:
                open_beneath(directory.fileno(), b"../secret")
            assert caught.value.errno == errno.EXDEV

    with beside(look):
        one.transfer_fd(os.open(outside / "inner", os.O_RDONLY | os.O_DIRECTORY))


@pytest.mark.hazard("P6")
def test_what_kind_of_socket_arrived_can_be_asked_for(ends: Ends) -> None:
    one, other = ends
    one.transfer_conn(socket.create_server(("127.0.0.1", 0)))
    with other.receive_conn() as sock:
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(OSError) as caught:
            sock.recv(1)
    assert caught.value.errno == errno.ENOTCONN


@needs_root
@pytest.mark.hazard("G3")
def test_a_datagram_socket_takes_descriptors_from_anyone_until_it_is_connected() -> None:
    with public_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        place = os.path.join(directory, "server")
        sock.bind(place)
        os.chmod(place, 0o777)

        def intrude() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
                stranger.connect(place)
                Conduit(stranger.fileno()).transfer_fd(memory(b"injected"))

        def be_refused() -> None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
                with pytest.raises(PermissionError):
                    stranger.connect(place)

        link = Conduit(sock.fileno())
        with beside(intrude, user=NOBODY), link.receive_file() as arrived:
            assert arrived.read() == b"injected"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as friend:
            friend.bind(os.path.join(directory, "friend"))
            sock.connect(os.path.join(directory, "friend"))
            with beside(be_refused, user=NOBODY):
                pass


# What sender and receiver share


@pytest.mark.hazard("E4", "P5")
def test_what_a_receiver_does_to_the_flags_of_a_file_it_does_to_the_senders_too(
    ends: Ends,
) -> None:
    one, other = ends
    near, far = socket.socketpair()
    with near, far:
        one.transfer_conn(near, keep=True)
        with other.receive_conn() as arrived:
            assert arrived.gettimeout() is None
            assert waits(near.fileno()), "receiving changes nothing"
            arrived.setblocking(False)
            assert not waits(near.fileno())
            os.set_inheritable(arrived.fileno(), True)
            assert not os.get_inheritable(near.fileno())
        with pytest.raises(BlockingIOError):
            os.read(near.fileno(), 1)


@pytest.mark.hazard("E5", "T4")
def test_a_file_reopened_before_it_is_sent_has_an_offset_and_rights_of_its_own(
    ends: Ends, tmp_path: Path
) -> None:
    one, other = ends
    (tmp_path / "f").write_bytes(b"content")
    with open(tmp_path / "f", "r+b", buffering=0) as file:
        one.transfer_file(file, keep=True)
        with other.receive_file(buffering=0) as arrived:
            arrived.truncate(4)
            assert arrived.read(2) == b"co"
        assert file.read() == b"nt", "they share one offset"
        file.seek(0)
        anew = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        one.transfer_fd(anew)
        with other.receive_file() as arrived:
            assert arrived.read() == b"cont"
            with pytest.raises(OSError):
                os.ftruncate(arrived.fileno(), 0)
        assert file.read() == b"cont"


@pytest.mark.hazard("E9", "P8")
@pytest.mark.parametrize("taken_out", [False, True])
def test_a_socket_is_watched_on_under_a_number_that_is_gone_unless_it_was_taken_out(
    ends: Ends, taken_out: bool
) -> None:
    one, other = ends
    near, far = socket.socketpair()
    with far, select.epoll() as watcher:
        number = near.fileno()
        watcher.register(number, select.EPOLLIN)
        if taken_out:
            watcher.unregister(number)
        one.transfer_conn(near)
        innocent = memory()
        assert innocent == number
        far.send(b"for the receiver")
        with other.receive_conn() as arrived:
            events = watcher.poll(0)
            assert events == ([] if taken_out else [(innocent, select.EPOLLIN)])
            with pytest.raises(OSError):
                watcher.unregister(innocent)
            assert arrived.recv(99) == b"for the receiver"
        os.close(innocent)


@pytest.mark.hazard("P16", "Y6")
def test_a_socket_that_an_event_loop_owns_is_not_moved_behind_its_back(ends: Ends) -> None:
    one, other = ends
    near, far = socket.socketpair()

    async def main() -> None:
        _, writer = await asyncio.open_connection(sock=near)
        owned = writer.get_extra_info("socket")
        with pytest.raises(DescriptorTypeError) as caught:
            one.transfer_conn(owned)
        assert "close()" in str(caught.value)
        one.transfer_conn(owned, keep=True)
        writer.close()
        await writer.wait_closed()

    with far:
        asyncio.run(main())
        with other.receive_conn() as arrived:
            far.send(b"for the receiver")
            assert arrived.recv(99) == b"for the receiver"


# Sending


def io_uring() -> int:
    try:
        return system("syscall", IO_URING_SETUP, 2, ctypes.create_string_buffer(120))
    except OSError as exc:
        pytest.skip(f"this system has no io_uring for us: {exc}")


def test_a_ring_of_the_kernel_is_known_as_one() -> None:
    with Descriptor(io_uring()) as ring:
        assert ring.kind == "io_uring"


@pytest.mark.hazard("B10")
def test_a_ring_of_the_kernel_is_refused_with_the_whole_message_and_all_stays_here(
    ends: Ends,
) -> None:
    one, _ = ends
    ring = io_uring()
    number = memory(b"kept")
    with pytest.raises(Error) as caught:
        one.transfer(number, ring)
    assert (caught.value.type, caught.value.errno) == (ErrType.FAILED_TRANSFER, errno.EINVAL)
    assert "io_uring" in str(caught.value)
    assert content(number) == b"kept"
    close_all([number, ring])


@pytest.mark.hazard("L5")
def test_two_that_both_send_first_end_at_their_deadlines_or_go_on_once_one_receives(
    ends: Ends,
) -> None:
    queued = [fill(end.fileno()) for end in ends]
    numbers = [memory(b"0"), memory(b"1")]
    for end in ends:
        end.timeout = 0.02
    calls = [Call(end.transfer_fd, number) for end, number in zip(ends, numbers, strict=True)]
    for call in calls:
        with pytest.raises(TransferTimeoutError):
            call.result()
    assert all(map(is_open, numbers))
    for end in ends:
        end.timeout = GENEROUS
    calls = [Call(end.transfer_fd, number) for end, number in zip(ends, numbers, strict=True)]
    for call in calls:
        assert call.is_waiting()
    for end, count in zip(reversed(ends), queued, strict=True):
        received = 0
        while received < count:
            received += len(end.receive(max_data=1).data)
    for call in calls:
        call.result()
    for end, expected in zip(ends, (b"1", b"0"), strict=True):
        with end.receive_file() as arrived:
            assert arrived.read() == expected


@pytest.mark.hazard("B15", "F29")
def test_sending_to_a_stopped_peer_ends_at_the_deadline_and_goes_on_with_it(ends: Ends) -> None:
    one, other = ends
    counted, report = os.pipe()

    def receive() -> None:
        one.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        received = 0
        with contextlib.suppress(PeerClosedError):
            while True:
                with other.receive_file() as arrived:
                    assert arrived.read() == b"%d" % received
                received += 1
        os.write(report, b"%d" % received)

    with beside(receive) as child:
        _, status = os.waitpid(child, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        other.close()
        sent = 0
        one.timeout = 0.02
        with pytest.raises(TransferTimeoutError):
            while True:
                number = memory(b"%d" % sent)
                one.transfer_fd(number)
                sent += 1
        assert content(number) == b"%d" % sent
        os.kill(child, signal.SIGCONT)
        one.timeout = GENEROUS
        one.transfer_fd(number)
        one.close()
    assert sent > 5
    assert os.read(counted, 99) == b"%d" % (sent + 1)
    close_all([counted, report])


@pytest.mark.hazard("F24", "S6")
def test_who_sent_is_told_only_at_the_next_call_that_the_peer_went_without_reading(
    ends: Ends,
) -> None:
    one, other = ends
    reader, writer = os.pipe()
    one.transfer_fd(writer)
    other.close()
    assert is_at_eof(reader)
    number = memory(b"kept")
    with pytest.raises(PeerClosedError):
        one.transfer_fd(number)
    assert content(number) == b"kept"
    os.close(number)


@pytest.mark.hazard("R5b")
def test_what_was_sent_to_a_listener_that_never_accepted_is_closed_and_the_sender_told(
    path: str, kind: int
) -> None:
    reader, writer = os.pipe()
    with Listener(path, type=kind) as listener, Conduit.connect(path, type=kind) as client:
        client.transfer_fd(writer)
        listener.close()
        assert is_at_eof(reader)
        with pytest.raises(PeerClosedError):
            client.receive()
        number = memory(b"kept")
        with pytest.raises(PeerClosedError):
            client.transfer_fd(number)
        assert content(number) == b"kept"
        os.close(number)


@pytest.mark.hazard("R6")
def test_a_listener_that_is_sent_and_not_received_takes_connections_that_nobody_serves(
    ends: Ends,
) -> None:
    one, other = ends
    with reserved_port() as port:
        address = ("127.0.0.1", port)
        one.transfer_conn(socket.create_server(address))
        with socket.create_connection(address) as client:
            other.close()
            # Nobody can receive it any more, so it is closed, and so is what waited there.
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


@needs_root
@pytest.mark.hazard("L3", "R2")
def test_a_user_with_too_much_on_its_way_is_refused_in_all_its_processes_until_some_arrives(
    ends: Ends,
) -> None:
    one, other = ends
    # The kernel counts by user: with one of this process's own, no other run of this is counted.
    user, limit = 20_000 + os.getpid() % 40_000, 50

    def refused(link: Conduit, number: int) -> None:
        with pytest.raises(Error) as caught:
            link.transfer_fd(number, keep=True)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno == errno.ETOOMANYREFS
        assert "on their way" in str(caught.value)
        assert content(number) == b"kept"

    def be_another_process() -> None:
        near, far = Conduit.pair()
        with near, far:
            refused(near, memory(b"kept"))

    def send_too_much() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        number = memory(b"kept")
        messages = 0
        with contextlib.suppress(Error):
            while messages <= limit:
                one.transfer(*[number] * 10, keep=True)
                messages += 1
        assert messages == limit // 10 + 1
        refused(one, number)
        assert in_child(be_another_process) == 0
        one.transfer(data=b"bytes pass")
        other.receive().close()
        other.receive().close()
        one.transfer_fd(number)

    with beside(send_too_much, user=user):
        pass


@pytest.mark.hazard("R3")
def test_sockets_nested_in_sockets_on_their_way_arrive_or_are_refused() -> None:
    pairs = [Conduit.pair() for _ in range(30)]
    for (inner, _), (_, outer) in itertools.pairwise(pairs):
        try:
            outer.transfer_conn(inner)
        except Error as exc:
            # Linux before 6.10 nests them four deep.
            assert exc.errno == errno.ETOOMANYREFS
            assert not inner.closed
            break
    for near, far in pairs:
        near.close()
        far.close()


@pytest.mark.hazard("G9", "R4")
def test_an_end_that_is_sent_to_itself_by_its_peer_is_found_once_a_unix_socket_is_closed(
    kind: int,
) -> None:
    reader, writer = os.pipe()
    one, other = Conduit.pair(type=kind)
    one.transfer(other, writer)
    one.close()
    watcher = select.poll()
    watcher.register(reader, select.POLLHUP)
    # Linux looks for what nobody can reach whenever a Unix socket is closed.
    while not watcher.poll(1):
        for end in socket.socketpair():
            end.close()
    assert is_at_eof(reader)


@pytest.mark.hazard("R4b")
def test_a_peer_that_lives_only_in_its_own_queue_takes_messages_that_nobody_will_read(
    kind: int,
) -> None:
    one, other = Conduit.pair(type=kind)
    with one:
        one.transfer_conn(other)
        one.timeout = 0
        watcher = select.poll()
        watcher.register(one.fileno(), select.POLLHUP)
        while not watcher.poll(1):
            for end in socket.socketpair():
                end.close()
        with pytest.raises(PeerClosedError):
            one.transfer(data=b"to nobody")


# The end


@pytest.mark.hazard("D3")
@pytest.mark.parametrize("kind", DGRAM)
def test_a_datagram_peer_has_no_end_so_only_the_deadline_ends_a_receive(ends: Ends) -> None:
    one, other = ends
    other.close()
    one.timeout = 0.02
    with pytest.raises(TransferTimeoutError):
        one.receive()


@pytest.mark.hazard("D4")
def test_what_is_queued_is_received_though_this_side_was_shut_down(wired: Wired) -> None:
    link, peer = wired
    number = memory(b"queued")
    send(peer, [number])
    with borrowed(link.fileno()) as sock:
        sock.shutdown(socket.SHUT_RD)
    with link.receive_file() as arrived:
        assert arrived.read() == b"queued"
    with pytest.raises(PeerClosedError):
        link.receive()
    with pytest.raises(PeerClosedError):
        Conduit(peer.fileno()).transfer_fd(number)
    assert content(number) == b"queued"
    os.close(number)


@pytest.mark.hazard("F5")
def test_a_forked_child_keeps_the_peers_end_open_until_it_ends(ends: Ends) -> None:
    one, other = ends
    over, end = os.pipe()

    def live_on() -> None:
        os.close(end)
        os.read(over, 1)

    with beside(live_on):
        other.close()
        one.timeout = 0.02
        with pytest.raises(TransferTimeoutError):
            one.receive()
        os.close(end)
        one.timeout = GENEROUS
        with pytest.raises(PeerClosedError):
            one.receive()
    os.close(over)


# Identity


@needs_root
@pytest.mark.hazard("E16")
def test_a_peer_is_who_connected_though_it_is_another_now_or_nobody_any_more(
    path: str, kind: int
) -> None:
    with Listener(path, type=kind, allow=lambda peer: peer.uid == 0) as listener:

        def connect_and_drop() -> None:
            link = Conduit.connect(path, type=kind)
            os.setuid(NOBODY)
            link.transfer(data=b"%d" % os.geteuid())

        with beside(connect_and_drop) as child:
            link = listener.accept(GENEROUS)
            assert link.receive().data == b"%d" % NOBODY
            assert link.peer.uid == 0
        with link:
            with pytest.raises(PeerClosedError):
                link.receive()
            assert link.peer.pid == child
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)


@needs_admin
@pytest.mark.hazard("G6")
def test_a_peer_outside_this_namespace_of_processes_has_no_pid(path: str) -> None:
    with Listener(path) as listener:

        def serve_in_a_namespace() -> None:
            system("unshare", CLONE_NEWPID)

            def serve() -> None:
                assert os.getpid() == 1
                with listener.accept(GENEROUS) as link:
                    assert (link.peer.pid, link.peer.uid) == (0, os.getuid())
                    link.receive().close()

            assert in_child(serve) == 0

        with beside(serve_in_a_namespace), Conduit.connect(path) as client:
            client.transfer_fd(memory())


# The process


@pytest.mark.hazard("CY3")
def test_a_second_interpreter_is_refused_and_the_first_goes_on() -> None:
    program = '''
import conduit
try:
    from concurrent import interpreters
    run = lambda code: interpreters.create().exec(code)
except ImportError:
    try:
        import _interpreters as interpreters
        run = lambda code: interpreters.exec(interpreters.create(), code)
    except ImportError:
        import _xxsubinterpreters as interpreters
        run = lambda code: interpreters.run_string(interpreters.create(), code)
run("""
try:
    import conduit
except ImportError:
    print("refused", flush=True)
""")
one, other = conduit.Conduit.pair()
with one, other:
    one.transfer_fd(0, keep=True)
    with other.receive_file():
        print("goes on")
'''
    done = run_python(program)
    assert (done.returncode, done.stdout) == (0, "refused\ngoes on\n"), done.stderr


@pytest.mark.hazard("L6")
def test_a_conduits_number_that_foreign_code_closed_is_reported_and_no_other_is_closed(
    kind: int,
) -> None:
    one, other = Conduit.pair(type=kind)
    with other:
        number = one.fileno()
        os.close(number)
        for attempt in (one.receive, lambda: one.transfer(data=b"x")):
            with pytest.raises(Error) as caught:
                attempt()
            assert caught.value.errno == errno.EBADF
            assert "closed elsewhere" in str(caught.value)
        with pytest.raises(Error) as caught:
            one.close()
        assert caught.value.type is ErrType.FAILED_CLOSE
        innocent = memory(b"innocent")
        assert innocent == number
        one.close()
        assert content(innocent) == b"innocent"
        os.close(innocent)


@pytest.mark.hazard("Y1")
def test_a_cancelled_receive_leaves_the_descriptor_to_the_next(kind: int) -> None:
    async def main() -> None:
        one, other = AsyncConduit.pair(type=kind)
        async with one, other:
            for round_ in range(50):
                receiving = asyncio.create_task(other.receive_fd())
                for _ in range(round_ % 4):
                    await asyncio.sleep(0)
                await one.transfer_fd(memory(b"%d" % round_))
                for _ in range(round_ % 3):
                    await asyncio.sleep(0)
                receiving.cancel()
                try:
                    number = await receiving
                except asyncio.CancelledError:
                    number = await other.receive_fd()
                assert content(number) == b"%d" % round_
                os.close(number)

    asyncio.run(main())
