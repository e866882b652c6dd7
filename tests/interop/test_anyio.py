"""anyio's ``send_fds`` and ``receive_fds`` at the other end, on each of its event loops."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from helpers import content, is_private, memory
from peers import LIMIT

import conduit
from conduit import Conduit

anyio = pytest.importorskip("anyio", reason="not installed: anyio")
aio = pytest.importorskip("conduit.aio")


LOOPS = [
    pytest.param(
        backend,
        {"use_uvloop": True} if module == "uvloop" else {},
        id=module,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(module) is None, reason=f"not installed: {module}"
        ),
    )
    for backend, module in [("asyncio", "asyncio"), ("asyncio", "uvloop"), ("trio", "trio")]
]


on_each_loop = pytest.mark.parametrize(("backend", "options"), LOOPS)


@pytest.fixture(scope="module", autouse=True)
def what_a_loop_keeps_is_open_before_descriptors_are_counted() -> None:
    for loop in LOOPS:
        if not loop.marks[0].args[0]:  # type: ignore[index]
            backend, options = loop.values
            anyio.run(anyio.sleep, 0, backend=backend, backend_options=options)


def run(main: Callable[[], Awaitable[None]], backend: str, options: dict[str, Any]) -> None:
    async def limited() -> None:
        with anyio.fail_after(LIMIT):
            await main()

    anyio.run(limited, backend=backend, backend_options=options)


async def wired() -> tuple[socket.socket, Any]:
    """A socket for a conduit, and the stream of anyio at its other end."""
    mine, theirs = socket.socketpair()
    return mine, await anyio.abc.UNIXSocketStream.from_socket(theirs)


async def wired_to_conduit() -> tuple[Conduit, Any]:
    mine, stream = await wired()
    with mine:
        return Conduit.from_conn(mine), stream


async def wired_to_async_conduit() -> tuple[Any, Any]:
    mine, stream = await wired()
    with mine:
        return aio.AsyncConduit.from_conn(mine), stream


@on_each_loop
def test_send_fds_to_a_conduit(backend: str, options: dict[str, Any]) -> None:
    async def main() -> None:
        link, stream = await wired_to_conduit()
        number = memory(b"from anyio")
        with link:
            async with stream:
                await stream.send_fds(b"\0", [number])
                arrived = link.receive_fd()
                assert is_private(arrived)
                assert content(arrived) == b"from anyio"
                os.close(arrived)
                await stream.send_fds(b"two", [number, number])
                with link.receive() as message:
                    assert message.data == b"two"
                    assert [content(descriptor.fileno()) for descriptor in message.fds] == [
                        b"from anyio",
                        b"from anyio",
                    ]
            with pytest.raises(conduit.PeerClosedError):
                link.receive_fd()
        os.close(number)

    run(main, backend, options)


@on_each_loop
def test_a_conduit_to_receive_fds(backend: str, options: dict[str, Any]) -> None:
    async def main() -> None:
        link, stream = await wired_to_conduit()
        async with stream:
            with link:
                link.transfer_fd(memory(b"plain"))
                data, [number] = await stream.receive_fds(64, 4)
                assert data == b"\0"
                assert content(number) == b"plain"
                os.close(number)
                link.transfer(memory(b"one"), memory(b"other"), data=b"two")
                data, numbers = await stream.receive_fds(64, 4)
                assert data == b"two"
                assert [content(number) for number in numbers] == [b"one", b"other"]
                for number in numbers:
                    os.close(number)
            with pytest.raises(anyio.EndOfStream):
                await stream.receive_fds(64, 4)

    run(main, backend, options)


@on_each_loop
def test_send_fds_to_an_async_conduit_that_waits(backend: str, options: dict[str, Any]) -> None:
    async def main() -> None:
        link, stream = await wired_to_async_conduit()
        number = memory(b"from anyio")

        async def receive() -> None:
            with await link.receive_file() as file:
                assert file.read() == b"from anyio"
            with await link.receive() as message:
                assert message.data == b"two"
                assert len(message.fds) == 2
            with pytest.raises(conduit.PeerClosedError):
                await link.receive_fd()

        async with link, anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            async with stream:
                await anyio.wait_all_tasks_blocked()
                await stream.send_fds(b"\0", [number])
                await anyio.wait_all_tasks_blocked()
                await stream.send_fds(b"two", [number, number])
        os.close(number)

    run(main, backend, options)


@on_each_loop
def test_an_async_conduit_to_receive_fds_that_waits(backend: str, options: dict[str, Any]) -> None:
    async def main() -> None:
        link, stream = await wired_to_async_conduit()
        one, other = socket.socketpair()

        async def receive() -> None:
            data, [number] = await stream.receive_fds(64, 4)
            assert data == b"\0"
            with socket.socket(fileno=number) as arrived:
                arrived.send(b"from the other end of anyio")
            with pytest.raises(anyio.EndOfStream):
                await stream.receive_fds(64, 4)

        with other:
            async with stream, anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                async with link:
                    await anyio.wait_all_tasks_blocked()
                    await link.transfer_conn(one)
            assert other.recv(64) == b"from the other end of anyio"

    run(main, backend, options)


@on_each_loop
def test_the_descriptor_of_a_long_payload_comes_once_with_its_beginning(
    backend: str, options: dict[str, Any]
) -> None:
    async def main() -> None:
        link, stream = await wired_to_async_conduit()
        payload = os.urandom(1 << 20)
        received: list[Any] = []

        async def receive() -> None:
            data, [number] = await stream.receive_fds(1 << 16, 4)
            assert content(number) == b"first"
            os.close(number)
            whole = data
            while len(whole) < len(payload):
                data, numbers = await stream.receive_fds(1 << 16, 4)
                assert list(numbers) == []
                whole += data
            received.append(whole)

        async with link, stream, anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await link.transfer(memory(b"first"), data=payload)
        assert received == [payload]

    run(main, backend, options)
