"""Clients that send requests until they are told to stop, and count what became of each.

    python benchmarks/load.py PORT [SECONDS]

Half of them make a connection for each request (``Connection: close``), half keep theirs. It prints
a line once both kinds were answered, stops when its standard input has a line, and prints what it
counted as JSON.

A request *failed* if its connection was refused, reset, closed or silent before the whole answer
was there, or if the answer is not 200. One case is counted apart, as *sent again*: the server
closes a connection that has been kept while the next request is on its way, and answers nothing.
No server can avoid it wholly, and clients send such a request once more on a new connection (RFC
9112, 9.3.1). So do these, and if that fails, it failed.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import NamedTuple

HOST = "127.0.0.1"
CLIENTS = 6
"""Of each kind."""

THINKING = 0.005
"""Seconds between an answer and the next request of a client, unless others are given."""

PATIENCE = 10.0
"""Seconds after which a request is not answered any more."""


class Count(NamedTuple):
    """What became of the requests of one kind of clients.

    Attributes:
        answered: with 200.
        refused: no connection came about.
        dropped: it ended before the whole answer.
        silent: nothing was answered in time.
        wrong: the answer was another.
        again: sent once more, see above.
        gap: seconds between two answers to any of the clients, at most.
        processes: that answered.
    """

    answered: int
    refused: int
    dropped: int
    silent: int
    wrong: int
    again: int
    gap: float
    processes: int

    @property
    def failed(self) -> int:
        """The requests that failed."""
        return self.refused + self.dropped + self.silent + self.wrong


class _DroppedError(Exception):
    def __init__(self, has_begun: bool) -> None:
        super().__init__()
        self.has_begun = has_begun
        """Whether a part of the answer came."""


class _Connection:
    """One connection, and the requests on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_last = False
        self.is_used = False

    @property
    def is_over(self) -> bool:
        """Whether the server said that it is the last answer, or has closed it."""
        return self._is_last or self._reader.at_eof() or self._writer.is_closing()

    async def ask(self, is_kept: bool) -> tuple[int, str]:
        """Send a request; the status, and the process that answered."""
        answer = b""
        try:
            kind = b"keep-alive" if is_kept else b"close"
            self._writer.write(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n" % kind
            )
            while b"\r\n\r\n" not in answer:
                answer += await self._more(answer)
            head, _, body = answer.partition(b"\r\n\r\n")
            fields = head.lower().split(b"\r\n")
            length = next(int(f[15:]) for f in fields if f.startswith(b"content-length:"))
            while len(body) < length:
                body += await self._more(answer)
        except OSError:
            raise _DroppedError(bool(answer)) from None
        self.is_used = True
        self._is_last = b"connection: close" in fields or fields[0].startswith(b"http/1.0")
        return int(fields[0].split()[1]), body.decode().strip()

    async def _more(self, answer: bytes) -> bytes:
        data = await self._reader.read(4096)
        if not data:
            raise _DroppedError(bool(answer))
        return data

    def close(self) -> None:
        """Close it."""
        self._writer.close()


class _Clients:
    """Some clients of one kind."""

    def __init__(self, port: int, is_kept: bool, thinking: float) -> None:
        self._port = port
        self._thinking = thinking
        self._is_kept = is_kept
        self._counts = dict.fromkeys(("refused", "dropped", "silent", "wrong", "again"), 0)
        self._answers: list[tuple[float, str]] = []
        self.begun = asyncio.Event()
        self.is_over = False

    async def run(self) -> None:
        """Send requests until it is over, and one more: it is answered by what serves then."""
        connection = None
        is_last = False
        while not is_last:
            await asyncio.sleep(self._thinking)
            is_last = self.is_over
            connection = await self._request(connection)
        if connection is not None:
            connection.close()

    async def _request(self, connection: _Connection | None) -> _Connection | None:
        """Send one request and count it; the connection, if there can be another on it."""
        what = ""
        if connection is not None and connection.is_over:
            connection.close()
            connection = None
        try:
            async with asyncio.timeout(PATIENCE):
                if connection is None:
                    connection = _Connection(*await asyncio.open_connection(HOST, self._port))
                status, process = await connection.ask(self._is_kept)
            self._answers.append((time.monotonic(), process))
            self.begun.set()
            if status == 200 and self._is_kept:
                return connection
            what = "" if status == 200 else "wrong"
        except TimeoutError:
            what = "silent"
        except _DroppedError as dropped:
            assert connection is not None
            if connection.is_used and not dropped.has_begun:
                self._counts["again"] += 1
                connection.close()
                return await self._request(None)
            what = "dropped"
        except OSError:
            what = "refused" if connection is None else "dropped"
        if what:
            self._counts[what] += 1
        if connection is not None:
            connection.close()
        return None

    def count(self) -> Count:
        """What became of their requests."""
        times = sorted(when for when, _ in self._answers)
        return Count(
            answered=len(times) - self._counts["wrong"],
            **self._counts,
            gap=max((b - a for a, b in itertools.pairwise(times)), default=0.0),
            processes=len({process for _, process in self._answers}),
        )


async def load(port: int, thinking: float = THINKING) -> list[Count]:
    """Run clients of both kinds until standard input has a line."""
    kinds = [_Clients(port, is_kept, thinking) for is_kept in (False, True)]
    tasks = [asyncio.ensure_future(kind.run()) for kind in kinds for _ in range(CLIENTS)]
    for kind in kinds:
        await asyncio.wait_for(kind.begun.wait(), PATIENCE)
    print("begun", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    for kind in kinds:
        kind.is_over = True
    await asyncio.gather(*tasks)
    return [kind.count() for kind in kinds]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(int(sys.argv[1]), *map(float, sys.argv[2:])))))
