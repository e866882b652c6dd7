"""Objects with descriptors in them, there and back, over a `Channel`."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import errno
import fcntl
import gc
import importlib
import json
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from drivers import Driver, only_blocking
from helpers import (
    GENEROUS,
    Call,
    content,
    flooding,
    handling,
    in_child,
    interrupt_once_polling,
    is_open,
    is_private,
    memory,
    needs_descriptors,
    not_traced,
    open_descriptors,
    room_for,
    same_file,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sides import is_at_eof

from conduit import (
    MAX_FDS,
    Conduit,
    Descriptor,
    DescriptorTypeError,
    Error,
    ErrType,
    PeerClosedError,
    TransferTimeoutError,
    WouldBlockError,
)
from conduit.channel import Channel, close_descriptors
from conduit.wire import abandonment

Ends = tuple[Channel, Channel]


@pytest.fixture
def channels(kind: int, driver: Driver) -> Iterator[Ends]:
    """Two connected channels."""
    one, other = driver.Conduit.pair(type=kind)
    with driver.Channel(one) as here, driver.Channel(other) as there:
        yield here, there


def file(data: bytes = b"") -> Descriptor:
    return Descriptor(memory(data))


def files(count: int) -> list[Descriptor]:
    return [file(b"%d" % place) for place in range(count)]


def contents(fds: list[Descriptor]) -> list[bytes]:
    return [content(fd.fileno()) for fd in fds]


def close_all(fds: list[Descriptor]) -> None:
    for fd in fds:
        fd.close()


def assert_refused(caught: pytest.ExceptionInfo[Error]) -> None:
    assert type(caught.value) is Error
    assert caught.value.type is ErrType.BAD_CTRL_MESG


# Shapes


@dataclasses.dataclass
class Request:
    op: str
    file: Any
    more: list[Any]


class Pair(NamedTuple):
    first: Any
    second: Any


def test_the_same_shape_arrives_with_a_descriptor_in_each_place(channels: Ends) -> None:
    here, there = channels
    here.send({"op": "open", "file": file(b"a"), "more": [1, file(b"b"), {"deep": [file(b"c")]}]})
    with there.receiving() as obj:
        assert (obj["op"], obj["more"][0]) == ("open", 1)
        fds = [obj["file"], obj["more"][1], obj["more"][2]["deep"][0]]
        assert contents(fds) == [b"a", b"b", b"c"]
        assert all(type(fd) is Descriptor and is_private(fd.fileno()) for fd in fds)
    assert all(fd.closed for fd in fds)


@pytest.mark.parametrize("obj", [None, True, 0, -1.5, "", "text", [], {}, [[], {}], {"": None}])
def test_an_object_without_descriptors_arrives_as_it_was(channels: Ends, obj: Any) -> None:
    channels[0].send(obj)
    assert channels[1].receive() == obj


def test_a_descriptor_may_be_all_of_a_message(channels: Ends) -> None:
    channels[0].send(file(b"alone"))
    with channels[1].receive() as fd:
        assert content(fd.fileno()) == b"alone"


def test_tuples_arrive_as_lists_and_dataclasses_as_dicts_of_their_fields(channels: Ends) -> None:
    request = Request("bind", file(b"1"), [Request("inner", file(b"2"), []), Pair(file(b"3"), "x")])
    channels[0].send((request,))
    with channels[1].receiving() as obj:
        [outer] = obj
        inner, pair = outer["more"]
        assert (outer["op"], inner["op"], inner["more"], pair[1]) == ("bind", "inner", [], "x")
        assert contents([outer["file"], inner["file"], pair[0]]) == [b"1", b"2", b"3"]


def test_files_and_sockets_are_sent_as_by_transfer(channels: Ends, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log, near, far = open(path, "w"), *socket.socketpair()
    with far:
        log.write("not flushed yet")
        channels[0].send({"log": log, "sock": near})
        assert log.closed
        assert near.fileno() == -1
        with channels[1].receiving() as obj:
            assert path.read_text() == "not flushed yet"
            with obj["sock"].to_conn() as sock:
                sock.sendall(b"hello")
                assert far.recv(5) == b"hello"


def test_what_is_kept_stays_open_here(channels: Ends) -> None:
    with file(b"shared") as mine, socket.socket() as sock:
        channels[0].send([mine, sock], keep=True)
        with channels[1].receiving() as obj:
            assert same_file(obj[0].fileno(), mine.fileno())
            assert same_file(obj[1].fileno(), sock.fileno())


@pytest.mark.parametrize("codec", ["json", "literal"])
def test_a_descriptor_keeps_its_name_and_what_has_none_gets_none(
    kind: int, driver: Driver, codec: str
) -> None:
    one, other = driver.Conduit.pair(type=kind)
    functions = CODECS[codec]()
    with driver.Channel(one, **functions) as here, driver.Channel(other, **functions) as there:
        named = [Descriptor(memory(b"1"), "first"), Descriptor(memory(b"2"), '"\udcff\n')]
        here.send({"fds": [file(b"0"), *named], "null": open(os.devnull)})
        with there.receiving() as obj:
            assert contents(obj["fds"]) == [b"0", b"1", b"2"]
            assert [fd.name for fd in obj["fds"]] == ["", "first", '"\udcff\n']
            assert obj["null"].name == ""
            assert all(is_private(fd.fileno()) for fd in obj["fds"])
        assert all(fd.closed for fd in obj["fds"])


@pytest.mark.parametrize("count", [2, MAX_FDS + 1])
def test_what_stands_twice_is_sent_twice_and_closed_once(channels: Ends, count: int) -> None:
    fd = file(b"twice")
    channels[0].send([fd] * count)
    assert fd.closed
    with channels[1].receiving() as obj:
        assert len({each.fileno() for each in obj}) == count
        assert contents(obj) == [b"twice"] * count


@pytest.mark.parametrize(
    "obj",
    [{"$fd": 0}, {"$fd": None}, {"$$fd": 1}, {"$fd": {"$fd": 2}}, {"fd": 0}, {"x$fd": 0},
     {"$fd": 0, "x": 1}, ["$fd", "$fd\":"], {"a": "$fd\": "}, {"\u20ac$fd": 3}],
)  # fmt: skip
@pytest.mark.parametrize("more", [False, True], ids=["alone", "with-descriptors"])
def test_an_object_may_look_like_the_mark_of_a_descriptor(
    channels: Ends, obj: Any, more: bool
) -> None:
    here, there = channels
    here.send([obj, file()] if more else [obj])
    with there.receiving() as got:
        assert got[0] == obj
        assert type(got[-1]) is (Descriptor if more else type(obj))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("a descriptor"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text() | st.sampled_from(["$fd", "$$fd", "$$$fd", "$"]), inner, max_size=3
        )
    ),
    max_leaves=20,
)

CODECS: dict[str, Callable[[], dict[str, Any]]] = {
    "json": dict,
    "literal": lambda: {
        "dumps": lambda obj: repr(obj).encode(),
        "loads": lambda body: ast.literal_eval(body.decode()),
    },
    "msgspec-json": lambda: _codec("msgspec.json", "encode", "decode"),
    "msgspec-msgpack": lambda: _codec("msgspec.msgpack", "encode", "decode"),
    "msgpack": lambda: _codec("msgpack", "packb", "unpackb"),
}


def _codec(module: str, dumps: str, loads: str) -> dict[str, Any]:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("to import it may bring the GIL back")
    pytest.importorskip(module)
    functions = importlib.import_module(module)
    return {"dumps": getattr(functions, dumps), "loads": getattr(functions, loads)}


codecs = pytest.mark.parametrize("codec", CODECS)


@codecs
def test_any_pair_of_functions_is_a_codec(kind: int, driver: Driver, codec: str) -> None:
    functions = CODECS[codec]()
    one, other = driver.Conduit.pair(type=kind)
    with driver.Channel(one, **functions) as here, driver.Channel(other, **functions) as there:
        request = Request("x", file(b"1"), [{"$fd": 5}, (file(b"2"), {"k": [file(b"3")]})])
        here.send(request)
        with there.receiving() as obj:
            assert obj["more"][0] == {"$fd": 5}
            fds = [obj["file"], obj["more"][1][0], obj["more"][1][1]["k"][0]]
            assert contents(fds) == [b"1", b"2", b"3"]
        assert request.file.closed


@codecs
@given(obj=JSON)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_object_arrives_as_it_was(codec: str, obj: Any) -> None:
    def with_fds(each: Any) -> Any:
        if each == "a descriptor":
            sent.append(memory(b"%d" % len(sent)))
            return Descriptor(sent[-1])
        if isinstance(each, dict):
            return {key: with_fds(value) for key, value in each.items()}
        return [with_fds(value) for value in each] if isinstance(each, list) else each

    def without(each: Any) -> Any:
        if isinstance(each, Descriptor):
            assert content(each.fileno()) == b"%d" % len(found)
            found.append(each)
            return "a descriptor"
        if isinstance(each, dict):
            return {key: without(value) for key, value in each.items()}
        return [without(value) for value in each] if isinstance(each, list) else each

    if codec != "json":
        # What their formats hold is less: integers of 64 bits, and no lone surrogates.
        obj = json.loads(re.sub(r"\d{18,}", "7", json.dumps(obj).replace("\\ud", "\\u0")))
    sent: list[int] = []
    found: list[Descriptor] = []
    functions = CODECS[codec]()
    one, other = Conduit.pair(type=socket.SOCK_SEQPACKET)
    with Channel(one, **functions) as here, Channel(other, **functions) as there:
        here.send(with_fds(obj))
        with there.receiving() as got:
            assert without(got) == obj
            assert len(found) == len(sent)


def test_a_codec_is_two_functions() -> None:
    one, other = Conduit.pair()
    with one, other:
        with pytest.raises(TypeError, match="two functions"):
            Channel(one, dumps=json.dumps)  # type: ignore[arg-type]
        with Channel(one, dumps=json.dumps, loads=json.loads) as here:  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="must return bytes, not str"):
                here.send({})


@codecs
def test_a_codec_may_return_what_is_not_made_of_dicts_and_lists(codec: str) -> None:
    writing = CODECS[codec]()
    reading: dict[str, Any] = {"dumps": repr, "loads": lambda body: ("a tuple", frozenset([1]))}
    one, other = Conduit.pair()
    with Channel(one, **writing) as here, Channel(other, **reading) as there:
        here.send("whatever")
        assert there.receive() == ("a tuple", frozenset([1]))


# Long messages, and many descriptors


def test_a_message_longer_than_a_packet_arrives_whole(channels: Ends) -> None:
    here, there = channels
    text = "0123456789" * 300_000
    sending = Call(here.send, {"text": text, "file": file(b"x")})
    with there.receiving() as obj:
        assert obj["text"] == text
        assert contents([obj["file"]]) == [b"x"]
    sending.result()


@pytest.mark.parametrize("size", [65510, 65511, 65512, 65513])
def test_messages_around_the_length_of_a_packet_arrive(channels: Ends, size: int) -> None:
    here, there = channels
    sending = Call(here.send, "x" * (size - 2))
    assert len(there.receive()) == size - 2
    sending.result()


def test_a_packet_for_which_the_socket_is_too_small_travels_in_a_file(driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with (
        peer,
        driver.Channel(driver.Conduit.from_conn(mine)) as here,
        driver.Channel(driver.Conduit.from_conn(peer)) as there,
    ):
        mine.close()
        here.send(["y" * 50_000, file(b"x")])
        with there.receiving() as obj:
            assert len(obj[0]) == 50_000
            assert contents(obj[1:]) == [b"x"]


@pytest.mark.parametrize(
    "count",
    [
        MAX_FDS - 1,
        MAX_FDS,
        pytest.param(MAX_FDS + 1, marks=needs_descriptors(2048)),
        pytest.param(2 * MAX_FDS, marks=needs_descriptors(4096)),
        pytest.param(1000, marks=needs_descriptors(4096)),
    ],
)
@pytest.mark.parametrize("keep", [False, True], ids=["move", "keep"])
def test_any_number_of_descriptors_arrives_in_order(channels: Ends, count: int, keep: bool) -> None:
    here, there = channels
    given = files(count)
    here.send({"files": given, "more": "z" * 10_000}, keep=keep)
    assert all(fd.closed is not keep for fd in given)
    with there.receiving() as obj:
        assert contents(obj["files"]) == [b"%d" % place for place in range(count)]
        assert obj["more"] == "z" * 10_000
    close_all(given)


def test_many_descriptors_of_every_kind_are_closed_through_their_objects(channels: Ends) -> None:
    items = [socket.socket() for _ in range(MAX_FDS)], open(os.devnull), file()
    channels[0].send(items)
    assert all(sock.fileno() == -1 for sock in items[0])
    assert items[1].closed
    assert items[2].closed
    with channels[1].receiving() as obj:
        assert len(obj[0]) == MAX_FDS


def test_one_of_many_that_cannot_be_moved_is_refused_before_anything_is_sent(
    channels: Ends,
) -> None:
    given = files(MAX_FDS)
    with pytest.raises(DescriptorTypeError):
        channels[0].send([*given, NoClose()])
    assert not any(fd.closed for fd in given)
    close_all(given)
    channels[0].send("next")
    assert channels[1].receive() == "next"


class NoClose:
    def fileno(self) -> int:
        return 0


def test_many_that_are_not_closed_well_were_sent(channels: Ends) -> None:
    class Failing(socket.socket):
        def close(self) -> None:
            super().close()
            raise OSError(errno.EIO, "of its own")

    given: list[Any] = [*files(MAX_FDS), Failing(), Failing()]
    with pytest.raises(Error, match="of its own") as caught:
        channels[0].send(given)
    assert (caught.value.type, caught.value.errno) == (ErrType.FAILED_CLOSE, errno.EIO)
    assert all(fd.closed for fd in given[:MAX_FDS])
    with channels[1].receiving() as obj:
        assert len(obj) == MAX_FDS + 2


@pytest.mark.parametrize("codec", ["json", "literal"])
def test_too_many_or_too_much_is_refused_before_anything_is_sent(
    kind: int, driver: Driver, codec: str
) -> None:
    one, other = driver.Conduit.pair(type=kind)
    here = driver.Channel(one, max_size=100, max_fds=2, **CODECS[codec]())
    with here, driver.Channel(other, **CODECS[codec]()) as there:
        given = files(3)
        with pytest.raises(Error, match="at most 2") as caught:
            here.send(given)
        assert_refused(caught)
        with pytest.raises(Error, match="at most 100") as caught:
            here.send("x" * 99)
        assert_refused(caught)
        here.send(["x" * 50, *given[:2]])
        with there.receiving() as obj:
            assert contents(obj[1:]) == [b"0", b"1"]
        given[2].close()


@needs_descriptors(4096)
def test_more_descriptors_than_the_receiver_allows_are_closed_and_the_next_message_arrives(
    kind: int, driver: Driver
) -> None:
    one, other = driver.Conduit.pair(type=kind)
    with driver.Channel(one) as here, driver.Channel(other, max_fds=300) as there:
        for count in (301, 600, 900):
            here.send(files(count))
            here.send({"next": file(b"x")})
            with pytest.raises(Error, match=f"{count} descriptors") as caught:
                there.receive()
            assert_refused(caught)
            with there.receiving() as obj:
                assert contents([obj["next"]]) == [b"x"]


def test_a_longer_message_than_the_receiver_allows_ends_a_stream_and_not_packets(
    kind: int, driver: Driver
) -> None:
    one, other = driver.Conduit.pair(type=kind)
    with driver.Channel(one) as here, driver.Channel(other, max_size=200_000) as there:
        mine = file()
        sending = Call(here.send, ["x" * 2_000_000, mine])
        with pytest.raises(Error, match="is longer than") as caught:
            there.receive()
        assert_refused(caught)
        if kind == socket.SOCK_SEQPACKET:
            sending.result()
            here.send("next")
            assert there.receive() == "next"
            return
        with pytest.raises(Error, match="out of step"):
            there.receive()
        there.close()
        with mine, pytest.raises(PeerClosedError):
            sending.result()


@pytest.mark.parametrize("size", [15_000_000, 1 << 31])
def test_no_memory_is_taken_for_what_a_peer_only_announces(driver: Driver, size: int) -> None:
    mine, peer = socket.socketpair()
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        here.conduit.timeout = 0.01
        peer.sendall(header(length=size) + b"[")
        tracemalloc.start()
        try:
            with pytest.raises(Error):
                here.receive()
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


# What cannot be sent


def circular() -> Any:
    obj: list[Any] = []
    obj.append(obj)
    return obj


def nested(depth: int) -> Any:
    obj: Any = []
    for _ in range(depth):
        obj = [obj]
    return obj


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (object, TypeError),
        (lambda: b"bytes", TypeError),
        (lambda: Request, TypeError),
        (lambda: {1, 2}, TypeError),
        (lambda: float("nan"), ValueError),
        (circular, ValueError),
        (lambda: nested(100_000), ValueError),
        (lambda: {"a": {1: 0, "1": 1}}, ValueError),
        (lambda: [{"1.5": 0, 1.5: 1}], ValueError),
        (lambda: {-1e22: 0, "-1e+22": 1}, ValueError),
        (lambda: {True: 0, "true": 1}, ValueError),
        (lambda: {False: 0, "false": 1}, ValueError),
        (lambda: {None: 0, "null": 1, "$fd": 2}, ValueError),
    ],
)
def test_what_json_cannot_tell_is_refused_before_anything_is_sent(
    channels: Ends, make: Callable[[], Any], error: type[Exception]
) -> None:
    here, there = channels
    with file() as mine:
        with pytest.raises(error):
            here.send([mine, make()])
        assert not mine.closed
    here.send("next")
    assert there.receive() == "next"


@pytest.mark.slow
@only_blocking
@pytest.mark.parametrize("make", [circular, lambda: nested(100_000)])
def test_what_nests_without_end_is_refused_for_any_codec(
    kind: int, driver: Driver, make: Callable[[], Any]
) -> None:
    one, other = Conduit.pair(type=kind)
    with other, Channel(one, **CODECS["literal"]()) as here:
        with pytest.raises(ValueError, match="nests too deep, or holds itself"):
            here.send(make())
        with pytest.raises(ValueError, match="nests too deep, or holds itself"):
            here.send([{"$fd": 0}, {"$fd": make()}])


def test_what_dumps_raises_is_raised_with_everything_open(kind: int, driver: Driver) -> None:
    def dumps(obj: Any) -> bytes:
        raise LookupError("of its own")

    one, other = driver.Conduit.pair(type=kind)
    with other, driver.Channel(one, dumps=dumps, loads=json.loads) as here, file() as mine:
        with pytest.raises(LookupError, match="of its own"):
            here.send([mine])
        assert not mine.closed


def test_what_is_closed_cannot_be_sent(channels: Ends) -> None:
    gone, mine = file(), file()
    gone.close()
    with mine, pytest.raises(Error) as caught:
        channels[0].send([mine, gone])
    assert caught.value.type is ErrType.NO_FD


@pytest.mark.parametrize("limit", [resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE])
def test_a_long_packet_for_which_there_is_no_file_is_refused(driver: Driver, limit: int) -> None:
    one, other = driver.Conduit.pair(type=socket.SOCK_SEQPACKET)
    with other, driver.Channel(one) as here, file() as mine:
        with room_for(0) if limit == resource.RLIMIT_NOFILE else limited(limit, 1000):
            with pytest.raises(Error, match="no file for it") as caught:
                here.send(["x" * 100_000, mine])
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno in (errno.EMFILE, errno.EFBIG)
        assert not mine.closed


@contextlib.contextmanager
def limited(limit: int, soft: int) -> Iterator[None]:
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


# What fails in the middle


def full(here: Channel, there: Channel) -> int:
    """Send until the socket takes no more; how many messages went."""
    here.conduit.timeout = 0
    sent = 0
    with contextlib.suppress(WouldBlockError):
        while True:
            here.send("fill")
            sent += 1
    return sent


@needs_descriptors(4096)
def test_many_descriptors_that_leave_in_part_stay_and_the_peer_closes_what_it_has(
    channels: Ends,
) -> None:
    here, there = channels
    sent = full(here, there)
    # Room for one of the frames that follow, or two.
    assert there.receive() == "fill"
    pipe, writer = os.pipe()
    given = [Descriptor(writer), *files(3 * MAX_FDS + 2)]
    with pytest.raises(WouldBlockError):
        here.send(given)
    assert not any(fd.closed for fd in given)
    for _ in range(10):
        assert there.receive() == "fill"
    here.send(given)
    assert all(fd.closed for fd in given)
    for _ in range(sent - 11):
        assert there.receive() == "fill"
    with there.receiving() as obj:
        assert len(obj) == len(given)
    assert is_at_eof(pipe)
    here.send("next")
    assert there.receive() == "next"
    there.conduit.timeout = 0
    with pytest.raises(WouldBlockError):
        there.receive()


def test_an_abandoned_message_is_closed_at_the_peer(channels: Ends) -> None:
    here, there = channels
    pipe, writer = os.pipe()
    given: list[Any] = [Descriptor(writer), *files(MAX_FDS - 1), gone := file()]
    gone.close()
    with pytest.raises(Error) as caught:
        here.send(given)
    assert caught.value.type is ErrType.NO_FD
    close_all(given)
    assert not getattr(here, "_channel", here)._owed
    assert not is_at_eof(os.dup(pipe)), "it waits for its end, in the socket"
    here.send("next")
    assert there.receive() == "next"
    assert is_at_eof(pipe)


def test_the_end_of_a_message_that_is_owed_goes_ahead_of_the_next(channels: Ends) -> None:
    here, there = channels
    sent = full(here, there)
    assert there.receive() == "fill"
    while True:
        given = files(2 * MAX_FDS)
        with pytest.raises(WouldBlockError):
            here.send(given)
        close_all(given)
        owed = getattr(here, "_channel", here)._owed
        if owed:
            break
        sent -= 1
        assert there.receive() == "fill"
    before = len(open_descriptors())
    with pytest.raises(WouldBlockError):
        here.send("next")
    assert owed
    for _ in range(sent - 1):
        assert there.receive() == "fill"
    here.send("next")
    assert not owed
    assert there.receive() == "next"
    assert len(open_descriptors()) == before


def test_a_peer_that_closes_in_the_middle_of_a_message_is_told_from_the_end(
    kind: int, driver: Driver
) -> None:
    for frames in messages(kind, [file(b"a"), *files(MAX_FDS)]):
        mine, peer = socket.socketpair(socket.AF_UNIX, kind)
        with driver.Channel(driver.Conduit.from_conn(mine)) as here:
            mine.close()
            with peer:
                for data, fds in frames:
                    socket.send_fds(peer, [data], fds)
            with pytest.raises(PeerClosedError, match="in the middle of a message"):
                list(here)
            assert list(here) == []


def messages(kind: int, given: list[Descriptor]) -> Iterator[list[tuple[bytes, list[int]]]]:
    """Some messages as they leave, each without its end."""
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with mine, peer, Channel(Conduit.from_conn(mine)) as here:
        here.send(given)
        data, fds, _, _ = socket.recv_fds(peer, 24, MAX_FDS)
        yield [(data, fds)]
        if kind == socket.SOCK_STREAM:
            yield [(data[:10], fds)]
            rest, more, _, _ = socket.recv_fds(peer, 60, MAX_FDS)
            yield [(data, fds), (rest, more)]
            fds += more
        for fd in fds:
            os.close(fd)


def test_iteration_ends_when_the_peer_closes(channels: Ends) -> None:
    here, there = channels
    for place in range(3):
        here.send([place, file(b"%d" % place)])
    here.close()
    for place, obj in enumerate(there):
        assert obj[0] == place
        close_descriptors(obj)
    with pytest.raises(PeerClosedError):
        there.receive()


# Deadlines, threads, signals


def drip(data: bytes, peer: socket.socket, stop: list[bool]) -> int:
    """Send bytes one by one; return how many left before the stop."""
    for sent, byte in enumerate(data):
        if stop:
            return sent
        time.sleep(0.02)
        peer.send(bytes([byte]))
    return len(data)


@pytest.mark.slow
def test_a_deadline_holds_for_a_message_that_comes_in_drops_and_loses_nothing(
    driver: Driver,
) -> None:
    mine, peer = socket.socketpair()
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        here.conduit.timeout = 0.2
        # At this pace, it takes longer than any test.
        data = frame([1] * 50_000)
        stop: list[bool] = []
        dripping = Call(drip, data, peer, stop)
        begun = time.monotonic()
        with pytest.raises(TransferTimeoutError):
            here.receive()
        assert 0.19 < time.monotonic() - begun < GENEROUS
        stop.append(True)
        sent = dripping.result()
        here.conduit.timeout = None
        receiving = Call(here.receive)
        peer.sendall(data[sent:])
        assert receiving.result() == [1] * 50_000


def test_a_deadline_holds_for_the_rest_of_a_message_that_does_not_come(driver: Driver) -> None:
    mine, peer = socket.socketpair()
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        data = frame([file, 1], 1)
        socket.send_fds(peer, [data[:30]], [0])
        here.conduit.timeout = 0.15
        for place in (30, 31):
            # One more byte while it waits, and then no more.
            dripping = Call(drip, data[place : place + 1], peer, [])
            begun = time.monotonic()
            with pytest.raises(TransferTimeoutError):
                here.receive()
            assert 0.14 < time.monotonic() - begun < GENEROUS
            dripping.result()
        peer.send(data[32:])
        with here.receiving() as obj:
            assert obj[1] == 1


@only_blocking
def test_closing_ends_the_wait_for_the_rest_of_a_message(driver: Driver) -> None:
    mine, peer = socket.socketpair()
    with peer, Channel(Conduit.from_conn(mine)) as here:
        mine.close()
        here.conduit.timeout = 60
        socket.send_fds(peer, [frame([file, 1], 1)[:30]], [0])
        receiving = Call(here.receive)
        assert receiving.is_waiting()
        here.close()
        with pytest.raises(Error) as caught:
            receiving.result()
        assert caught.value.type is ErrType.NO_FD


def frame(obj: Any, count: int = 0, **fields: int) -> bytes:
    """A message as docs/channel.md defines it, or a false one."""
    body = obj if isinstance(obj, bytes) else json.dumps(obj, default=lambda _: {"$fd": 0}).encode()
    return header(length=len(body), count=count, total=fields.pop("total", count), **fields) + body


def header(
    magic: int = 0x43FD, version: int = 1, size: int = 24, kind: int = 1, flags: int = 0,
    count: int = 0, total: int = 0, length: int = 0, number: int = 0,
) -> bytes:  # fmt: skip
    return b"".join(
        value.to_bytes(width, "little")
        for value, width in [
            (magic, 2), (version, 1), (size, 1), (kind, 1), (flags, 1), (count, 2), (total, 4),
            (length, 4), (number, 8),
        ]
    )  # fmt: skip


@needs_descriptors(4096)
def test_each_message_of_many_threads_arrives_whole_and_once(channels: Ends) -> None:
    here, there = channels
    count, threads = 40, 4

    def send(sender: int) -> None:
        for turn in range(count):
            size = random.randrange(1, 40_000)
            fds = files(random.choice([0, 1, 3, 3, MAX_FDS + 1]))
            here.send({"name": [sender, turn], "size": size, "text": "x" * size, "fds": fds})

    def receive() -> list[list[int]]:
        names = []
        for obj in there:
            assert len(obj["text"]) == obj["size"]
            assert contents(obj["fds"]) == [b"%d" % place for place in range(len(obj["fds"]))]
            close_descriptors(obj)
            names.append(obj["name"])
        return names

    receiving = [Call(receive) for _ in range(3)]
    for sending in [Call(send, sender) for sender in range(threads)]:
        sending.result()
    here.close()
    got = [name for call in receiving for name in call.result()]
    assert sorted(got) == [[sender, turn] for sender in range(threads) for turn in range(count)]


def test_closing_ends_the_calls_of_other_threads(channels: Ends) -> None:
    here, _ = channels
    receiving = [Call(here.receive) for _ in range(3)]
    while not any(call.is_waiting() for call in receiving):
        pass
    here.close()
    for call in receiving:
        with pytest.raises(Error) as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD
    assert here.closed


@only_blocking
def test_a_handler_that_receives_on_the_channel_it_interrupted_gets_an_error(
    channels: Ends,
) -> None:
    here, there = channels
    caught: list[Error] = []

    def handler(*_: Any) -> None:
        try:
            there.receive()
        except Error as exc:
            caught.append(exc)
        there.send("from the handler")
        here.send("for the call")

    with handling(signal.SIGUSR1, handler):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        assert there.receive() == "for the call"
        interrupting.result()
    assert [exc.errno for exc in caught] == [errno.EDEADLK]
    assert here.receive() == "from the handler"


@only_blocking
def test_a_handler_may_close_the_channel_that_it_interrupted(driver: Driver) -> None:
    mine, peer = socket.socketpair()
    with peer, Channel(Conduit.from_conn(mine)) as here:
        mine.close()
        socket.send_fds(peer, [frame([file], 1)[:30]], [0])
        with handling(signal.SIGUSR1, lambda *_: here.close()):
            interrupting = interrupt_once_polling(signal.SIGUSR1)
            with pytest.raises(Error) as caught:
                here.receive()
            interrupting.result()
        assert caught.value.type is ErrType.NO_FD


def raise_alarm(*_: Any) -> None:
    raise Alarm


class Alarm(OSError, RecursionError):
    """An exception that what it interrupts might have raised itself."""


@only_blocking
@pytest.mark.parametrize("codec", ["json", "literal"])
def test_what_a_handler_raises_while_a_message_is_sent_stays_itself(
    kind: int, driver: Driver, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Striking(socket.socket):
        where = "fileno"

        def __getattribute__(self, name: str) -> Any:
            if name == Striking.where:
                Striking.where = "close()"
                signal.raise_signal(signal.SIGUSR1)
            return super().__getattribute__(name)

        def close(self) -> None:
            super().close()
            if Striking.where == "close()":
                signal.raise_signal(signal.SIGUSR1)

    def sealed(body: bytes) -> Descriptor:
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("unreachable")

    one, other = Conduit.pair(type=kind)
    functions = CODECS[codec]()
    with (
        Channel(one, **functions) as here,
        Channel(other, **functions) as there,
        handling(signal.SIGUSR1, raise_alarm),
    ):
        sock = Striking()
        with pytest.raises(Alarm):
            here.send([sock])
        assert socket.socket.fileno(sock) >= 0
        given = [*files(MAX_FDS), sock, *files(1)]
        with pytest.raises(Alarm):
            here.send(given)
        assert all(fd.closed for fd in given if isinstance(fd, Descriptor))
        with there.receiving() as obj:
            assert len(obj) == len(given)
        if kind == socket.SOCK_SEQPACKET:
            monkeypatch.setattr("conduit.channel.sealed", sealed)
            with pytest.raises(Alarm):
                here.send("x" * 70_000)


@pytest.mark.slow
@not_traced
@only_blocking
def test_a_handler_that_raises_anywhere_in_a_receive_loses_no_step_of_the_stream(
    channels: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = channels
    due = [False]

    def handler(*_: Any) -> None:
        if due[0]:
            raise Alarm

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    strikes = lost = 0
    there.conduit.timeout = here.conduit.timeout = 0
    before = len(open_descriptors())
    with handling(signal.SIGALRM, handler), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        deadline = time.monotonic() + 3
        turn = 0
        while time.monotonic() < deadline or strikes < 300:
            turn += 1
            count = random.choice([1, 1, MAX_FDS + 1])
            given = files(1) * count
            here.send([turn, "x" * random.choice([1, 30_000]), *given])
            here.send(["end", turn])
            obj: Any = None
            while not obj or obj[0] != "end":
                close_descriptors(obj)
                try:
                    try:
                        due[0] = True
                        signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 2e-4))
                        obj = there.receive()
                    finally:
                        due[0] = False
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm:
                    strikes += 1
                except WouldBlockError:
                    # What was struck as it returned.
                    lost += 1
                    break
            close_descriptors(obj)
            obj = None
        gc.collect()
    # It strikes as the call returns once in some twenty times.
    assert strikes > 7 * lost
    assert len(open_descriptors()) <= before + 2, "but for the wakers"


@pytest.mark.slow
@not_traced
@only_blocking
def test_a_handler_that_raises_anywhere_in_a_send_leaves_all_open_or_sends_all(
    channels: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = channels
    due = [False]

    def handler(*_: Any) -> None:
        if due[0]:
            raise Alarm

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    there.conduit.timeout = here.conduit.timeout = 0
    before = len(open_descriptors())
    outcomes: set[tuple[bool, int]] = set()
    with handling(signal.SIGALRM, handler), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline or not outcomes >= {(True, 0), (False, 1)}:
            given = files(2)
            many = [given[0]] * random.choice([1, 600])
            try:
                try:
                    due[0] = True
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(5e-6, 1e-3))
                    here.send([*many, given[1], "x" * random.choice([1, 70_000])])
                finally:
                    due[0] = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                struck = True
            else:
                struck = False
                assert all(fd.closed for fd in given)
            here.send("next")
            arrived = 0
            while (obj := there.receive()) != "next":
                arrived += 1
                assert len(obj) == len(many) + 2
                close_descriptors(obj)
            assert arrived == 1 or (struck and not any(fd.closed for fd in given))
            outcomes.add((struck, arrived))
            close_all(given)
        del obj
        gc.collect()
    assert len(open_descriptors()) <= before + 2, "but for the wakers"


@only_blocking
@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET])
def test_a_forked_child_receives_though_another_thread_of_the_parent_waited(
    channels: Ends,
) -> None:
    here, there = channels
    receiving = Call(there.receive)
    assert receiving.is_waiting()

    def child() -> None:
        # One for the parent, which receives on the same socket, and one for the child.
        here.send("for one")
        here.send("for another")
        assert there.receive().startswith("for ")

    assert in_child(child) == 0
    assert receiving.result().startswith("for ")


# Peers that do not keep to the format

BAD_FRAMES: dict[str, tuple[list[bytes], list[int]]] = {
    "not-a-frame": ([b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"], [0]),
    "another-version": ([header(version=2)], [0]),
    "a-short-header": ([header(size=23)], [0]),
    "an-unknown-kind": ([frame(1, 1, kind=9)], [1]),
    "ahead-of-no-message": ([header(kind=2, count=1, total=2)], [1]),
    "too-long": ([header(length=1 << 31)], [0]),
    "fewer-descriptors": ([frame([file], 2)], [1]),
    "more-descriptors": ([frame([file], 1)], [2]),
    "uninvited-descriptors": ([frame([])], [1]),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_what_is_no_frame_is_an_error_and_all_that_came_is_closed(
    kind: int, driver: Driver, name: str
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    pipe, writer = os.pipe()
    [data], [count] = BAD_FRAMES[name]
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        if name == "too-long":
            data += b"x" * 100
        elif name == "more-descriptors":
            # They come with the first bytes, and are too many before the rest is there.
            data = frame([file, "x" * 100], 1)[:-1] + b"]"
        socket.send_fds(peer, [data], [writer] * max(count, 1))
        os.close(writer)
        with pytest.raises(Error) as caught:
            here.receive()
        assert_refused(caught)
        assert is_at_eof(pipe)
        peer.send(frame("next"))
        if kind == socket.SOCK_SEQPACKET:
            assert here.receive() == "next"
        else:
            for _ in range(2):
                with pytest.raises(Error, match="out of step") as caught:
                    here.receive()
                assert caught.value.type is ErrType.FAILED_TRANSFER
        here.send("still sends")
        assert b"still sends" in peer.recv(100)


@pytest.mark.parametrize("data", [b"", b"x", header()[:23], frame(1) + b"x", frame(11)[:-1]])
def test_a_packet_of_another_length_is_an_error(driver: Driver, data: bytes) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        socket.send_fds(peer, [data], [0])
        peer.send(frame("next"))
        with pytest.raises(Error) as caught:
            here.receive()
        assert_refused(caught)
        assert here.receive() == "next"


BAD_BODIES = {
    "no-json": (b"{", 0),
    "nothing": (b"", 0),
    "not-utf-8": (b'"\xff"', 0),
    "two-objects": (b"{} {}", 0),
    "nan": (b"[NaN]", 0),
    "nested": (b"[" * 1_000_00, 0),
    "nested-maps": (b'{"a":' * 100_000, 0),
    "a-place-too-many": (b'{"$fd":0}', 0),
    "a-place-beyond": (b'[{"$fd":0},{"$fd":2}]', 2),
    "a-negative-place": (b'[{"$fd":-1}]', 1),
    "a-place-that-is-no-number": (b'[{"$fd":true},{"$fd":0}]', 2),
    "a-place-that-is-text": (b'[{"$fd":"0"}]', 1),
    "a-place-and-a-name-too-many": (b'[{"$fd":[0,"a","b"]}]', 1),
    "a-place-with-no-name": (b'[{"$fd":[0,1]}]', 1),
    "a-place-of-two-with-names": (b'[{"$fd":[0,"a"]},{"$fd":[0,"b"]}]', 1),
    "a-name-and-then-no-json": (b'[{"$fd":[0,"a"]},', 2),
    "a-place-of-two": (b'[{"$fd":0},{"$fd":0}]', 1),
    "no-place": (b"[]", 1),
    "a-name-twice": (b'{"a":{"$fd":0},"a":1}', 1),
    "an-escaped-mark": (b'[{"\\u0024fd":0}]', 0),
}


@pytest.mark.parametrize("name", BAD_BODIES)
@pytest.mark.parametrize("codec", ["json", "literal"])
def test_a_body_that_does_not_decode_is_an_error_and_the_next_message_arrives(
    kind: int, driver: Driver, name: str, codec: str
) -> None:
    functions = CODECS[codec]()
    if codec == "literal":
        functions["loads"] = json.loads
        if name in ("nan", "a-name-twice"):
            pytest.skip("what the codec makes of it is its own")
    body, count = BAD_BODIES[name]
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    pipe, writer = os.pipe()
    with peer, driver.Channel(driver.Conduit.from_conn(mine), **functions) as here:
        mine.close()
        if kind == socket.SOCK_SEQPACKET:
            body = body[:60_000]
        fds = [writer] * count
        sending = Call(send_all, peer, frame(body, count), fds)
        with pytest.raises(Error, match="does not decode") as caught:
            here.receive()
        sending.result()
        os.close(writer)
        assert_refused(caught)
        assert is_at_eof(pipe)
        peer.send(frame("next"))
        assert here.receive() == "next"


def send_all(peer: socket.socket, data: bytes, fds: list[int]) -> None:
    sent = socket.send_fds(peer, [data], fds) if fds else peer.send(data)
    if sent < len(data):
        peer.sendall(data[sent:])


def test_what_is_no_place_is_told_in_short(kind: int, driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        peer.send(frame({"$fd": "x" * 10_000}))
        with pytest.raises(Error) as caught:
            here.receive()
        assert len(str(caught.value)) < 300


def test_what_loads_raises_is_the_cause_of_the_error(kind: int, driver: Driver) -> None:
    def loads(body: bytes) -> Any:
        raise LookupError("of its own")

    one, other = driver.Conduit.pair(type=kind)
    with driver.Channel(one) as here, driver.Channel(other, dumps=repr, loads=loads) as there:  # type: ignore[arg-type]
        here.send([file()])
        with pytest.raises(Error, match="of its own") as caught:
            there.receive()
        assert_refused(caught)
        assert isinstance(caught.value.__cause__, LookupError)


@only_blocking
def test_what_a_handler_raises_while_a_message_is_decoded_stays_itself(channels: Ends) -> None:
    def loads(body: bytes) -> Any:
        signal.raise_signal(signal.SIGUSR1)

    here, there = channels
    pipe, writer = os.pipe()
    here.send([Descriptor(writer)])
    with Channel(there.conduit, dumps=repr, loads=loads) as reading:  # type: ignore[arg-type]
        with handling(signal.SIGUSR1, raise_alarm), pytest.raises(Alarm):
            reading.receive()
    assert is_at_eof(pipe)


def in_file(body: bytes, length: int, count: int, total: int) -> bytes:
    return header(flags=1, length=length, count=count, total=total)


def seal(fd: int, seals: int) -> int:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def sealable(body: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, body)
    return fd


def test_a_body_whose_file_cannot_be_sealed_is_refused_and_the_channel_goes_on(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conduit.wire._SEALS", 1 << 20)  # none that fcntl(2) knows
    one, other = driver.Conduit.pair(type=socket.SOCK_SEQPACKET)
    with driver.Channel(one) as here, driver.Channel(other) as there:
        with pytest.raises(Error, match="there is no file for it") as caught:
            here.send("x" * 1_000_000)
        assert caught.value.errno == errno.EINVAL
        here.send("short")
        assert there.receive() == "short"


def test_a_body_may_come_in_a_sealed_file(kind: int, driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        fds = [seal(sealable(b'[{"$fd":0}]'), SEALS), memory(b"x")]
        socket.send_fds(peer, [header(flags=0x81, length=11, count=2, total=1)], fds)
        with here.receiving() as obj:
            assert contents(obj) == [b"x"]
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sealable(b"[]"),
        lambda: seal(sealable(b"[]"), fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW),
        lambda: seal(sealable(b"[]"), fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW),
        lambda: seal(sealable(b"[] "), SEALS),
        lambda: seal(sealable(b"["), SEALS),
        lambda: memory(b"[]"),
        lambda: os.open(os.devnull, os.O_RDONLY),
        lambda: socket.socket().detach(),
        lambda: write_only(seal(sealable(b"[]"), SEALS)),
        lambda: None,
    ],
)
def test_a_file_that_could_change_or_is_none_is_no_body(
    kind: int, driver: Driver, make: Callable[[], int | None]
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        fd = make()
        if fd is None:
            peer.send(header(flags=1, length=2))
        else:
            socket.send_fds(peer, [header(flags=1, length=2, count=1)], [fd])
            os.close(fd)
        with pytest.raises(Error) as caught:
            here.receive()
        assert_refused(caught)
        peer.send(frame("next"))
        assert here.receive() == "next"


def write_only(fd: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_PATH)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 1, "flags": 0x02},
        {"kind": 1, "total": 3},
        {"kind": 1, "total": 1},
        {"kind": 1, "total": 5000},
    ],
)
def test_a_message_that_is_false_about_itself_is_an_error_and_the_next_arrives(
    kind: int, driver: Driver, fields: dict[str, int]
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        fields = {"total": 2, **fields}
        socket.send_fds(peer, [frame(b'[{"$fd":0},{"$fd":1}]', 2, **fields)], [0, 0])
        peer.send(frame("next"))
        with pytest.raises(Error) as caught:
            here.receive()
        assert_refused(caught)
        assert here.receive() == "next"


def test_what_a_later_version_adds_is_ignored(kind: int, driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        socket.send_fds(peer, [frame({"new": 1}, 2, kind=0x80)], [0, 0])
        peer.send(header(kind=3, number=99))
        peer.send(frame("a flag", flags=0x10))
        longer = header(size=32, length=8) + b"8 bytes!" + b'"header"'
        peer.send(longer)
        assert [here.receive(), here.receive()] == ["a flag", "header"]
        if kind == socket.SOCK_STREAM:
            for byte in longer:
                peer.send(bytes([byte]))
            assert here.receive() == "header"


def test_descriptors_of_a_stream_may_come_with_any_byte_of_their_frame(driver: Driver) -> None:
    mine, peer = socket.socketpair()
    given = files(3)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        data = frame(b'[{"$fd":0},{"$fd":1}]', 2)
        for part, fd in ((data[:24], given[0]), (data[24:30], given[1])):
            socket.send_fds(peer, [part], [fd.fileno()])
        peer.send(data[30:])
        with here.receiving() as obj:
            assert contents(obj) == [b"0", b"1"]
        for fd in given:
            socket.send_fds(peer, [data[:30]] if fd is given[0] else [b"x"], [fd.fileno()])
        with pytest.raises(Error, match="3 descriptors came, but 2 were announced"):
            here.receive()
    close_all(given)


def test_frames_of_several_messages_may_stand_between_each_other(kind: int, driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    given = files(6)
    numbers = [fd.fileno() for fd in given]
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        for place in (0, 3, 1, 4):
            data = header(kind=2, count=1, total=3, number=1 + place // 3)
            socket.send_fds(peer, [data], [numbers[place]])
        body = b'[{"$fd":0},{"$fd":1},{"$fd":2}]'
        peer.send(frame("between"))
        socket.send_fds(peer, [frame(body, 1, total=3, number=2)], [numbers[5]])
        socket.send_fds(peer, [frame(body, 1, total=3, number=1)], [numbers[2]])
        assert here.receive() == "between"
        for expected in ([b"3", b"4", b"5"], [b"0", b"1", b"2"]):
            with here.receiving() as obj:
                assert contents(obj) == expected
    close_all(given)


def test_descriptors_ahead_of_no_end_are_held_up_to_the_limit_and_closed_at_last(
    kind: int, driver: Driver
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    before = len(open_descriptors())
    with peer, driver.Channel(driver.Conduit.from_conn(mine), max_fds=10) as here:
        mine.close()
        for number in range(1, 51):
            data = header(kind=2, count=2, total=9, number=number)
            socket.send_fds(peer, [data], [0, 0])
        socket.send_fds(peer, [header(kind=2, count=2, total=90, number=3)], [0, 0])
        peer.send(header(kind=2, total=9, number=77))
        peer.send(frame("next"))
        assert here.receive() == "next"
        assert len(open_descriptors()) <= before + 10 + 5
        socket.send_fds(peer, [frame(b"[]", 1, total=3, number=4)], [0])
        with pytest.raises(Error) as caught:
            here.receive()
        assert_refused(caught)


def test_a_peer_that_sends_what_nobody_asked_for_does_not_stop_the_loop(driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        for _ in range(100):
            peer.send(frame("ignored", kind=0x99))
        peer.send(frame("next"))
        assert here.receive() == "next"


@only_blocking
def test_a_receive_that_does_not_wait_does_not_receive_without_end_either(driver: Driver) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        here.conduit.timeout = 0
        for _ in range(20):
            peer.send(frame("ignored", kind=0x99))
        peer.send(frame("next"))
        for _ in range(2):
            with pytest.raises(WouldBlockError, match="more to come"):
                here.receive()
        assert here.receive() == "next"


@only_blocking
def test_a_deadline_holds_whatever_a_peer_sends_that_nobody_asked_for(
    kind: int, driver: Driver
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, driver.Channel(driver.Conduit.from_conn(mine)) as here:
        mine.close()
        here.conduit.timeout = 0.2
        # On a stream, as much as leaves no gap.
        data = frame("", kind=0x99) * (100 if kind == socket.SOCK_STREAM else 1)
        with flooding(peer, data):
            select.select([here], [], [])
            begun = time.monotonic()
            with pytest.raises(TransferTimeoutError):
                here.receive()
            assert 0.19 < time.monotonic() - begun < GENEROUS


@only_blocking
def test_a_deadline_is_that_of_all_the_frames_of_a_message(channels: Ends) -> None:
    here, there = channels
    with socket.socket(fileno=os.dup(here.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    # Far more than there is room for, or is read in any time that a test may take.
    here._owed.update(map(abandonment, range(1, 4000)))
    here.conduit.timeout, there.conduit.timeout = 0.2, 0
    ended = threading.Event()

    def read_slowly() -> None:
        while not ended.wait(0.05):
            with contextlib.suppress(WouldBlockError):
                for _ in range(3):
                    there.conduit.receive(100)

    reading = Call(read_slowly)
    with file() as mine:
        begun = time.monotonic()
        try:
            with pytest.raises(TransferTimeoutError):
                here.send(mine)
            assert 0.19 < time.monotonic() - begun < GENEROUS
            assert not mine.closed
        finally:
            ended.set()
            reading.result()


@only_blocking
def test_descriptors_for_which_there_is_no_room_end_a_stream_and_not_packets(
    channels: Ends, kind: int
) -> None:
    here, there = channels
    given = [file(b"%d" % place) for place in range(3)]
    here.send(given)
    here.send("next")
    with room_for(2), pytest.raises(Error) as caught:
        there.receive()
    assert caught.value.errno == errno.EMFILE
    if kind == socket.SOCK_SEQPACKET:
        assert there.receive() == "next"
    else:
        with pytest.raises(Error, match="out of step"):
            there.receive()


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "magic": st.sampled_from([0x43FD, 0]),
        "version": st.sampled_from([0, 1, 2]),
        "size": st.sampled_from([0, 24, 25, 255]),
        "kind": st.sampled_from([1, 1, 1, 2, 2, 3, 0, 200]),
        "flags": st.sampled_from([0, 0, 0, 1, 2, 16]),
        "count": st.integers(0, 4),
        "total": st.sampled_from([0, 1, 2, 3, 4, 5, 1 << 31]),
        "length": st.sampled_from([0, 2, 9, 20, 21, 100, 1 << 30]),
        "number": st.integers(0, 2),
    },
)
BODIES = st.sampled_from(
    [b"", b"[]", b'{"$fd":0}', b'[{"$fd":0},{"$fd":1}]', b"\xff" * 30, b"[" * 9]
)
STEPS = st.lists(
    st.tuples(st.booleans(), FIELDS, BODIES, st.integers(0, 3), st.booleans()), max_size=12
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@given(steps=STEPS)
@settings(deadline=None, max_examples=150)
def test_whatever_a_peer_sends_is_a_message_or_an_error_and_nothing_stays_open(
    kind: int, steps: list[Any]
) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with peer, Channel(Conduit.from_conn(mine), max_fds=4) as here:
        mine.close()
        here.conduit.timeout = 0
        with pytest.raises(WouldBlockError):
            here.receive()
        before = len(open_descriptors())
        for honest, fields, body, extra, cut in steps:
            fds = body.count(b"fd") if honest else extra
            data = frame(body, fds) if honest else header(**fields) + body
            if cut:
                data = data[: len(data) // 2 + 1]
            socket.send_fds(peer, [data], [0] * fds) if fds else peer.send(data)
            try:
                obj = here.receive()
            except WouldBlockError:
                continue
            except Error as exc:
                assert exc.type in (ErrType.BAD_CTRL_MESG, ErrType.FAILED_TRANSFER)
            else:
                found = str(obj).count("conduit.Descriptor")
                assert len(open_descriptors()) <= before + found + 4 + 3
                close_descriptors(obj)
        # What is held is bounded: of the frame under way, and ahead of ends to come.
        assert len(open_descriptors()) <= before + 4 + 3
    del here


# The rest


def test_a_channel_says_what_it_is_over(channels: Ends) -> None:
    here, there = channels
    assert (
        repr(here).endswith(f"Channel over {here.conduit._conduit!r}>")
        if hasattr(here.conduit, "_conduit")
        else repr(here) == f"<conduit.Channel over {here.conduit!r}>"
    )
    assert here.fileno() == here.conduit.fileno()
    assert not here.closed
    here.close()
    here.close()
    assert here.closed
    with pytest.raises(Error) as caught:
        here.send(1)
    assert caught.value.type is ErrType.NO_FD
    with pytest.raises(PeerClosedError):
        there.receive()


def test_a_channel_is_made_over_a_conduit_that_keeps_an_order() -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(TypeError, match="from_conn"):
        Channel(sock)  # type: ignore[arg-type]
    one, other = Conduit.pair(type=socket.SOCK_DGRAM)
    with one, other, pytest.raises(ValueError, match="datagrams"):
        Channel(one)
    one, other = Conduit.pair()
    with one, other:
        impossible: list[dict[str, Any]] = [{"max_size": 0}, {"max_size": 1 << 32}, {"max_fds": -1}]
        for limits in impossible:
            with pytest.raises(ValueError, match="must be at least"):
                Channel(one, **limits)
    with pytest.raises(Error):
        Channel(one)


def test_an_async_channel_takes_over_a_blocking_conduit() -> None:
    import anyio

    from conduit.aio import AsyncChannel

    async def main() -> None:
        one, other = Conduit.pair()
        async with AsyncChannel(one) as here, AsyncChannel(other) as there:
            assert here.conduit.fileno() == here.fileno() == one.fileno()
            await here.send({"file": file(b"x")})
            async with there.receiving() as obj:
                assert contents([obj["file"]]) == [b"x"]

    anyio.run(main)


def test_descriptors_of_any_object_are_closed_together() -> None:
    fds = files(5)
    looped: list[Any] = [fds[4]]
    looped.append(looped)
    close_descriptors(
        {"a": fds[0], "b": [fds[1], (fds[2], 3, {"c": fds[3]})], "d": looped, "e": None}
    )
    assert all(fd.closed for fd in fds)


def test_what_was_taken_out_of_a_message_stays_open(channels: Ends) -> None:
    channels[0].send({"taken": file(b"t"), "left": file(b"l"), "gone": file()})
    with channels[1].receiving() as obj:
        taken = obj["taken"].to_file("rb")
        left = obj["left"].fileno()
        del obj["gone"]
    assert taken.read() == b"t"
    assert not is_open(left)
    taken.close()


def test_what_is_no_socket_is_an_error_that_names_it() -> None:
    with open(os.devnull) as file, Conduit.from_file(file, name="null") as link:
        with pytest.raises(Error, match=r"'null'.*not a socket") as caught:
            Channel(link)
    assert caught.value.errno == errno.ENOTSOCK


def test_keys_of_bytes_are_compared_with_no_text() -> None:
    code = """if 1:
        import marshal, os
        from conduit import Channel, Conduit
        one, other = [Channel(end, dumps=marshal.dumps, loads=marshal.loads)
                      for end in Conduit.pair()]
        with one, other, open(os.devnull) as file:
            one.send({b"key": file}, keep=True)
            other.receive()[b"key"].close()
    """
    words = [sys.executable, "-P", "-bb", "-c", code]
    said = subprocess.run(words, capture_output=True, text=True, timeout=GENEROUS, check=False)
    assert (said.returncode, said.stderr) == (0, "")
