"""Conduits on an event loop: asyncio, uvloop and trio.

Names and meanings are those of `conduit.Conduit` and `conduit.Listener`; a method that can wait is
a coroutine. There is no timeout to set: deadlines are the loop's own (``anyio.fail_after``,
``asyncio.timeout``).

No system call here waits, and nothing is awaited after a receive: a cancelled receive has either
left the message in the socket or returned it.

Each file does one thing. Those that wait:

- `waiter` waits on the loop that runs, and is woken from anywhere;
- `queue` keeps waiters in order;
- `direction` orders the calls of one direction of a socket, each of which has a waiter;
- `conduit`, `listener`, `reader`, `channel` and `takeover` have the class of that name;
- `stream` takes a connection out of asyncio;
- `closing` is what ``async with`` does at the end.
"""

try:
    import anyio  # noqa: F401 - the one thing that is not there with Python
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "conduit.aio needs anyio: pip install 'net-conduit[async]'", name=_missing.name
    ) from _missing

from conduit.aio.channel import AsyncChannel
from conduit.aio.conduit import AsyncConduit
from conduit.aio.listener import AsyncListener
from conduit.aio.reader import AsyncReader
from conduit.aio.stream import detach_stream
from conduit.aio.takeover import AsyncTakeover

__all__ = [
    "AsyncChannel",
    "AsyncConduit",
    "AsyncListener",
    "AsyncReader",
    "AsyncTakeover",
    "detach_stream",
]

for _public in (
    AsyncChannel,
    AsyncConduit,
    AsyncListener,
    AsyncReader,
    AsyncTakeover,
    detach_stream,
):
    # In errors and pickles they have the name that users import.
    _public.__module__ = __name__
del _public
