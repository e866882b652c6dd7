"""Conduits on an event loop: asyncio, uvloop and trio.

The names and meanings are those of `conduit.Conduit` and `conduit.Listener`; what can wait is a
coroutine. There is no timeout to set: deadlines are the loop's own (``anyio.fail_after``,
``asyncio.timeout``).

Nothing here waits inside a system call, and nothing is awaited after one that received: a
cancelled receive has either not taken the message out of the socket or returned it.

Each file does one thing. Those that wait:

- `waiter` waits on the loop that runs, and is woken from anywhere;
- `queue` keeps waiters in order;
- `direction` orders the calls of one direction of a socket, each of which waits with one;
- `conduit`, `listener`, `reader`, `channel` and `takeover` have the class that is named so;
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
    # Users see them, in errors and in pickles, as what they import.
    _public.__module__ = __name__
del _public
