"""What only an event loop has: cancellation, tasks that share a conduit, loops' own sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import inspect
import logging
import mmap
import os
import select
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import pytest
import trio
from anyio.abc import SocketAttribute
from anyio.lowlevel import checkpoint
from drivers import LoopDriver
from helpers import (
    GENEROUS,
    content,
    drain,
    fill,
    handling,
    is_open,
    memory,
    open_descriptors,
    room_for,
    run_python,
    same_file,
    send,
)
from sides import close_all, is_at_eof

from conduit import (
    Channel,
    Conduit,
    DescriptorTypeError,
    Error,
    ErrType,
    Listener,
    Peer,
    PeerClosedError,
    Reader,
    aio,
)
from conduit._conduit import Send
from conduit.aio import AsyncConduit, AsyncListener, direction
from conduit.aio.direction import STRIDE
from conduit.aio.waiter import Waiter, new_waiter
from conduit.objects import may_wait
from conduit.takeover import Takeover

pytestmark = pytest.mark.anyio

Ends = tuple[AsyncConduit, AsyncConduit]

LARGE = bytes(range(256)) * 16384
"""4 MiB, many times what a socket's buffer takes."""

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio", "uvloop"], indirect=True)
only_trio = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)

all_blocked = anyio.wait_all_tasks_blocked
"""Waits until every other task waits for something."""


@pytest.fixture
async def ends(kind: int) -> AsyncIterator[Ends]:
    """Two connected conduits."""
    one, other = AsyncConduit.pair(type=kind)
    async with one, other:
        yield one, other


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


async def assert_empty(end: AsyncConduit) -> None:
    """See that nothing is there to be received."""
    with anyio.move_on_after(0.01), pytest.raises(PeerClosedError):
        await end.receive()
        raise AssertionError("something is there")


# Cancellation


async def take(end: AsyncConduit, method: str) -> bytes:
    """Receive one file in any of the ways there are; what is in it."""
    received = await getattr(end, method)()
    if method == "receive_fd":
        try:
            return content(received)
        finally:
            os.close(received)
    with received:
        number = received.fds[0] if method == "receive" else received
        return content(number.fileno())


@pytest.mark.parametrize("method", ["receive_fd", "receive_file", "receive"])
@pytest.mark.parametrize("ticks", range(4))
async def test_a_receive_cancelled_as_its_message_arrives_has_it_or_leaves_it(
    ends: Ends, method: str, ticks: int
) -> None:
    for round_ in range(50):
        got: list[bytes] = []

        async def receive(got: list[bytes] = got) -> None:
            got.append(await take(ends[1], method))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            for _ in range(3):
                await checkpoint()
            await ends[0].transfer_fd(memory(b"%d" % round_))
            for _ in range(ticks):
                await checkpoint()
            tasks.cancel_scope.cancel()
        if not got:
            got.append(await take(ends[1], method))
        assert got == [b"%d" % round_]


@only_asyncio
@pytest.mark.parametrize("ticks", range(4))
async def test_a_task_cancelled_as_its_message_arrives_has_it_or_leaves_it(
    ends: Ends, ticks: int
) -> None:
    for round_ in range(50):
        task = asyncio.create_task(take(ends[1], "receive_fd"))
        for _ in range(3):
            await asyncio.sleep(0)
        await ends[0].transfer_fd(memory(b"%d" % round_))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task == b"%d" % round_
            continue
        assert await take(ends[1], "receive_fd") == b"%d" % round_


async def wait_for(receiving: Awaitable[bytes], seconds: float) -> bytes:
    return await asyncio.wait_for(receiving, seconds)


async def timeout(receiving: Awaitable[bytes], seconds: float) -> bytes:
    async with asyncio.timeout(seconds):
        return await receiving


@only_asyncio
@pytest.mark.parametrize("limit", [wait_for, timeout])
async def test_a_message_that_arrives_at_the_deadline_is_returned_or_stays(
    ends: Ends, limit: Callable[[Awaitable[bytes], float], Awaitable[bytes]]
) -> None:
    loop = asyncio.get_running_loop()
    arrived = 0
    with Conduit(ends[0].fileno()) as sender:
        for round_ in range(100):
            number = memory(b"%d" % round_)
            loop.call_later(0.001, sender.transfer_fd, number)
            try:
                got = await limit(take(ends[1], "receive_fd"), 0.001)
                arrived += 1
            except TimeoutError:
                got = await take(ends[1], "receive_fd")
            assert got == b"%d" % round_


async def test_a_receive_whose_deadline_passes_leaves_the_next_message_alone(ends: Ends) -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):
            await ends[1].receive_fd()
    await ends[0].transfer_fd(memory(b"next"))
    assert await take(ends[1], "receive_fd") == b"next"


async def test_a_receive_that_is_cancelled_before_it_begins_leaves_its_message(ends: Ends) -> None:
    await ends[0].transfer_fd(memory(b"there"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await checkpoint()
        await ends[1].receive_fd()
    assert await take(ends[1], "receive_fd") == b"there"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM])
async def test_a_send_cancelled_in_the_middle_of_a_payload_breaks_the_stream(ends: Ends) -> None:
    one, other = ends
    number = memory(b"kept")
    async with anyio.create_task_group() as tasks:

        async def transfer() -> None:
            await one.transfer(number, data=LARGE)

        tasks.start_soon(transfer)
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert content(number) == b"kept"
    for items, data in (((number,), None), ((), b"more")):
        with pytest.raises(Error, match="only partly sent") as caught:
            await one.transfer(*items, data=data)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.sent == 0
    with pytest.raises(Error, match="only partly sent"):
        await one.transfer_fd(number)
    assert is_open(number)
    os.close(number)
    with await other.receive() as message:
        assert len(message.fds) == 1
    await other.transfer(data=b"the other way is whole")
    assert (await one.receive()).data == b"the other way is whole"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM])
async def test_who_waits_behind_a_payload_that_is_cancelled_is_told_and_sends_nothing(
    ends: Ends,
) -> None:
    one, _ = ends
    number = memory()
    told: list[Error] = []

    async def wait_behind() -> None:
        with pytest.raises(Error, match="only partly sent") as caught:
            await one.transfer(number)
        told.append(caught.value)

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as cut_off:

                async def transfer() -> None:
                    await one.transfer(data=LARGE)

                cut_off.start_soon(transfer)
                await all_blocked()
                tasks.start_soon(wait_behind)
                await all_blocked()
                scope.cancel()
    assert [error.sent for error in told] == [0]
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("queue", [1, 3])
async def test_a_send_cancelled_while_it_only_waited_breaks_and_moves_nothing(
    ends: Ends, queue: int
) -> None:
    one, other = ends
    queued = fill(one.fileno())
    numbers = [memory(b"%d" % place) for place in range(queue)]
    before = open_descriptors()
    async with anyio.create_task_group() as tasks:
        for number in numbers:
            tasks.start_soon(one.transfer_fd, number)
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert open_descriptors() == before, "what they held meanwhile is closed"
    drain(other.fileno(), queued)
    for number in numbers:
        await one.transfer_fd(number)
        assert await take(other, "receive_fd") == b"%d" % numbers.index(number)


async def test_a_send_cancelled_while_others_wait_lets_them_go_on(ends: Ends) -> None:
    one, other = ends
    queued = fill(one.fileno())
    dropped = memory()
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as doomed:
                doomed.start_soon(one.transfer_fd, dropped)
                await all_blocked()
                tasks.start_soon(one.transfer_fd, memory(b"behind"))
                await all_blocked()
                scope.cancel()
        drain(other.fileno(), queued)
        assert await take(other, "receive_fd") == b"behind"
    assert is_open(dropped)
    os.close(dropped)


# Tasks that share a conduit


async def test_each_message_goes_to_exactly_one_of_many_tasks(ends: Ends) -> None:
    senders, receivers, each = 4, 4, 60
    got: list[bytes] = []

    async def transmit(sender: int) -> None:
        for place in range(each):
            await ends[0].transfer_fd(memory(b"%d:%d" % (sender, place)))

    async def collect() -> None:
        for _ in range(senders * each // receivers):
            # One at a time, so that each waits anew.
            got.append(await take(ends[1], "receive_fd"))  # noqa: PERF401

    async with anyio.create_task_group() as tasks:
        for _ in range(receivers):
            tasks.start_soon(collect)
        await all_blocked()
        for sender in range(senders):
            tasks.start_soon(transmit, sender)
    assert sorted(got) == sorted(b"%d:%d" % (s, i) for s in range(senders) for i in range(each))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM])
async def test_payloads_of_many_tasks_never_interleave(ends: Ends) -> None:
    one, other = ends
    letters, size = b"abcdef", 300_000

    async def transfer(letter: bytes) -> None:
        await one.transfer(memory(letter), data=letter * size)

    seen = b""
    async with anyio.create_task_group() as tasks:
        for letter in letters:
            tasks.start_soon(transfer, b"%c" % letter)
        for _ in letters:
            with await other.receive(max_data=1) as message:
                assert content(message.fds[0].fileno()) == message.data
            seen += message.data
            left = size - 1
            while left:
                rest = await other.receive(max_data=left)
                assert (rest.data, rest.fds) == (message.data * len(rest.data), ())
                left -= len(rest.data)
    assert sorted(seen) == sorted(letters)


async def test_one_task_sends_while_another_receives_on_the_same_end(ends: Ends) -> None:
    one, other = ends

    async def echo() -> None:
        for _ in range(100):
            await other.transfer_fd(await other.receive_fd())

    async def transmit() -> None:
        for place in range(100):
            await one.transfer_fd(memory(b"%d" % place))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo)
        tasks.start_soon(transmit)
        for place in range(100):
            assert await take(one, "receive_fd") == b"%d" % place


async def test_who_waits_is_served_in_order(ends: Ends) -> None:
    served: list[tuple[int, bytes]] = []

    async def receive(place: int) -> None:
        served.append((place, await take(ends[1], "receive_fd")))

    async with anyio.create_task_group() as tasks:
        for place in range(3):
            tasks.start_soon(receive, place)
            await all_blocked()
        for place in range(3):
            await ends[0].transfer_fd(memory(b"%d" % place))
    assert served == [(place, b"%d" % place) for place in range(3)]


# Closing


async def assert_woken(calls: Sequence[Callable[[], Awaitable[object]]], close: Any) -> None:
    """See that each call waits until it is closed, and is then told."""
    told: list[Error] = []

    async def run(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(Error) as caught:
            await call()
        told.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(run, call)
        await all_blocked()
        assert not told
        await close()
        assert len(told) == len(calls), "they have ended once it has closed"
    assert [error.type for error in told] == [ErrType.NO_FD] * len(calls)


@pytest.mark.parametrize("count", [1, 3])
async def test_aclose_wakes_all_who_receive(ends: Ends, count: int) -> None:
    number = ends[0].fileno()
    await assert_woken([ends[0].receive_fd] * count, ends[0].aclose)
    assert not is_open(number)
    with pytest.raises(PeerClosedError):
        await ends[1].receive()


@pytest.mark.parametrize("count", [1, 3])
async def test_aclose_wakes_all_who_send_and_what_they_sent_stays_theirs(
    ends: Ends, count: int
) -> None:
    fill(ends[0].fileno())
    numbers = [memory() for _ in range(count)]
    calls = [partial(ends[0].transfer_fd, number) for number in numbers]
    await assert_woken(calls, ends[0].aclose)
    assert all(map(is_open, numbers))
    close_all(numbers)


async def test_aclose_wakes_both_directions_at_once(ends: Ends) -> None:
    fill(ends[0].fileno())
    number = memory()
    await assert_woken([lambda: ends[0].transfer_fd(number), ends[0].receive], ends[0].aclose)
    os.close(number)


async def test_aclose_wakes_all_who_accept(path: str, kind: int) -> None:
    listener = AsyncListener(path, type=kind)
    await assert_woken([listener.accept] * 3, listener.aclose)
    assert listener.closed
    with pytest.raises(Error, match="ENOENT"):
        await AsyncConduit.connect(path)
    with pytest.raises(Error, match="closed"):
        await listener.accept()


async def test_aclose_twice_and_of_a_cancelled_task_closes_once(ends: Ends) -> None:
    number = ends[0].fileno()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await ends[0].aclose()
    assert ends[0].closed
    taken = memory()
    assert taken == number, "the lowest free number is given out first"
    await ends[0].aclose()
    assert is_open(taken)
    os.close(taken)
    with pytest.raises(Error, match="closed") as caught:
        await ends[0].receive()
    assert caught.value.type is ErrType.NO_FD


async def test_a_borrowed_number_stays_open_and_works_on_once_its_waiter_is_woken(
    kind: int,
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with mine, peer:
        link = AsyncConduit(mine.fileno(), "borrowed")
        assert link.name == "borrowed"
        await assert_woken([link.receive_fd], link.aclose)
        async with AsyncConduit.from_file(mine) as following:
            peer.send(b"for the next")
            assert (await following.receive()).data == b"for the next"
        assert is_open(mine.fileno())


async def test_a_number_is_not_anothers_before_those_who_wait_on_it_have_ended() -> None:
    """A loop tells only by their number apart who is to be woken by which socket."""
    first, other = AsyncConduit.pair()
    go = anyio.Event()
    made: list[AsyncConduit] = []
    got: list[bytes] = []

    async def wait_in_vain() -> None:
        with pytest.raises(Error):
            await first.receive_fd()

    async def make_another() -> None:
        await go.wait()
        made.extend(AsyncConduit.pair())
        got.append(await take(made[0], "receive_fd"))

    with anyio.fail_after(GENEROUS):
        async with other, anyio.create_task_group() as tasks:
            tasks.start_soon(wait_in_vain)
            tasks.start_soon(make_another)
            await all_blocked()
            # The one who makes another is to run before the one who waited.
            go.set()
            await first.aclose()
            await all_blocked()
            await made[1].transfer_fd(memory(b"woken"))
    assert got == [b"woken"]
    for link in made:
        await link.aclose()


async def test_a_peers_end_wakes_both_directions(ends: Ends) -> None:
    one, other = ends
    fill(one.fileno())
    number = memory()

    async def transfer() -> None:
        with pytest.raises(PeerClosedError):
            await one.transfer_fd(number)

    async def receive() -> None:
        with pytest.raises(PeerClosedError):
            await one.receive()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transfer)
        tasks.start_soon(receive)
        await all_blocked()
        await other.aclose()
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("what", ["receive", "accept"])
async def test_close_in_a_signal_handler_ends_those_who_wait(path: str, what: str) -> None:
    waits = AsyncConduit.bind(path) if what == "receive" else AsyncListener(path)
    with handling(signal.SIGALRM, lambda *_: waits.close()):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with anyio.fail_after(GENEROUS), pytest.raises(Error, match="closed"):
            await getattr(waits, what)()
    await waits.aclose()


# Several loops


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


@pytest.fixture(params=["asyncio", "uvloop"])
def ended_loop(
    request: pytest.FixtureRequest, start_loop: Callable[[str], LoopDriver]
) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in which tasks can begin to wait, and that ends without them."""
    # The first loop of a kind opens what all later ones share.
    start_loop(request.param)
    loop = new_loop(request.param)
    # What it says of them as they go is not of interest.
    loop.set_exception_handler(lambda *_: None)
    with contextlib.closing(loop):
        yield loop


def begin(loop: asyncio.AbstractEventLoop, call: Awaitable[object]) -> asyncio.Task[object]:
    """Let a call begin to wait in a loop."""

    async def run() -> object:
        return await call

    task = loop.create_task(run())
    loop.run_until_complete(asyncio.sleep(0.01))
    assert not task.done()
    return task


def forget(task: asyncio.Task[object]) -> None:
    """Say nothing as a task goes away that never ended."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("way", ["receive_fd", "transfer_fd"])
def test_aclose_closes_though_tasks_wait_whose_loop_has_ended(
    ended_loop: asyncio.AbstractEventLoop, anyio_backend: Any, way: str, count: int
) -> None:
    one, other = AsyncConduit.pair()
    number, item = one.fileno(), memory()
    if way == "transfer_fd":
        fill(number)
    args = [item] if way == "transfer_fd" else []
    before = open_descriptors()
    tasks = [begin(ended_loop, getattr(one, way)(*args)) for _ in range(count)]
    ended_loop.close()

    async def close() -> None:
        with anyio.fail_after(GENEROUS):
            await one.aclose()

    anyio.run(close, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert not is_open(number)
    assert is_open(item)
    assert open_descriptors().keys() <= before.keys() - {number}
    for task in tasks:
        forget(task)
    os.close(item)
    other.close()


@pytest.mark.parametrize("kept", [True, False])
def test_who_waits_in_a_loop_that_ended_keeps_nobody_waiting(
    ended_loop: asyncio.AbstractEventLoop, anyio_backend: Any, kept: bool
) -> None:
    one, other = AsyncConduit.pair()
    items = [memory(b"%d" % place) for place in range(4)]
    tasks = [begin(ended_loop, one.receive_fd()) for _ in range(2)]
    fill(one.fileno())
    tasks += [begin(ended_loop, one.transfer_fd(item)) for item in items[:2]]
    ended_loop.close()
    for task in tasks:
        forget(task)
    if not kept:
        del tasks
        gc.collect()

    async def go_on() -> None:
        with anyio.fail_after(GENEROUS):
            async with one, other, anyio.create_task_group() as group:
                group.start_soon(one.transfer_fd, items[2])
                group.start_soon(other.transfer_fd, items[3])
                while not (received := await other.receive()).fds:
                    pass
                with received:
                    assert content(received.fds[0].fileno()) == b"2"
                assert await take(one, "receive_fd") == b"3"

    anyio.run(go_on, backend=anyio_backend[0], backend_options=anyio_backend[1])
    assert all(map(is_open, items[:2]))
    close_all(items[:2])


def test_aclose_waits_for_no_loop_that_stands_still(
    ended_loop: asyncio.AbstractEventLoop, anyio_backend: Any
) -> None:
    one, other = AsyncConduit.pair()
    task = begin(ended_loop, one.receive())

    async def close() -> None:
        with anyio.fail_after(GENEROUS):
            await one.aclose()

    anyio.run(close, backend=anyio_backend[0], backend_options=anyio_backend[1])
    with pytest.raises(Error, match="closed"):
        ended_loop.run_until_complete(asyncio.wait_for(task, GENEROUS))
    other.close()


async def test_aclose_wakes_who_waits_in_the_loop_of_another_thread(ends: Ends) -> None:
    told: list[Error] = []
    waiting = threading.Event()

    def wait_elsewhere() -> None:
        async def wait() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(receive)
                await all_blocked()
                waiting.set()

        async def receive() -> None:
            with pytest.raises(Error) as caught:
                await ends[0].receive()
            told.append(caught.value)

        anyio.run(wait)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, wait_elsewhere)
        with anyio.fail_after(GENEROUS):
            await anyio.to_thread.run_sync(waiting.wait)
            await ends[0].aclose()
    assert [error.type for error in told] == [ErrType.NO_FD] * 2


async def test_loops_of_two_threads_receive_in_turn(ends: Ends) -> None:
    got: list[bytes] = []

    def receive_elsewhere() -> None:
        async def receive() -> None:
            with anyio.fail_after(GENEROUS):
                got.extend([(await ends[1].receive(1)).data for _ in range(20)])

        anyio.run(receive)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(anyio.to_thread.run_sync, receive_elsewhere)
        for place in range(40):
            await ends[0].transfer(data=b"%c" % place)
            await checkpoint()
    assert sorted(got) == [b"%c" % place for place in range(40)]


async def test_a_waiter_whose_loop_ends_is_passed_over(
    ends: Ends, ended_loop: asyncio.AbstractEventLoop
) -> None:
    got: list[bytes] = []

    async def receive() -> None:
        got.append((await ends[1].receive(1)).data)

    with anyio.fail_after(GENEROUS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await all_blocked()
            # A loop runs in no thread that has one already.
            task = await anyio.to_thread.run_sync(begin, ended_loop, ends[1].receive())
            ended_loop.close()
            forget(task)
            tasks.start_soon(receive)
            await all_blocked()
            for data in (b"1", b"2"):
                await ends[0].transfer(data=data)
    assert got == [b"1", b"2"]


async def test_who_is_woken_before_it_waits_does_not_wait() -> None:
    waiter = new_waiter()
    waiter.wake(waiter.loop)
    with anyio.fail_after(GENEROUS):
        await waiter.wait()
    with anyio.move_on_after(0.01) as scope:
        await waiter.wait()
    assert scope.cancelled_caught, "it was told once"


# What else a loop watches


@only_asyncio
async def test_what_the_program_has_watched_is_left_alone(kind: int) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    writable = asyncio.Event()
    with mine, peer:
        async with AsyncConduit(mine.fileno()) as link:
            loop.add_reader(mine.fileno(), readable.set)
            fill(mine.fileno())
            loop.add_writer(mine.fileno(), writable.set)
            number = memory()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(link.transfer_fd, number)
                tasks.start_soon(link.receive)
                await all_blocked()
                peer.setblocking(False)
                peer.send(b"x")
                with contextlib.suppress(BlockingIOError):
                    while True:
                        _, numbers, _, _ = socket.recv_fds(peer, 1, 1)
                        close_all(numbers)
                        await checkpoint()
            with contextlib.suppress(BlockingIOError):
                while True:
                    _, numbers, _, _ = socket.recv_fds(peer, 1, 1)
                    close_all(numbers)
            for event, remove in (readable, loop.remove_reader), (writable, loop.remove_writer):
                event.clear()
                peer.send(b"more")
                with anyio.fail_after(GENEROUS):
                    await event.wait()
                remove(mine.fileno())


@only_asyncio
async def test_a_loop_watches_no_more_once_a_wait_was_cancelled(ends: Ends) -> None:
    fill(ends[0].fileno())
    number = memory()
    loop = asyncio.get_running_loop()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends[0].receive)
        tasks.start_soon(ends[0].transfer_fd, number)
        await all_blocked()
        tasks.cancel_scope.cancel()
    assert not loop.remove_reader(ends[0].fileno())
    assert not loop.remove_writer(ends[0].fileno())
    os.close(number)


async def test_two_conduits_over_one_number_both_wait(kind: int) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    got: list[bytes] = []
    with mine, peer:
        link = Conduit(mine.fileno())
        conduits = [AsyncConduit(mine.fileno()), AsyncConduit.from_file(mine), AsyncConduit(link)]

        async def receive(conduit: AsyncConduit) -> None:
            got.append((await conduit.receive(1)).data)

        with anyio.fail_after(GENEROUS):
            async with anyio.create_task_group() as tasks:
                for conduit in conduits:
                    tasks.start_soon(receive, conduit)
                await all_blocked()
                for _ in conduits:
                    peer.send(b"x")
        assert got == [b"x"] * 3
        for conduit in conduits:
            await conduit.aclose()


async def test_a_borrowed_number_that_its_owner_closes_is_closed_for_the_peer(kind: int) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer:
        link = AsyncConduit(mine.fileno())
        with anyio.move_on_after(0.01):
            await link.receive()
        mine.close()
        with pytest.raises((BrokenPipeError, ConnectionRefusedError)):
            peer.send(b"x")
        assert not link.closed


async def test_waiting_for_a_borrowed_number_needs_room_for_a_descriptor(ends: Ends) -> None:
    link = AsyncConduit(ends[0].fileno())
    with room_for(0), pytest.raises(Error, match="RLIMIT_NOFILE") as caught:
        await link.receive()
    assert (caught.value.type, caught.value.errno) == (ErrType.BAD_CLONE, errno.EMFILE)
    await ends[1].transfer(data=b"there")
    with room_for(0):
        assert (await link.receive()).data == b"there"


@only_trio
async def test_a_number_that_another_task_of_trio_waits_for_is_an_error_of_ours(
    ends: Ends,
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(trio.lowlevel.wait_readable, ends[0].fileno())
        await all_blocked()
        with pytest.raises(Error, match="does not watch its number") as caught:
            await ends[0].receive()
        assert caught.value.type is ErrType.FAILED_TRANSFER
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_loop_that_cannot_watch_is_an_error_of_ours(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
    with pytest.raises(Error, match="does not watch its number") as caught:
        await ends[0].receive()
    monkeypatch.undo()
    assert (caught.value.type, caught.value.errno) == (ErrType.FAILED_TRANSFER, errno.ENOSPC)
    await ends[1].transfer(data=b"later")
    assert (await ends[0].receive()).data == b"later"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_a_handler_raises_as_a_call_begins_to_wait_stays_itself(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise OSError("from the handler")

    def strike(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", strike)
    with (
        handling(signal.SIGUSR1, interrupt),
        pytest.raises(OSError, match="from the handler") as caught,
    ):
        await ends[0].receive()
    monkeypatch.undo()
    assert not isinstance(caught.value, Error)


def strike_as_a_call_ends(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next call that leaves its queue be struck by a handler, at one of two places."""
    leave = direction.Direction.leave

    def struck(self: direction.Direction, waiter: Waiter) -> None:
        monkeypatch.setattr(direction.Direction, "leave", leave)
        if where == "before the call of what was taken out":
            self.waiting.remove(waiter)
            waiter.holds.pop()
        raise OSError("from the handler")

    monkeypatch.setattr(direction.Direction, "leave", struck)


@pytest.mark.parametrize("where", ["at the beginning", "before the call of what was taken out"])
async def test_a_send_that_a_handler_strikes_as_it_ends_gives_up_its_turn(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    # Until the end: the traceback has the message that was struck.
    tracebacks: list[object] = []

    async def transfer(one: AsyncConduit) -> None:
        with pytest.raises(OSError, match="from the handler") as caught:
            await one.transfer(data=b"never leaves")
        tracebacks.append(caught)

    one, other = AsyncConduit.pair()
    async with one, other:
        queued = fill(one.fileno())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(transfer, one)
            await all_blocked()
            strike_as_a_call_ends(where, monkeypatch)
            tasks.cancel_scope.cancel()
        drain(other.fileno(), queued)
        assert len(tracebacks) == 1
        with anyio.fail_after(GENEROUS):
            await one.transfer(data=b"next")
            assert (await other.receive()).data == b"next"


async def test_a_receive_that_a_handler_strikes_as_it_ends_lets_the_next_one_receive(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[bytes] = []

    async def struck(*, task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
        with anyio.CancelScope() as scope:
            task_status.started(scope)
            with pytest.raises(OSError, match="from the handler"):
                await ends[1].receive()

    async def receive() -> None:
        got.append((await ends[1].receive()).data)

    with anyio.fail_after(GENEROUS):
        async with anyio.create_task_group() as tasks:
            scope = await tasks.start(struck)
            await all_blocked()
            tasks.start_soon(receive)
            await all_blocked()
            strike_as_a_call_ends("at the beginning", monkeypatch)
            scope.cancel()
            await all_blocked()
            await ends[0].transfer(data=b"for the next one")
    assert got == [b"for the next one"]


# Other tasks


async def assert_fair(hog: Callable[[], Awaitable[object]]) -> None:
    """See that a task which repeats a call that need not wait leaves time to others, and ends."""
    with anyio.fail_after(GENEROUS):
        async with anyio.create_task_group() as tasks:

            async def repeat() -> None:
                while True:
                    await hog()

            tasks.start_soon(repeat)
            for _ in range(100):
                await checkpoint()
            tasks.cancel_scope.cancel()


async def test_a_task_that_always_finds_a_message_starves_no_other_and_sees_its_cancellation(
    kind: int,
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with mine, peer:
        async with AsyncConduit.from_conn(mine) as link:
            number = memory()

            async def receive() -> None:
                send(peer, [number])
                os.close(await link.receive_fd())

            await assert_fair(receive)
            # It may have been cancelled with its message still there.
            with anyio.move_on_after(0.01):
                os.close(await link.receive_fd())
            os.close(number)


@pytest.mark.parametrize("method", ["transfer_fd", "transfer", "transfer_conn"])
async def test_a_task_that_can_always_send_starves_no_other_and_sees_its_cancellation(
    kind: int, method: str
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with mine, peer:
        async with AsyncConduit.from_conn(mine) as link:
            item: Any = peer if method == "transfer_conn" else peer.fileno()

            async def transfer() -> None:
                await getattr(link, method)(item, keep=True)
                data, numbers, _, _ = socket.recv_fds(peer, 1, 1)
                close_all(numbers)
                assert data == b"\0"

            await assert_fair(transfer)


async def test_a_descriptor_is_an_int_at_every_call(ends: Ends) -> None:
    with tempfile.TemporaryFile() as file:
        for wrong in (file, True, 1.5):
            for _ in range(STRIDE + 1):
                with pytest.raises(DescriptorTypeError):
                    await ends[0].transfer_fd(wrong)  # type: ignore[arg-type]
            await ends[0].transfer_fd(file.fileno(), keep=True)
            os.close(await ends[1].receive_fd())
        assert not file.closed


async def test_a_buffer_is_let_go_of_once_it_was_sent_or_was_not(ends: Ends) -> None:
    data = bytearray(b"to be sent")
    await ends[0].transfer(data=data)
    data.clear()
    await ends[1].aclose()
    data += b"not to be sent"
    with pytest.raises(PeerClosedError) as caught:
        await ends[0].transfer(data=data)
    data.clear()
    assert caught.value.__traceback__ is not None


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM])
async def test_nothing_is_sent_after_the_half_of_a_message_that_was_cancelled(ends: Ends) -> None:
    errors: list[Error] = []

    async def make_room_and_send() -> None:
        await ends[1].receive(len(LARGE))
        with pytest.raises(Error, match="only partly sent") as caught:
            await ends[0].transfer(data=b"another")
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make_room_and_send)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ends[0].transfer(data=LARGE)
        assert scope.cancelled_caught
    assert len(errors) == 1


async def test_memory_that_is_sent_is_free_once_its_own_file_is_closed(ends: Ends) -> None:
    class Mapped:
        def __init__(self) -> None:
            self.number = memory(b"mapped")
            self.memory = mmap.mmap(self.number, 0)

        def fileno(self) -> int:
            return self.number

        def close(self) -> None:
            self.memory.close()
            os.close(self.number)

    mapped = Mapped()
    await ends[0].transfer(mapped, data=mapped.memory)
    assert not is_open(mapped.number)
    with await ends[1].receive() as message:
        assert message.data == b"mapped"


def test_closing_where_no_loop_runs_closes() -> None:
    async def make() -> Ends:
        return AsyncConduit.pair()

    for end in anyio.run(make):
        number = end.fileno()
        end.close()
        assert end.closed
        assert not is_open(number)


def test_a_send_of_a_conduit_closed_meanwhile_says_how_much_had_left() -> None:
    one, other = Conduit.pair()
    with other, one:
        one.timeout = 0
        send = Send(one, (), LARGE, False)
        assert send.step() == select.POLLOUT
        assert 0 < send.sent < len(LARGE)
        one.close()
        with pytest.raises(Error, match="closed meanwhile") as caught:
            send.step()
        assert caught.value.type is ErrType.NO_FD
        assert caught.value.sent == send.sent


async def bring_due(ends: Ends) -> None:
    """Receive at the second end until its next call is to let other tasks run."""
    for _ in range(STRIDE - 1):
        await ends[0].transfer(data=b"early")
        assert (await ends[1].receive()).data == b"early"


async def test_a_call_that_let_others_run_waits_if_nothing_is_there(ends: Ends) -> None:
    got: list[bytes] = []

    async def receive() -> None:
        got.append((await ends[1].receive()).data)

    await bring_due(ends)
    with anyio.fail_after(GENEROUS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await all_blocked()
            assert got == []
            await ends[0].transfer(data=b"late")
    assert got == [b"late"]


async def test_who_began_to_wait_while_a_call_let_others_run_comes_before_it(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[str, bytes]] = []

    async def receive(name: str) -> None:
        got.append((name, (await ends[1].receive()).data))

    async def begin_meanwhile() -> None:
        await receive("other")
        await ends[0].transfer(data=b"second")

    async def let_another_begin() -> None:
        monkeypatch.undo()
        tasks.start_soon(begin_meanwhile)
        await all_blocked()
        await ends[0].transfer(data=b"first")

    await bring_due(ends)
    with anyio.fail_after(GENEROUS):
        async with anyio.create_task_group() as tasks:
            monkeypatch.setattr(direction, "checkpoint", let_another_begin)
            await receive("due")
    assert got == [("other", b"first"), ("due", b"second")]


async def test_strangers_who_come_again_and_again_starve_nobody(path: str) -> None:
    strangers: list[Conduit] = []

    def refuse(peer: Peer) -> bool:
        # The next one is there before this one is refused.
        strangers.append(Conduit.connect(path))
        strangers.pop(0).close()
        return False

    async with AsyncListener(path, allow=refuse) as listener:
        strangers.append(Conduit.connect(path))
        await assert_fair(listener.accept)
        strangers.pop().close()


# What conduits are made of


async def assert_connected(link: AsyncConduit, peer: socket.socket) -> None:
    """See that descriptors go both ways between a conduit and a socket."""
    number = memory(b"there")
    send(peer, [number])
    os.close(number)
    assert await take(link, "receive_fd") == b"there"
    await link.transfer_fd(memory(b"back"))
    peer.settimeout(GENEROUS)
    _, [number], _, _ = socket.recv_fds(peer, 1, 1)
    assert content(number) == b"back"
    os.close(number)


@pytest.mark.parametrize("limit", [None, 0.0, 2.5])
async def test_a_plain_socket_becomes_a_conduit_whatever_its_timeout(
    kind: int, limit: float | None
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    mine.settimeout(limit)
    with peer, AsyncConduit.from_conn(mine, name="plain")._conduit as link:
        mine.close()
        async with AsyncConduit(link) as again:
            assert again.name == "plain"
            await assert_connected(again, peer)


@only_asyncio
async def test_a_socket_of_an_asyncio_transport_becomes_a_conduit(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        reader, writer = await asyncio.open_unix_connection(path)
        peer, _ = listener.accept()
    with peer:
        sock = writer.get_extra_info("socket")
        assert not isinstance(sock, socket.socket)
        async with AsyncConduit.from_conn(sock) as link:
            # From here on the transport must not read what is sent to the conduit.
            writer.transport.abort()
            await checkpoint()
            assert reader.at_eof() or reader.exception() is None
            await assert_connected(link, peer)


async def test_a_socket_of_an_anyio_stream_becomes_a_conduit(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        stream = await anyio.connect_unix(path)
        peer, _ = listener.accept()
    with peer:
        async with AsyncConduit.from_conn(stream.extra(SocketAttribute.raw_socket)) as link:
            await anyio.aclose_forcefully(stream)
            # Its end was not shut down for the others who have it.
            await assert_connected(link, peer)


@only_trio
async def test_a_socket_of_trio_becomes_a_conduit(kind: int) -> None:
    mine, peer = trio.socket.socketpair(socket.AF_UNIX, kind)
    with peer:
        async with AsyncConduit.from_conn(mine) as link:
            mine.close()
            with socket.socket(fileno=os.dup(peer.fileno())) as plain:
                await assert_connected(link, plain)


async def test_a_blocking_conduit_becomes_an_asynchronous_one(kind: int) -> None:
    blocking, other = Conduit.pair(type=kind)
    blocking.timeout = 7
    with other:
        async with AsyncConduit(blocking) as link:
            assert link.fileno() == blocking.fileno()
            assert str(blocking.fileno()) in repr(link)
            other.transfer_fd(memory(b"mixed"))
            assert await take(link, "receive_fd") == b"mixed"
        assert blocking.closed


def test_what_is_made_before_its_loop_runs_works_in_it(anyio_backend: Any) -> None:
    one, other = AsyncConduit.pair()

    async def main() -> None:
        async with one, other, anyio.create_task_group() as tasks:
            tasks.start_soon(one.transfer_fd, memory(b"later"))
            assert await take(other, "receive_fd") == b"later"

    name, options = anyio_backend
    anyio.run(main, backend=name, backend_options=options)


async def test_a_conduit_travels_through_a_conduit_and_is_closed_here(ends: Ends) -> None:
    one, other = AsyncConduit.pair()
    async with other:
        await ends[0].transfer_conn(one)
        assert one.closed
        conn = await ends[1].receive_conn()
        async with AsyncConduit.from_conn(conn) as link:
            conn.close()
            await link.transfer_fd(memory(b"nested"))
            assert await take(other, "receive_fd") == b"nested"


async def test_a_conduit_does_not_carry_itself(ends: Ends) -> None:
    with pytest.raises(Error, match="carry itself"):
        await ends[0].transfer_conn(ends[0])
    assert not ends[0].closed


@pytest.mark.parametrize("keep", [True, False])
async def test_a_number_is_no_file_and_no_socket(ends: Ends, keep: bool) -> None:
    number: Any = memory()
    for transfer in (ends[0].transfer_conn, ends[0].transfer_file):
        with pytest.raises(TypeError):
            await transfer(number, keep=keep)
    assert is_open(number)
    os.close(number)
    await assert_empty(ends[1])


# What waits to be flushed


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, BinaryIO]]:
    """The reading end of a pipe that takes no more, and a file to write to it with more."""
    out, into = os.pipe()
    os.set_blocking(out, False)
    with open(into, "wb", buffering=2 * len(UNWRITTEN)) as file:
        file.write(UNWRITTEN)
        yield out, file
        with contextlib.suppress(OSError):
            os.close(out)


UNWRITTEN = bytes(range(256)) * 1000
"""Four times what a pipe takes."""


async def drain_pipe(out: int) -> bytes:
    got = b""
    with anyio.fail_after(GENEROUS):
        while len(got) < len(UNWRITTEN):
            try:
                got += os.read(out, len(UNWRITTEN))
            except BlockingIOError:
                await anyio.sleep(0.001)
    return got


async def test_other_tasks_run_while_a_file_is_flushed_to_a_full_pipe(
    ends: Ends, full_pipe: tuple[int, BinaryIO]
) -> None:
    out, file = full_pipe
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends[0].transfer_file, file)
        # It could not go on unless this task could.
        assert await drain_pipe(out) == UNWRITTEN
        with await ends[1].receive_file("wb") as received:
            received.write(b"the end")
    assert file.closed
    assert os.read(out, 10) == b"the end"


async def test_a_file_whose_flush_is_cancelled_loses_nothing_and_is_sent_by_nobody(
    ends: Ends, full_pipe: tuple[int, BinaryIO]
) -> None:
    out, file = full_pipe
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends[0].transfer_file, file)
        # It is being flushed now.
        await anyio.wait_readable(out)
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught
    assert not file.closed
    assert await drain_pipe(out) == UNWRITTEN
    await assert_empty(ends[1])
    await ends[0].transfer(file)
    with await ends[1].receive_file("wb") as received:
        received.write(b"the end")
    assert os.read(out, 10) == b"the end"


async def test_a_flush_that_fails_is_an_error_that_names_the_item(
    ends: Ends, full_pipe: tuple[int, BinaryIO]
) -> None:
    out, file = full_pipe
    number = memory()
    os.close(out)
    for items, named in (((number, file), "item 2 of 2: "), ((file,), "<_io.BufferedWriter")):
        with pytest.raises(Error, match="was not transferred: Broken pipe") as caught:
            await ends[0].transfer(*items)
        assert str(caught.value).startswith(named)
        assert (caught.value.type, caught.value.errno) == (ErrType.FAILED_TRANSFER, errno.EPIPE)
    assert not file.closed
    with contextlib.suppress(BrokenPipeError):
        file.close()
    os.close(number)


def test_what_may_wait_to_be_flushed(tmp_path: Path) -> None:
    out, into = os.pipe()
    with open(out, "rb") as reader, open(into, "wb") as writer, open(into, "w", closefd=False) as t:
        with open(tmp_path / "regular", "w") as regular, socket.socket() as sock:
            waits = [file for file in (reader, writer, t, regular, sock, 1) if may_wait(file)]
        assert waits == [writer, t]
        with open(into, "wb", buffering=0, closefd=False) as raw:
            assert not may_wait(raw)
        with open(out, closefd=False) as text_reader:
            assert not may_wait(text_reader)
    for closed in (writer, t):
        assert not may_wait(closed)


def test_what_a_handler_raises_as_a_file_is_asked_for_its_fd_stays_itself() -> None:
    class File:
        def flush(self) -> None: ...

        def fileno(self) -> int:
            signal.raise_signal(signal.SIGUSR1)
            raise AssertionError

    def interrupt(*_: object) -> None:
        raise OSError("from the handler")

    with (
        handling(signal.SIGUSR1, interrupt),
        pytest.raises(OSError, match="from the handler") as caught,
    ):
        may_wait(File())
    assert not isinstance(caught.value, Error)


# Numbers that change hands while a sender waits


async def test_a_number_reused_while_its_sender_waits_is_left_alone(
    ends: Ends, tmp_path: Path
) -> None:
    one, other = ends
    number = memory(b"the right file")
    innocent = memory(b"innocent")
    queued = fill(one.fileno())

    async def transfer() -> None:
        with pytest.raises(Error, match="given to another file") as caught:
            await one.transfer_fd(number)
        assert caught.value.type is ErrType.FAILED_CLOSE

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(transfer)
        await all_blocked()
        os.dup2(innocent, number, inheritable=False)
        drain(other.fileno(), queued)
        assert await take(other, "receive_fd") == b"the right file"
    assert same_file(number, innocent)
    close_all([number, innocent])


# Listening


async def test_a_connection_to_a_full_backlog_waits_for_room_and_ends_at_a_deadline(
    path: str, kind: int
) -> None:
    async with AsyncListener(path, type=kind, backlog=0) as listener:
        waiting = []
        with anyio.fail_after(GENEROUS):
            while True:
                with anyio.move_on_after(0.05):
                    waiting.append(await AsyncConduit.connect(path, type=kind))
                    continue
                break
        made: list[AsyncConduit] = []

        async def connect() -> None:
            made.append(await AsyncConduit.connect(path, type=kind, name="patient"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect)
            for _ in range(len(waiting) + 1):
                async with await listener.accept() as link:
                    assert link.peer == Peer(os.getpid(), os.geteuid(), os.getegid())
        assert [link.name for link in made] == ["patient"]
        for link in waiting + made:
            await link.aclose()


async def test_a_connection_to_nothing_says_so(path: str) -> None:
    with pytest.raises(Error) as caught:
        await AsyncConduit.connect(path)
    assert (caught.value.type, caught.value.errno) == (ErrType.NO_FD, errno.ENOENT)


async def test_an_accept_waits_past_those_who_are_refused(
    path: str, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    admitted = False
    accepted: list[AsyncConduit] = []
    out, into = os.pipe()

    async with AsyncListener(path, type=kind, allow=lambda peer: admitted) as listener:

        async def accept() -> None:
            async with await listener.accept() as link:
                accepted.append(link)
                await link.transfer(data=b"welcome")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            async with await AsyncConduit.connect(path, type=kind) as refused:
                await refused.transfer(into)
                with pytest.raises(PeerClosedError):
                    await refused.receive()
            assert is_at_eof(out)
            assert not accepted
            admitted = True
            async with await AsyncConduit.connect(path, type=kind) as welcome:
                assert (await welcome.receive()).data == b"welcome"
        assert repr(path) in repr(listener)
        assert listener.path == path
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_each_connection_goes_to_one_of_many_who_accept(path: str, kind: int) -> None:
    names: list[bytes] = []
    async with AsyncListener(path, type=kind) as listener:

        async def serve() -> None:
            for _ in range(5):
                async with await listener.accept() as link:
                    names.append((await link.receive()).data)

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(serve)
            for place in range(20):
                async with await AsyncConduit.connect(path, type=kind) as client:
                    await client.transfer(data=b"%d" % place)
    assert sorted(names) == sorted(b"%d" % place for place in range(20))


# Importing


def test_conduit_without_its_aio_imports_no_anyio() -> None:
    program = "import sys, conduit; sys.exit(any(m in sys.modules for m in ('anyio', 'asyncio')))"
    done = run_python(program)
    assert done.returncode == 0, done.stderr


def test_a_public_name_says_that_it_is_of_the_package() -> None:
    for name in aio.__all__:
        assert getattr(aio, name).__module__ == "conduit.aio"
    assert repr(aio.AsyncReader) == "<class 'conduit.aio.AsyncReader'>"


@pytest.mark.parametrize(
    ("blocking", "awaited", "only_blocking"),
    [
        (Conduit, AsyncConduit, {"timeout"}),
        (Listener, AsyncListener, {"admit"}),
        (Reader, aio.AsyncReader, set()),
        (Channel, aio.AsyncChannel, set()),
        (Takeover, aio.AsyncTakeover, {"fileno", "step"}),
    ],
)
def test_what_is_awaited_has_the_names_of_what_blocks(
    blocking: type, awaited: type, only_blocking: set[str]
) -> None:
    def names(cls: type) -> set[str]:
        return {
            name for name in {*dir(cls), *inspect.get_annotations(cls)} if not name.startswith("_")
        }

    assert names(blocking) - names(awaited) == only_blocking
    for name in names(blocking) & names(awaited):
        one, other = getattr(blocking, name, None), getattr(awaited, name)
        if callable(one):
            taken = {*inspect.signature(one).parameters} - {"timeout"}
            assert taken == {*inspect.signature(other).parameters}, name
    assert hasattr(blocking, "__iter__") is hasattr(awaited, "__aiter__")
    assert hasattr(blocking, "__enter__") is hasattr(awaited, "__aenter__") is True


def test_without_anyio_the_import_says_what_to_install() -> None:
    program = """
import sys
sys.modules["anyio"] = None
try:
    import conduit.aio
except ImportError as exc:
    assert exc.name == "anyio"
    print(exc)
"""
    done = run_python(program)
    assert "pip install 'net-conduit[async]'" in done.stdout, done.stderr
