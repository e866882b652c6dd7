"""Those that wait to send on one conduit: their order, and what ends their waits; forks."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import threading
import time
from typing import Any

import anyio
import pytest
from drivers import Driver
from helpers import (
    GENEROUS,
    PORTABLE,
    Call,
    content,
    drain,
    fill,
    fork_among_threads,
    handling,
    in_child,
    interrupt_once_polling,
    is_open,
    memory,
    open_descriptors,
    wait_until_asleep,
)
from sides import identity

import conduit
from conduit import Conduit, Descriptor, Error, ErrType
from conduit._conduit import QUEUED, Send
from conduit.aio import AsyncConduit

Ends = tuple[Conduit, Conduit]

LARGE = bytes(1 << 20)


@pytest.fixture
def driver() -> Driver:
    """Turns are the handle's, whatever the driver."""
    return Driver()


def in_the_queue(link: Conduit, name: bytes) -> Call[None]:
    """Send from a thread, and return once it waits."""
    call = Call(link.transfer, memory(name), data=name)
    assert call.thread.native_id is not None
    wait_until_asleep(call.thread.native_id)
    return call


def test_senders_are_served_in_the_order_in_which_they_came(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    names = [b"%d" % place for place in range(6)]
    calls = [in_the_queue(one, name) for name in names]
    drain(other.fileno(), queued)
    for name in names:
        with other.receive(1) as message:
            assert message.data == name
            assert content(message.fds[0].fileno()) == name
    for call in calls:
        call.result()


def test_no_sender_starves_though_the_others_always_have_more() -> None:
    one, other = Conduit.pair()
    counts = dict.fromkeys(range(4), 0)
    over = threading.Event()
    # Without a GIL, the first would have sent much before the last had begun.
    start = threading.Barrier(4)

    def transfer(number: int) -> None:
        start.wait()
        while not over.is_set():
            one.transfer(data=bytes(300_000))
            counts[number] += 1

    def receive() -> None:
        with pytest.raises(conduit.PeerClosedError):
            while True:
                other.receive(1 << 20)

    with other:
        with one:
            receiving = Call(receive)
            calls = [Call(transfer, number) for number in range(4)]
            deadline = time.monotonic() + GENEROUS
            # One that the system lets run late makes up for it; one that is overtaken does not.
            while sum(sent := counts.values()) < 400 or max(sent) > 5 * min(sent) + 10:
                assert time.monotonic() < deadline, counts
                os.sched_yield()
            over.set()
            for call in calls:
                call.result()
        receiving.result()


@pytest.mark.parametrize("data", [b"bye", LARGE], ids=["short", "long"])
def test_a_signal_handler_that_sends_on_the_conduit_it_interrupted_is_told_at_once(
    ends: Ends, data: bytes
) -> None:
    one, other = ends
    queued = fill(one.fileno())
    told: list[Error] = []

    def handler(*_: Any) -> None:
        with pytest.raises(Error, match="this thread is sending") as caught:
            one.transfer(data=data)
        told.append(caught.value)
        drain(other.fileno(), queued)

    with handling(signal.SIGUSR1, handler):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        one.transfer(data=b"interrupted")
        interrupting.result()
    assert [(error.type, error.errno, error.sent) for error in told] == [
        (ErrType.FAILED_TRANSFER, errno.EDEADLK, 0)
    ]
    assert other.receive().data == b"interrupted"


def test_a_handler_is_told_too_that_interrupts_a_wait_for_the_turn(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    first = in_the_queue(one, b"1")
    me, native = threading.get_ident(), threading.get_native_id()
    told: list[int | None] = []

    def interrupt() -> None:
        wait_until_asleep(native)
        signal.pthread_kill(me, signal.SIGUSR1)

    def handler(*_: Any) -> None:
        with pytest.raises(Error) as caught:
            one.transfer(data=b"never")
        told.append(caught.value.errno)
        drain(other.fileno(), queued)

    with handling(signal.SIGUSR1, handler):
        interrupting = Call(interrupt)
        one.transfer(data=b"2")
        interrupting.result()
    first.result()
    assert told == [errno.EDEADLK]
    data = b""
    while len(data) < 2:
        with other.receive() as message:
            data += message.data
    assert data == b"12"


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another"])
def test_close_ends_a_wait_for_the_turn(ends: Ends, main: bool) -> None:
    one, _ = ends
    fill(one.fileno())
    first = Call(one.transfer, data=b"1")
    assert first.is_waiting()
    number = memory(b"kept")
    me = threading.get_native_id()

    def close() -> None:
        wait_until_asleep(me if main else second.thread.native_id or 0)
        one.close()

    if main:
        closing = Call(close)
        with pytest.raises(Error, match="closed meanwhile") as caught:
            one.transfer(number)
    else:
        second = Call(one.transfer, number)
        closing = Call(close)
        with pytest.raises(Error, match="closed meanwhile") as caught:
            second.result()
    closing.result()
    assert caught.value.type is ErrType.NO_FD
    assert content(number) == b"kept"
    os.close(number)
    with pytest.raises(Error):
        first.result()


def test_a_thread_and_a_task_stand_in_one_queue(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    first = in_the_queue(one, b"1")

    async def main() -> None:
        link = AsyncConduit(one)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transfer, link, b"2")
            await anyio.wait_all_tasks_blocked()
            one.timeout = None
            third = await anyio.to_thread.run_sync(in_the_queue, one, b"3")
            tasks.start_soon(transfer, link, b"4")
            await anyio.wait_all_tasks_blocked()
            drain(other.fileno(), queued)
            for name in (b"1", b"2", b"3", b"4"):
                got.append(await anyio.to_thread.run_sync(receive))
                assert got[-1] == name
        third.result()

    async def transfer(link: AsyncConduit, name: bytes) -> None:
        await link.transfer(data=name)

    def receive() -> bytes:
        with other.receive(1) as message:
            return message.data

    got: list[bytes] = []
    for backend in ("asyncio",):
        anyio.run(main, backend=backend)
    first.result()
    assert got == [b"1", b"2", b"3", b"4"]


def test_a_task_whose_loop_has_ended_is_passed_over(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    first = in_the_queue(one, b"1")

    def wake() -> None:
        raise RuntimeError("Event loop is closed")

    gone = Send(one, (), b"never", False)
    assert gone.step(wake) == QUEUED
    last = in_the_queue(one, b"2")
    drain(other.fileno(), queued)
    for name in (b"1", b"2"):
        with other.receive(1) as message:
            assert message.data == name
    first.result()
    last.result()
    gone.cancel()
    one.transfer(data=b"3")
    assert other.receive().data == b"3"


def test_a_handler_that_strikes_while_the_next_is_woken_keeps_nobody_asleep(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    woken: list[int] = []

    def wake() -> None:
        woken.append(1)
        if len(woken) == 1:
            raise KeyboardInterrupt

    mine = Send(one, (), b"1", False)
    assert mine.step() != 0
    following = Send(one, (), b"2", False)
    assert following.step(wake) == QUEUED
    drain(other.fileno(), queued)
    with pytest.raises(KeyboardInterrupt):
        mine.step()
    assert len(woken) == 2
    assert following.step(wake) == 0
    assert other.receive(1).data == b"1"
    assert other.receive(1).data == b"2"


def test_a_handler_that_strikes_while_close_wakes_the_waiting_leaves_nothing_open(
    ends: Ends,
) -> None:
    one, _ = ends
    fill(one.fileno())
    mine = Send(one, (), b"1", False)
    assert mine.step() != 0
    woken: list[int] = []

    def wake() -> None:
        woken.append(1)
        if len(woken) == 1:
            raise KeyboardInterrupt

    waiting = Send(one, (), b"2", False)
    assert waiting.step(wake) == QUEUED
    with pytest.raises(KeyboardInterrupt):
        one.close()
    assert len(woken) == 2
    assert one.closed
    for ended in (mine.step, waiting.step):
        with pytest.raises(Error) as caught:
            ended()
        assert caught.value.type is ErrType.NO_FD


# Forks


def test_a_child_closes_the_socket_that_only_a_call_of_the_parent_keeps_open(ends: Ends) -> None:
    one, _ = ends
    name = open_descriptors()[one.fileno()]
    receiving = Call(one.receive_fd)
    assert receiving.is_waiting()
    before = len(open_descriptors())
    one.close()

    def child() -> None:
        assert name not in open_descriptors().values()
        # The eventfd that the call is woken by is not the child's either.
        assert len(open_descriptors()) <= before - 2
        one.close()
        assert one.closed

    assert in_child(child) == 0
    with pytest.raises(Error):
        receiving.result()


def test_a_child_closes_the_socket_that_is_being_closed_as_it_is_forked(ends: Ends) -> None:
    one, _ = ends
    fd = one.fileno()
    fill(fd)
    statuses: list[int] = []

    def look() -> None:
        assert not is_open(fd)
        assert one.closed

    sending, waiting = Send(one, (), b"1", False), Send(one, (), b"2", False)
    assert sending.step() != 0
    assert waiting.step(lambda: statuses.append(in_child(look))) == QUEUED
    one.close()
    assert statuses == [0]
    sending.cancel()
    waiting.cancel()


def test_a_child_closes_what_a_waiting_message_holds(ends: Ends) -> None:
    one, _ = ends
    fill(one.fileno())
    number = memory(b"held")
    os.ftruncate(number, 5)
    file = identity(number)
    first, second = Call(one.transfer, number), Call(one.transfer, number)
    for call in (first, second):
        assert call.thread.native_id is not None
        wait_until_asleep(call.thread.native_id)

    def count() -> int:
        return sum(identity(fd) == file for fd in open_descriptors() if is_open(fd))

    def child() -> None:
        assert count() == 1, "the caller's own"

    assert count() == 3
    assert in_child(child) == 0
    one.close()
    for call in (first, second):
        with pytest.raises(Error):
            call.result()
    assert count() == 1
    os.close(number)


def test_a_call_that_a_handler_interrupted_to_fork_ends_in_the_child(ends: Ends) -> None:
    one, other = ends
    pids: list[int] = []

    def fork(*_: Any) -> None:
        pids.append(fork_among_threads())
        if pids[0]:
            other.transfer(data=b"for the parent")

    with handling(signal.SIGUSR1, fork):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        try:
            data = one.receive().data
        except BaseException as exc:
            if pids and not pids[0]:
                os._exit("forked by a signal handler" not in str(exc))
            raise
        finally:
            if pids and not pids[0]:
                os._exit(2)
        interrupting.result()
    assert data == b"for the parent"
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


# What else ends waits, and does not


def test_a_frozen_clock_moves_no_deadline(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = ends
    frozen = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: frozen)
    one.timeout = 0.05
    began = time.perf_counter()
    with pytest.raises(conduit.TransferTimeoutError):
        one.receive()
    assert 0.05 <= time.perf_counter() - began < GENEROUS


def test_a_datagram_end_that_is_shut_for_reading_is_at_its_end() -> None:
    one, other = Conduit.pair(type=socket.SOCK_DGRAM)
    with one, other:
        with socket.socket(fileno=os.dup(one.fileno())) as sock:
            sock.shutdown(socket.SHUT_RD)
        for timeout in (None, 0):
            one.timeout = timeout
            with pytest.raises(conduit.PeerClosedError):
                one.receive()


@pytest.mark.skipif(PORTABLE, reason="without POLLRDHUP, an empty packet looks like the end")
@pytest.mark.parametrize("packets", [[b""], [b"", b""], [b"x", b""], [b"", b"x", b""]])
def test_an_empty_packet_before_the_end_is_a_message(packets: list[bytes]) -> None:
    one, other = Conduit.pair(type=socket.SOCK_SEQPACKET)
    with other:
        with one:
            for packet in packets:
                one.transfer(data=packet)
        assert [other.receive().data for _ in packets] == packets
        for _ in range(2):
            with pytest.raises(conduit.PeerClosedError):
                other.receive()
        with socket.socket(fileno=os.dup(other.fileno())) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, 29) == 0, "SO_TIMESTAMP is as it was"


@pytest.mark.parametrize("items", [0, 2])
def test_an_empty_message_is_sent_where_messages_are_kept_apart(
    kind: int, driver: Driver, items: int
) -> None:
    one, other = driver.Conduit.pair(type=kind)
    numbers = [memory() for _ in range(items)]
    with one, other:
        if kind == socket.SOCK_STREAM:
            with pytest.raises(ValueError, match="no empty message"):
                one.transfer(*numbers, data=b"")
            assert all(map(is_open, numbers))
            for number in numbers:
                os.close(number)
            return
        one.transfer(*numbers, data=b"")
        assert not any(map(is_open, numbers))
        with other.receive() as message:
            assert (message.data, len(message.fds)) == (b"", items)


def test_a_message_that_is_dropped_puts_back_what_it_took(ends: Ends) -> None:
    one, _ = ends
    descriptor = Descriptor(memory(b"kept"))
    send = Send(one, (descriptor,), None, False)
    assert descriptor.closed
    del send
    gc.collect()
    assert content(descriptor.fileno()) == b"kept"
    descriptor.close()
