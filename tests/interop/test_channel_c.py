"""A program in C that speaks the format of docs/channel.md, and has it from nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from helpers import content, memory
from peers import LIMIT, built, needs, running, succeeded

from conduit import MAX_FDS, Conduit, Descriptor, Error
from conduit.channel import Channel

pytestmark = needs("cc")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return built("channel_peer", tmp_path_factory.mktemp("c"))


@pytest.fixture
def channel(program: str, kind: int) -> Iterator[Channel]:
    """A channel to the program, which ends well once it is closed."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with mine, theirs:
        number = theirs.fileno()
        with running(program, str(number), pass_fds=[number]) as process:
            theirs.close()
            with Channel(Conduit.from_conn(mine)) as channel:
                mine.close()
                channel.conduit.timeout = LIMIT
                yield channel
            succeeded(process)


@pytest.mark.parametrize("count", [0, 1, MAX_FDS - 1, MAX_FDS, MAX_FDS + 1, 800])
@pytest.mark.parametrize("size", [0, 300_000])
def test_a_program_in_c_answers_any_number_of_files_and_bytes(
    channel: Channel, count: int, size: int
) -> None:
    files = [Descriptor(memory(b"file %d" % place)) for place in range(count)]
    channel.send({"n": count, "files": files, "text": "x" * size})
    with channel.receiving() as answer:
        assert answer["echo"] is True
        assert answer["length"] > size
        assert answer["held"] == [f"file {place}" for place in range(count)]
        found = [content(fd.fileno()) for fd in answer["files"]]
        assert found == [b"file %d in C" % place for place in range(count)]


def test_a_message_that_was_given_up_is_closed_by_the_program_in_c(channel: Channel) -> None:
    gone = Descriptor(memory())
    gone.close()
    files = [Descriptor(memory()) for _ in range(MAX_FDS)]
    with pytest.raises(Error):
        channel.send([*files, gone])
    for file in files:
        file.close()
    channel.send({"n": 0})
    assert channel.receive()["held"] == []
