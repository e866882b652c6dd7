"""A takeover on an event loop: no thread waits, and each call can be cancelled at any step."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import to_thread
from helpers import (
    GENEROUS,
    fork_among_threads,
    is_open,
    no_more_room,
    reserved_port,
    run_python,
)

import conduit
from conduit.aio import AsyncTakeover, takeover
from conduit.aio.waiter import Waiter, checkpoint, new_waiter
from conduit.errors import TakeoverError
from conduit.takeover import Takeover, protocol, sockets
from conduit.takeover.succession import Succession
from conduit.takeover.talk import TYPE

pytestmark = pytest.mark.anyio

all_blocked = anyio.wait_all_tasks_blocked

MANY = 60
"""More turns of a loop than a takeover takes."""


@pytest.fixture
def path(tmp_path: Any) -> str:
    return str(tmp_path / "takeover.sock")


async def turns(count: int) -> None:
    for _ in range(count):
        await checkpoint()


async def cancelled_after(count: int, function: Callable[[], Any]) -> bool:
    """Call a coroutine function, cancel it after so many turns, and say whether it returned."""
    returned = False
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            nonlocal returned
            await function()
            returned = True

        tasks.start_soon(call)
        await turns(count)
        tasks.cancel_scope.cancel()
    return returned


async def takes_over(path: str, old: AsyncTakeover) -> None:
    """See that one who comes now follows."""
    async with AsyncTakeover(path) as new:
        assert new.predecessor is not None
        await new.ready()
        with anyio.fail_after(GENEROUS):
            assert await old.wait()


async def test_all_steps_of_both_sides_run_on_one_loop_without_a_thread(path: str) -> None:
    before = threading.active_count()
    async with AsyncTakeover(path) as old:
        assert (old.path, old.predecessor, old.dropped, old.successor) == (path, None, (), None)
        with await old.listen("127.0.0.1", 0, name="http") as sock:
            (await old.listen("127.0.0.1", 0, name="unwanted")).close()
            old.offer(b"state")
            await old.ready()
            async with AsyncTakeover(path) as new:
                assert new.state == b"state"
                with await new.listen("127.0.0.1", 0, name="http") as same:
                    assert same.getsockname() == sock.getsockname()
                assert await new.ready() == new.dropped == ("unwanted",)
                assert await old.wait()
                assert threading.active_count() <= before
                assert old.successor is not None
                assert new.predecessor_line is not None
                old.successor.transfer(data=b"on the line")
                assert new.predecessor_line.receive().data == b"on the line"


async def test_cancelling_ready_at_any_turn_leaves_exactly_one_owner(path: str) -> None:
    outcomes = set()
    for count in range(MANY):
        async with AsyncTakeover(path) as old:
            await old.ready()
            async with AsyncTakeover(path) as new:
                is_owner = await cancelled_after(count, new.ready)
                if is_owner:
                    await takes_over(path, new)
                    assert await old.wait()
            if not is_owner:
                await turns(5)
                await takes_over(path, old)
        outcomes.add(is_owner)
    assert outcomes == {False, True}


async def test_cancelling_the_entering_at_any_turn_leaves_the_old_one_serving(path: str) -> None:
    outcomes = set()
    for count in range(MANY):
        async with AsyncTakeover(path) as old:
            with await old.listen("127.0.0.1", 0, name="http"):
                await old.ready()
                new = AsyncTakeover(path)
                outcomes.add(await cancelled_after(count, new.__aenter__))
                await new.aclose()
                await turns(5)
                await takes_over(path, old)
    assert outcomes == {False, True}


async def test_cancelling_the_wait_at_any_turn_loses_no_successor(path: str) -> None:
    for count in range(0, MANY, 7):
        async with AsyncTakeover(path) as old:
            await old.ready()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(takes_over, path, old)
                await cancelled_after(count, old.wait)


async def test_the_look_up_of_a_name_is_cancelled_and_nothing_was_opened(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def slow(host: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert may_end.wait(GENEROUS)
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with AsyncTakeover(path) as old:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: old.listen("localhost", 0))
            await to_thread.run_sync(begun.wait)
            tasks.cancel_scope.cancel()
        may_end.set()
        with await old.listen("localhost", 0) as sock:
            assert sock.getsockname()[0] in ("127.0.0.1", "::1")
        with pytest.raises(ValueError, match="'localhost:0' already"):
            await old.listen("localhost", 0)


async def test_a_name_that_nobody_knows_is_an_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with AsyncTakeover(path) as old:
        with pytest.raises(conduit.Error, match=r"'www.example:80': Name or service not known"):
            await old.listen("www.example", 80)


async def test_a_path_that_the_predecessor_removes_is_put_back(path: str, tmp_path: Any) -> None:
    unix = tmp_path / "unix"
    async with AsyncTakeover(path) as old:
        with await old.listen(str(unix)):
            await old.ready()
            async with AsyncTakeover(path) as new:
                with await new.listen(str(unix)):
                    await new.ready()
                    assert await old.wait()
                    # Nothing comes to anybody from here on.
                    await turns(MANY)
                    unix.unlink()
                    with anyio.fail_after(GENEROUS):
                        while not unix.exists():
                            await checkpoint()
                    await old.aclose()
                    with anyio.fail_after(GENEROUS):
                        while len(os.listdir(tmp_path)) > 2:
                            await checkpoint()
    assert os.listdir(tmp_path) == []


async def test_a_task_that_is_cancelled_before_it_answers_does_not_keep_it_from_closing(
    path: str, anyio_backend_name: str
) -> None:
    async with AsyncTakeover(path) as takeover:
        if anyio_backend_name == "asyncio":
            answering: Any = takeover._answering
            answering.cancel()
        with anyio.fail_after(GENEROUS):
            await takeover.aclose()
    assert os.listdir(os.path.dirname(path)) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%1", "0.0.0.0"])
def test_an_address_needs_no_look_up(host: str) -> None:
    assert sockets.is_numeric(host)


@pytest.mark.parametrize("host", ["localhost", "x" * 64 + ".example"])
def test_a_name_needs_a_look_up(host: str) -> None:
    assert not sockets.is_numeric(host)


async def test_waiting_for_an_address_in_use_is_cancelled_and_nothing_was_opened(
    path: str,
) -> None:
    async with AsyncTakeover(path) as old:
        await old.ready()
        async with AsyncTakeover(path) as new:
            with reserved_port() as port:
                with socket.create_server(("127.0.0.1", port)):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(lambda: new.listen("127.0.0.1", port))
                        await turns(3)
                        tasks.cancel_scope.cancel()
                (await new.listen("127.0.0.1", port)).close()


@pytest.mark.parametrize("what", ["wait", "enter"])
@pytest.mark.parametrize("way", ["handler", "thread"])
async def test_close_from_anywhere_ends_what_waits(path: str, what: str, way: str) -> None:
    ended: list[bool | None] = []
    control = conduit.Listener(path, type=TYPE) if what == "enter" else None
    new = AsyncTakeover(path)

    async def enter() -> None:
        with pytest.raises(conduit.Error, match="closed"):
            await new.__aenter__()
        ended.append(None)

    async def wait() -> None:
        ended.append(await new.wait())

    def close(*_: object) -> None:
        # While it is entered, only the one inside is there to be closed.
        (inner,) = module_open()
        inner.close()

    def module_open() -> list[Takeover]:
        from conduit.takeover.takeover import _open

        return list(_open)

    if control is None:
        await new.__aenter__()
        await new.ready()
    old_handler = signal.signal(signal.SIGUSR1, close)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter if control else wait)
            await all_blocked()
            if way == "handler":
                os.kill(os.getpid(), signal.SIGUSR1)
            else:
                await to_thread.run_sync(close)
    finally:
        signal.signal(signal.SIGUSR1, old_handler)
        if control is not None:
            control.close()
    assert len(ended) == 1
    await new.aclose()


@pytest.mark.parametrize("kept", [True, False], ids=["task kept", "task cancelled"])
def test_a_takeover_whose_loop_has_ended_is_closed_from_another(path: str, kept: bool) -> None:
    async def serve() -> None:
        await old.__aenter__()
        await old.ready()
        waiting.append(asyncio.ensure_future(old.wait()))
        await turns(3)

    async def close() -> None:
        assert old.takeover.closed is False
        await old.aclose()
        assert await old.wait() is False

    old = AsyncTakeover(path)
    waiting: list[asyncio.Future[bool]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(serve())
    if not kept:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asyncio.run(close())
    assert not os.path.exists(path)
    # Nobody would see them go otherwise: a task that is pending says so.
    pending: set[Any] = {*waiting, old._answering} if kept else set()
    for task in pending:
        task._log_destroy_pending = False
    waiting.clear()


async def test_what_fails_while_successors_are_answered_is_logged_and_they_are_answered(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, failed = Succession.step, anyio.Event()

    def step(self: Succession) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, "Input/output error")
        real(self)

    monkeypatch.setattr(Succession, "step", step)
    async with AsyncTakeover(path) as old:
        await failed.wait()
        await old.ready()
        await takes_over(path, old)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_entering_without_room_for_a_descriptor_is_an_error_that_leaves_nothing(
    path: str,
) -> None:
    rooms = []
    for room in range(10):
        with no_more_room(room):
            try:
                async with AsyncTakeover(path):
                    rooms.append(room)
            except conduit.Error as exc:
                assert exc.errno == errno.EMFILE
        assert not os.path.exists(path)  # noqa: ASYNC240
    assert rooms == list(range(rooms[0], 10))


async def test_waiting_needs_no_room_for_a_descriptor(path: str) -> None:
    async with AsyncTakeover(path) as old, anyio.create_task_group() as tasks:
        await old.ready()
        with no_more_room(0):
            tasks.start_soon(old.wait)
            await all_blocked()
            old.close()


async def test_a_child_closes_what_the_loop_watches(path: str) -> None:
    async with AsyncTakeover(path) as old:
        await old.ready()
        watched = old.takeover._watched
        assert watched is not None
        fd = watched.fileno()
        pid = fork_among_threads()
        if pid == 0:
            os._exit(0 if old.closed and not is_open(fd) else 1)
        assert os.waitpid(pid, 0)[1] == 0  # noqa: ASYNC222
        await takes_over(path, old)


def test_a_program_that_serves_on_a_loop_may_fork(path: str) -> None:
    # From 3.12 on, a fork beside a thread is a DeprecationWarning, and here an error.
    program = """
import asyncio, os, sys, threading
from conduit.aio import AsyncTakeover

async def main():
    async with AsyncTakeover(sys.argv[1]) as old:
        with await old.listen("127.0.0.1", 0, name="http"):
            await old.ready()
            assert threading.active_count() == 1
            if (pid := os.fork()) == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

asyncio.run(main())
"""
    done = run_python(program, path)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_predecessor_with_whom_too_many_wait_is_given_up_at_the_deadline(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(conduit.Listener(path, type=TYPE, backlog=0))
        stack.enter_context(conduit.Conduit.connect(path, type=TYPE, timeout=0))
        monkeypatch.setattr(protocol, "GREETING", 0.15)
        with pytest.raises(TakeoverError, match="does not answer: its queue"):
            async with AsyncTakeover(path):
                raise AssertionError


async def test_a_loop_that_cannot_watch_is_an_error_and_the_old_one_goes_on(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncTakeover(path) as old:
        await old.ready()
        async with AsyncTakeover(path) as new:
            cls: Any = type(old._queue.waiting[0])
            real = cls._wait

            async def refuse(self: Waiter, fd: int, writing: bool, limit: float | None) -> None:
                assert new.takeover._inheritance.talk is not None
                watched = new.takeover._inheritance.talk.conduit.fileno()
                # It is watched through a duplicate.
                if fd >= 0 and os.path.samestat(os.fstat(fd), os.fstat(watched)):
                    monkeypatch.undo()
                    raise OSError(errno.ENOSPC, "No space left on device")
                await real(self, fd, writing, limit)

            monkeypatch.setattr(cls, "_wait", refuse)
            with pytest.raises(TakeoverError, match="does not watch its number") as caught:
                await new.ready()
            assert isinstance(caught.value.__cause__, conduit.Error)
            assert caught.value.__cause__.errno == errno.ENOSPC
        await turns(5)
        await takes_over(path, old)


async def test_nothing_is_waited_for_that_is_closed(path: str) -> None:
    async with AsyncTakeover(path):
        link, other = conduit.Conduit.pair()
        link.close()
        other.close()
        await takeover._wait(new_waiter(), link, select.POLLIN, GENEROUS)
