"""Descriptors go wherever multiprocessing pickles: what arrives, and what happens to the rest."""

from __future__ import annotations

import _thread
import contextlib
import copy
import errno
import gc
import io
import multiprocessing
import os
import pickle
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Self

import pytest
import workers
from helpers import (
    GENEROUS,
    SANITIZED,
    Call,
    handling,
    in_child,
    is_open,
    memory,
    needs_descriptors,
    not_traced,
    open_descriptors,
    room_for,
    run_python,
)
from sides import NOBODY, beside, is_at_eof, needs_root

import conduit.multiprocessing
from conduit import Conduit, Descriptor, Error, ErrType, Listener, Peer

module: Any = conduit.multiprocessing

# Other tests leave threads running, with which Python 3.12 and later do not like to fork.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module", autouse=True)
def helper_processes() -> Iterator[None]:
    """Start what multiprocessing goes on with for ever, so that no test seems to have leaked it."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    yield
    servers: list[Any] = [forkserver._forkserver, resource_tracker._resource_tracker]
    for server in servers:
        server._stop()


@pytest.fixture(autouse=True)
def nothing_waits_on_a_shelf() -> Iterator[None]:
    yield
    conduit.multiprocessing.register()
    try:
        for shelf in module._shelves[:]:
            assert shelf.ended.wait(GENEROUS), "something was sent and not taken"
    finally:
        with module._lock:
            module._close_all()


@pytest.fixture(autouse=True)
def threads_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage see the threads of the module, too, which are none of `threading`."""
    trace, start = threading.gettrace(), _thread.start_new_thread

    def start_traced(function: Callable[[], None], args: tuple[()]) -> int:
        def run() -> None:
            sys.settrace(trace)
            function()

        return start(run, args)

    if trace is not None:
        monkeypatch.setattr(_thread, "start_new_thread", start_traced)


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> Any:
    if SANITIZED and request.param == "fork":
        # A thread that starts or ends meanwhile holds a lock of its allocator, in the child for
        # ever.
        pytest.skip("AddressSanitizer does not survive a fork beside threads")
    return multiprocessing.get_context(request.param)


def dumps(thing: Any) -> bytes:
    """Pickle as multiprocessing does.

    Not the buffer that it returns: one that is collected with a traceback crashes Python 3.12.
    """
    return bytes(ForkingPickler.dumps(thing))


def sent(thing: Any) -> Any:
    """Pickle as multiprocessing does, and unpickle."""
    return ForkingPickler.loads(dumps(thing))


def named(name: str, content: bytes = b"") -> Descriptor:
    return Descriptor(memory(content), name)


class Things:
    """One of each thing, and the other ends of them."""

    def __init__(self, directory: Path) -> None:
        self._stack = contextlib.ExitStack()
        keep = self._stack.enter_context
        path = directory / "file"
        path.write_bytes(b"first\nsecond\n")
        sock, self.peer = map(keep, socket.socketpair())
        link, self.link = map(keep, Conduit.pair())
        link = keep(Conduit.from_conn(link, name="a link"))
        link.timeout = 7.0
        listener = keep(Listener(directory / "listener"))
        self.client = keep(Conduit.connect(directory / "listener"))
        self.file = keep(open(path, "rb"))
        assert self.file.readline() == b"first\n"
        self.all: list[Any] = [link, keep(named("some", b"memory")), listener, sock, self.file]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def check(self, seen: list[str]) -> None:
        """See that a worker used each of them, and that they are open here."""
        assert seen == ["a link 7.0", "some memory", "listener", "None", "rb second\n"]
        for other in (self.link, self.client):
            other.timeout = GENEROUS
            assert other.receive().data == b"from the worker"
        assert self.peer.recv(100) == b"from the worker"
        for thing in self.all:
            os.fstat(thing.fileno())
        assert os.path.exists(self.all[2].path), "the path is the sender's to remove"


@pytest.fixture
def things(tmp_path: Path) -> Iterator[Things]:
    with Things(tmp_path) as made:
        yield made


def run(context: Any, target: Callable[..., None], *args: Any) -> Any:
    """Run a function in a process of its own, with a pipe first; what it sent, None for nothing."""
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(writer, *args))
    with reader:
        with writer:
            process.start()
        try:
            answer = reader.recv() if reader.poll(GENEROUS) else None
            process.join(GENEROUS)
            assert process.exitcode == 0
        except EOFError:
            raise AssertionError("it failed; its standard error says why")
        finally:
            process.kill()
            process.join()
            process.close()
    return answer


# Each way to another process


def by_args(context: Any, things: list[Any]) -> Any:
    return run(context, workers.answer, things)


def by_queue(context: Any, things: list[Any]) -> Any:
    queue = context.Queue()
    queue.put(things)
    try:
        return run(context, workers.answer_from_queue, queue)
    finally:
        queue.close()
        queue.join_thread()


def by_simple_queue(context: Any, things: list[Any]) -> Any:
    queue = context.SimpleQueue()
    queue.put(things)
    try:
        return run(context, workers.answer_from_queue, queue)
    finally:
        queue.close()


def by_pipe(context: Any, things: list[Any]) -> Any:
    reader, writer = context.Pipe()
    with reader, writer:
        writer.send(things)
        return run(context, workers.answer_from_pipe, reader)


def by_executor(context: Any, things: list[Any]) -> Any:
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(workers.use_all, things).result(GENEROUS)


def by_pool(context: Any, things: list[Any]) -> Any:
    with context.Pool(1) as pool:
        answer = pool.apply_async(workers.use_all, (things,)).get(GENEROUS)
        pool.close()
        pool.join()
    return answer


def by_managed_queue(context: Any, things: list[Any]) -> Any:
    with context.Manager() as manager:
        queue = manager.Queue()
        queue.put(things)
        return run(context, workers.answer_from_queue, queue)


def by_managed_dict(context: Any, things: list[Any]) -> Any:
    with context.Manager() as manager:
        shared = manager.dict(things=things)
        return run(context, workers.answer_from_dict, shared)


def by_grandchild(context: Any, things: list[Any]) -> Any:
    return run(context, workers.answer_by_child, context.get_start_method(), things)


@pytest.mark.parametrize(
    "way",
    [
        by_args, by_queue, by_simple_queue, by_pipe, by_executor, by_pool, by_managed_queue,
        by_managed_dict, by_grandchild,
    ],
)  # fmt: skip
def test_each_thing_goes_each_way_and_is_shared(
    context: Any, things: Things, way: Callable[[Any, list[Any]], Any]
) -> None:
    things.check(way(context, things.all))
    pickled = way not in (by_args, by_grandchild) or context.get_start_method() != "fork"
    # What a fork copies has a buffer of its own, and has read all of it.
    assert things.file.tell() == len(b"first\nsecond\n" if pickled else b"first\n")


def test_a_worker_returns_what_it_has_opened(context: Any) -> None:
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        with executor.submit(workers.return_open).result(GENEROUS) as descriptor:
            assert os.pread(descriptor.fileno(), 100, 0) == b"a result"
            assert descriptor.name == "result"


def test_what_a_manager_stores_is_had_as_often_as_it_is_asked_for(context: Any) -> None:
    with context.Manager() as manager:
        shared = manager.dict()
        process = context.Process(target=workers.store, args=(shared,))
        process.start()
        process.join(GENEROUS)
        process.close()
        for _ in range(2):
            with shared["one"] as one, shared["other"] as other:
                assert os.pread(one.fileno(), 100, 0) == b"stored"
                assert os.pread(other.fileno(), 100, 0) == b"as well"


def test_a_spawned_process_inherits_and_no_thread_is_started(things: Things) -> None:
    context: Any = multiprocessing.get_context("spawn")
    process = context.Process(target=workers.use_all, args=(things.all,))
    process.start()
    assert module._shelves == []
    process.join(GENEROUS)
    assert process.exitcode == 0
    process.close()


# What arrives


def test_a_descriptor_has_its_name_and_is_closed_in_children() -> None:
    with named("a name") as descriptor, sent(descriptor) as arrived:
        assert type(arrived) is Descriptor
        assert arrived.name == "a name"
        assert arrived.is_same_file(descriptor)
        assert not os.get_inheritable(arrived.fileno())


def test_a_conduit_has_its_name_and_timeout_and_owns_its_socket() -> None:
    one, other = socket.socketpair()
    with one, other:
        conduit_ = Conduit(one.fileno(), "borrowed")
        conduit_.timeout = 0.25
        with sent(conduit_) as arrived:
            assert (arrived.name, arrived.timeout) == ("borrowed", 0.25)
            arrived.transfer(data=b"same socket")
            number = arrived.fileno()
        assert not is_open(number)
        assert other.recv(100) == b"same socket"


def test_a_listener_leaves_the_path_to_the_sender(tmp_path: Path) -> None:
    with Listener(tmp_path / "s") as listener:
        with sent(listener) as arrived:
            assert arrived.path == listener.path
            with Conduit.connect(tmp_path / "s"), arrived.accept(1):
                pass
        assert os.path.exists(tmp_path / "s")
    assert not os.path.exists(tmp_path / "s")


def test_a_listener_takes_along_whom_it_allows(tmp_path: Path) -> None:
    with Listener(tmp_path / "s", allow=workers.nobody) as listener, sent(listener) as arrived:
        with Conduit.connect(tmp_path / "s"), pytest.raises(Error) as caught:
            arrived.accept(0.01)
    assert caught.value.errno == errno.ETIMEDOUT


def test_an_abstract_listener_goes_too() -> None:
    name = f"@conduit-test-{os.getpid()}"
    with Listener(name) as listener, sent(listener) as arrived:
        with Conduit.connect(name), arrived.accept(1):
            pass


def test_an_allow_that_cannot_be_pickled_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    def local(peer: Peer) -> bool:
        return True

    with Listener(tmp_path / "s", allow=local) as listener:
        with pytest.raises((AttributeError, pickle.PicklingError)):
            dumps(listener)
    assert module._shelves == []


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_a_socket_has_its_timeout(timeout: float | None) -> None:
    with socket.socket() as sock:
        sock.settimeout(timeout)
        with sent(sock) as arrived:
            assert arrived.gettimeout() == timeout
            assert (arrived.family, arrived.type) == (sock.family, sock.type)
            assert os.path.sameopenfile(arrived.fileno(), sock.fileno())
        assert sock.gettimeout() == timeout


MODES = ["rb", "wb", "ab", "xb", "r+b", "w+b", "a+b"]


@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("mode", MODES)
def test_a_file_is_of_the_same_kind_and_where_the_sender_was(
    tmp_path: Path, mode: str, buffering: int
) -> None:
    path = tmp_path / "f"
    if mode != "xb":
        path.write_bytes(b"0123456789")
    with open(path, mode, buffering) as file:
        if file.readable():
            file.seek(0)
            if not mode.startswith("w"):
                assert file.read(4) == b"0123"
        else:
            file.write(b"written")
        position = file.tell()
        with sent(file) as arrived:
            assert type(arrived) is type(file)
            assert arrived.name == file.name
            assert arrived.readable() == file.readable()
            assert arrived.writable() == file.writable()
            if mode != "xb":
                assert arrived.mode == file.mode.replace("w+", "r+").replace("wb+", "rb+")
            assert arrived.tell() == position
            assert file.tell() == position
            if mode == "a+b":
                arrived.write(b"end")
                arrived.flush()
    assert path.read_bytes().endswith(b"end") is (mode == "a+b")


def test_a_reader_over_a_file_that_is_written_too_only_reads(tmp_path: Path) -> None:
    with io.BufferedReader(io.FileIO(tmp_path / "f", "w+")) as reader, sent(reader) as arrived:
        assert type(arrived) is io.BufferedReader


def test_an_unnamed_file_has_a_number_for_its_name() -> None:
    with open(memory(b"x"), "rb") as file, sent(file) as arrived:
        assert arrived.name == arrived.fileno()


def test_a_file_that_conduit_made_goes_too() -> None:
    one, other = socket.socketpair()
    with one, other:
        with Descriptor(os.dup(one.fileno())).to_file() as duplex, sent(duplex) as arrived:
            assert type(arrived) is type(duplex)
            arrived.write(b"both ways")
            arrived.flush()
        assert other.recv(100) == b"both ways"
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with Descriptor(reader).to_file() as waiting, sent(waiting) as arrived:
        with open(writer, "wb") as end:
            end.write(b"comes")
        assert arrived.read() == b"comes"


def test_a_named_temporary_file_goes_as_a_file_and_keeps_its_name() -> None:
    with tempfile.NamedTemporaryFile() as temporary:
        temporary.write(b"not flushed")
        with sent(temporary) as arrived:
            assert type(arrived) is io.BufferedRandom
            assert os.pread(arrived.fileno(), 100, 0) == b"not flushed"
        assert os.path.exists(temporary.name)


def test_standard_input_goes_to_a_worker_under_another_number(context: Any) -> None:
    with named("null", b"in") as descriptor:
        before = os.dup(0)
        try:
            os.dup2(descriptor.fileno(), 0)
            with open(0, "rb", closefd=False) as stdin, named("some", b"other") as other:
                if context.get_start_method() != "fork":
                    assert run(context, workers.read_both, other, stdin) == b"in"
                queued = context.SimpleQueue()
                queued.put([stdin])
                [arrived] = queued.get()
                with arrived:
                    assert arrived.fileno() > 2
                queued.close()
        finally:
            os.dup2(before, 0)
            os.close(before)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_two_objects_of_one_number_arrive_as_two(method: str, tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context(method)
    (tmp_path / "f").write_bytes(b"one file")
    with open(tmp_path / "f", "rb") as file:
        assert run(context, workers.read_both, file, file.raw) == b"one file"


# What is refused


def test_a_text_file_is_refused_with_what_to_send(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w") as file, pytest.raises(TypeError, match=r"file\.buffer"):
        dumps(file)
    assert module._shelves == []


def test_a_reader_that_would_lose_bytes_is_refused() -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as file, open(writer, "wb", 0) as end:
        end.write(b"first\nsecond\n")
        assert file.readline() == b"first\n"
        with pytest.raises(Error, match="read ahead") as caught:
            dumps(file)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert file.readline() == b"second\n"


def test_a_tls_socket_is_refused() -> None:
    with ssl.create_default_context().wrap_socket(
        socket.socket(), server_hostname="x", do_handshake_on_connect=False
    ) as sock:
        with pytest.raises(TypeError, match="SSLSocket"):
            dumps(sock)


@pytest.mark.parametrize("make", [Conduit.pair, socket.socketpair, lambda: (named("x"),) * 2])
def test_what_is_closed_is_refused(make: Callable[[], Any]) -> None:
    one, other = make()
    one.close()
    other.close()
    with pytest.raises(Error) as caught:
        dumps(one)
    assert caught.value.type is ErrType.NO_FD


def test_pickle_and_copy_refuse_and_name_the_module(tmp_path: Path) -> None:
    one, other = Conduit.pair()
    with one, other, named("x") as descriptor, Listener(tmp_path / "s") as listener:
        for thing in (one, descriptor, listener):
            for refused in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match=r"conduit\.multiprocessing"):
                    refused(thing)
    with open(tmp_path / "f", "wb") as file, pytest.raises(TypeError):
        pickle.dumps(file)


def test_without_the_module_multiprocessing_refuses_and_names_it() -> None:
    done = run_python(
        "import multiprocessing, conduit\n"
        "reader, writer = multiprocessing.Pipe()\n"
        "with conduit.Conduit.pair()[0] as link:\n"
        "    writer.send(link)\n"
    )
    assert "TypeError: cannot pickle" in done.stderr
    assert "conduit.multiprocessing lets a Conduit" in done.stderr


@pytest.mark.parametrize("lifetime", [0, -1, float("nan")])
def test_a_lifetime_is_more_than_nothing(lifetime: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        conduit.multiprocessing.register(lifetime=lifetime)
    assert module._lifetime == 3600


def test_to_register_again_puts_back_what_another_has_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reducers: Any = ForkingPickler
    monkeypatch.setitem(reducers._extra_reducers, Descriptor, lambda descriptor: (int, ()))
    with named("x") as descriptor:
        assert sent(descriptor) == 0
        conduit.multiprocessing.register()
        sent(descriptor).close()


# What is not taken


class Pipe:
    """A pipe whose writing end is somebody's; the reading one tells when all copies are closed."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.writer = Descriptor(writer, "writer")

    def wait_until_closed(self) -> None:
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        assert poll.poll(GENEROUS * 1000), "a copy of the writing end is open"
        assert is_at_eof(self.reader)


def test_what_is_never_unpickled_is_closed_when_its_lifetime_is_over() -> None:
    pipe = Pipe()
    conduit.multiprocessing.register(lifetime=0.05)
    pickled = dumps(pipe.writer)
    pipe.writer.close()
    pipe.wait_until_closed()
    with pytest.raises(Error, match="not in time") as caught:
        ForkingPickler.loads(pickled)
    assert caught.value.type is ErrType.FAILED_TRANSFER


def test_what_was_sent_later_lives_on_when_the_lifetime_of_the_first_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Pipe(), Pipe()
    now = [module.monotonic()]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    conduit.multiprocessing.register(lifetime=10)
    dumps(first.writer)
    now[0] += 6
    pickled = dumps(second.writer)
    now[0] += 6
    [shelf] = module._shelves
    # It looks at the time when it is woken.
    Conduit.connect(shelf.address).close()
    first.writer.close()
    first.wait_until_closed()
    ForkingPickler.loads(pickled).close()
    second.writer.close()
    second.wait_until_closed()


def test_each_lifetime_holds_for_what_was_sent_under_it() -> None:
    pipe = Pipe()
    with named("long", b"long") as descriptor:
        long = dumps(descriptor)
    conduit.multiprocessing.register(lifetime=0.05)
    # Nothing expires meanwhile.
    with module._lock:
        dumps(pipe.writer)
        assert len(module._shelves) == 2
    pipe.writer.close()
    pipe.wait_until_closed()
    with ForkingPickler.loads(long) as arrived:
        assert os.pread(arrived.fileno(), 100, 0) == b"long"


def test_a_lifetime_may_have_no_end() -> None:
    conduit.multiprocessing.register(lifetime=float("inf"))
    with named("x") as descriptor:
        sent(descriptor).close()


def test_what_was_unpickled_once_is_gone() -> None:
    with named("once") as descriptor, named("other") as other:
        pickled = dumps(descriptor)
        waiting = dumps(other)
        ForkingPickler.loads(pickled).close()
        with pytest.raises(Error, match=r"'once'.*unpickled before"):
            ForkingPickler.loads(pickled)
        [shelf] = module._shelves
        ForkingPickler.loads(waiting).close()
        assert shelf.ended.wait(GENEROUS)
        with pytest.raises(Error, match="unpickled before") as caught:
            ForkingPickler.loads(waiting)
        assert caught.value.errno == errno.ECONNREFUSED


def test_nothing_is_left_when_all_was_taken() -> None:
    before, threads = open_descriptors(), len(os.listdir("/proc/self/task"))
    with named("x") as descriptor:
        arrived = [sent(descriptor) for _ in range(20)]
    for each in arrived:
        each.close()
    with module._lock:
        shelves = module._shelves[:]
    for shelf in shelves:
        assert shelf.ended.wait(GENEROUS)
    assert open_descriptors() == before
    while len(os.listdir("/proc/self/task")) > threads:
        os.sched_yield()


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_a_worker_that_is_killed_takes_nothing_along_that_stays_open(
    context: Any, kind: str
) -> None:
    conduit.multiprocessing.register(lifetime=1.0)
    pipe = Pipe()
    queue = getattr(context, kind)()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=workers.wait_to_be_killed, args=(writer, queue))
    process.start()
    with reader, writer:
        os.kill(reader.recv(), signal.SIGKILL)
        queue.put(pipe.writer)
        queue.close()
        if kind == "Queue":
            # A thread of its own pickles.
            queue.join_thread()
    process.join(GENEROUS)
    process.close()
    pipe.writer.close()
    pipe.wait_until_closed()


def test_a_worker_of_an_executor_that_dies_leaves_nothing_open(context: Any) -> None:
    conduit.multiprocessing.register(lifetime=1.0)
    pipe = Pipe()
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        futures: list[Any] = [executor.submit(workers.kill_itself, pipe.writer)]
        # Unless it is dead already.
        with contextlib.suppress(BrokenProcessPool):
            futures.extend(executor.submit(workers.use, pipe.writer) for _ in range(3))
        for future in futures:
            with pytest.raises(BrokenProcessPool):
                future.result(GENEROUS)
    pipe.writer.close()
    pipe.wait_until_closed()


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_closes_what_it_sent_and_nobody_took(method: str) -> None:
    assert run(multiprocessing.get_context(method), workers.forget) == 0


def test_what_a_dead_process_has_sent_cannot_be_had(context: Any) -> None:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=workers.send_and_die, args=(writer,))
    process.start()
    process.join(GENEROUS)
    process.close()
    with reader, writer, pytest.raises(Error, match="has ended") as caught:
        reader.recv()
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_a_worker_that_returns_waits_until_its_result_is_taken(context: Any, kind: str) -> None:
    queue = getattr(context, kind)()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=workers.put_and_return, args=(queue, writer))
    process.start()
    with reader, writer:
        assert reader.recv() == "ending"
    with queue.get() as descriptor:
        assert os.pread(descriptor.fileno(), 100, 0) == b"of one that ends"
    process.join(GENEROUS)
    assert process.exitcode == 0
    process.close()
    queue.close()


def test_a_worker_that_returns_does_not_wait_for_ever(context: Any) -> None:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=workers.send_and_return, args=(writer, 0.1))
    process.start()
    process.join(GENEROUS)
    assert process.exitcode == 0
    process.close()
    with reader, writer, pytest.raises(Error, match=r"'late'.*has ended"):
        reader.recv()


@pytest.mark.parametrize("forks", [False, True])
def test_a_program_that_ends_closes_the_rest_at_once_and_without_a_word(forks: bool) -> None:
    done = run_python(
        "import multiprocessing, os, conduit.multiprocessing\n"
        f"if {forks} and (pid := os.fork()):\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "reader, writer = multiprocessing.Pipe()\n"
        "with conduit.Descriptor(os.dup(0)) as descriptor:\n"
        "    writer.send(descriptor)\n"
        "writer.close()\n"
        "reader.close()\n",
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Forks


def test_a_forked_child_has_nothing_of_what_is_on_its_way() -> None:
    with named("mine", b"mine") as descriptor:
        before = open_descriptors()
        pickled = dumps(descriptor)

        def child() -> None:
            assert module._shelves == []
            # Where uvloop was used, it makes a pipe anew in each child.
            new = {what for fd, what in open_descriptors().items() if before.get(fd) != what}
            assert all(what.startswith("pipe:") for what in new)
            with sent(descriptor) as own:
                assert own.is_same_file(descriptor), "and can send itself"
            with ForkingPickler.loads(pickled) as arrived:
                assert arrived.is_same_file(descriptor), "the parent serves it"

        assert in_child(child) == 0
        with pytest.raises(Error, match="unpickled before"):
            ForkingPickler.loads(pickled)


# As in `context`: one child of these waited for that lock for ever, in CI.
@pytest.mark.skipif(SANITIZED, reason="AddressSanitizer does not survive a fork beside threads")
def test_a_child_forked_while_others_send_has_nothing_of_theirs() -> None:
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            with named("theirs") as descriptor:
                sent(descriptor).close()

    def count() -> int:
        return sum("conduit-test" not in name for name in open_descriptors().values())

    with named("mine") as descriptor:
        before = count()
        calls = [Call(send) for _ in range(2)]
        try:
            for _ in range(100):
                pickled = dumps(descriptor)

                def child(pickled: Any = pickled) -> None:
                    # A descriptor that a thread held at that instant is no longer anybody's.
                    assert sum("memfd" in name for name in open_descriptors().values()) <= 8
                    assert count() <= before + 8
                    ForkingPickler.loads(pickled).close()

                assert in_child(child) == 0
        finally:
            over.set()
            for call in calls:
                call.result()


# Many


@needs_descriptors(2500)
def test_a_thousand_descriptors_through_a_queue_leave_nothing_open(context: Any) -> None:
    queue = context.Queue()
    descriptors = [named(str(place), b"%d" % place) for place in range(1000)]
    try:
        for descriptor in descriptors:
            queue.put(descriptor)
        assert run(context, workers.count_content, queue, 1000) == 0
    finally:
        for descriptor in descriptors:
            descriptor.close()
        queue.close()
        queue.join_thread()


@needs_descriptors(2500)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_more_descriptors_than_a_message_takes_go_to_one_process(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with contextlib.ExitStack() as stack:
        descriptors = [stack.enter_context(named("", b"%d" % place)) for place in range(500)]
        seen = run(context, workers.answer_content, descriptors)
    assert seen == [b"%d" % place for place in range(500)]


# Whoever connects


@pytest.fixture
def pickled() -> Iterator[Any]:
    """A descriptor on its way."""
    with named("awaited", b"awaited") as descriptor:
        yield dumps(descriptor)


def fetched(pickled: Any) -> None:
    with ForkingPickler.loads(pickled) as arrived:
        assert os.pread(arrived.fileno(), 100, 0) == b"awaited"


def test_who_says_nothing_keeps_nobody_waiting(pickled: Any) -> None:
    [shelf] = module._shelves
    with Conduit.connect(shelf.address) as idle, Conduit.connect(shelf.address):
        fetched(pickled)
        idle.timeout = GENEROUS
        with pytest.raises(conduit.PeerClosedError):
            idle.receive()


@pytest.mark.parametrize("said", [b"no key", b"k" * 16, b"long" * 100])
def test_who_has_no_key_gets_nothing(pickled: Any, said: bytes) -> None:
    [shelf] = module._shelves
    with Conduit.connect(shelf.address, timeout=GENEROUS) as guest:
        guest.transfer(data=said)
        with pytest.raises(conduit.PeerClosedError):
            guest.receive()
    fetched(pickled)


def test_who_sends_descriptors_gets_nothing_and_leaves_none(pickled: Any) -> None:
    [shelf] = module._shelves
    with Conduit.connect(shelf.address, timeout=GENEROUS) as guest:
        guest.transfer_fd(memory())
        with pytest.raises(conduit.PeerClosedError):
            guest.receive()
    fetched(pickled)


def test_what_its_receiver_does_not_take_is_closed() -> None:
    pipe = Pipe()
    dumps(pipe.writer)
    pipe.writer.close()
    [shelf] = module._shelves
    [key] = shelf.items
    with socket.socket(socket.AF_UNIX) as guest:
        with module._lock:
            guest.connect("\0" + shelf.address[1:])
            guest.send(key)
            guest.shutdown(socket.SHUT_RD)
        pipe.wait_until_closed()


@needs_root
def test_another_user_is_refused(
    pickled: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def fetch() -> None:
        with pytest.raises(Error, match="another user"):
            ForkingPickler.loads(pickled)

    with beside(fetch, user=NOBODY):
        pass
    assert "refused Peer" in caplog.text
    fetched(pickled)


def test_who_has_bound_the_address_since_is_not_believed(pickled: Any) -> None:
    [shelf] = module._shelves
    fetched(pickled)
    assert shelf.ended.wait(GENEROUS)
    with Listener(shelf.address) as squatter, named("forged") as forged:

        def serve() -> None:
            with squatter.accept(GENEROUS) as guest:
                assert len(guest.receive().data) == 16
                guest.transfer(forged, data=b"p" * 16, keep=True)

        served = Call(serve)
        with pytest.raises(Error, match="is gone"):
            ForkingPickler.loads(pickled)
        served.result()
        assert sum("memfd" in name for name in open_descriptors().values()) == 2


def test_a_sender_that_does_not_answer_is_not_waited_for_for_ever(
    pickled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, module._lock:
        patch.setattr(module, "_PATIENCE", 0.05)
        with pytest.raises(Error, match=r"unpickling.*deadline") as caught:
            ForkingPickler.loads(pickled)
        assert caught.value.errno == errno.ETIMEDOUT


# Shortages


def test_a_sender_without_room_says_so_and_leaves_nothing() -> None:
    with named("x") as descriptor, room_for(0), pytest.raises(Error, match="no room") as caught:
        dumps(descriptor)
    assert caught.value.errno == errno.EMFILE


def test_a_sender_without_room_for_its_socket_leaves_nothing() -> None:
    with named("x") as descriptor, room_for(1), pytest.raises(Error) as caught:
        dumps(descriptor)
    assert caught.value.errno == errno.EMFILE


def test_a_receiver_without_room_says_so(pickled: Any) -> None:
    def fetch() -> None:
        with room_for(1), pytest.raises(Error, match="no room") as caught:
            ForkingPickler.loads(pickled)
        assert caught.value.errno == errno.EMFILE

    assert in_child(fetch) == 0


def test_a_sender_that_has_no_room_to_accept_goes_on_when_it_has(
    pickled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()
    [shelf] = module._shelves
    serve = shelf._serve

    def watched(ready: set[int]) -> bool:
        has_room: bool = serve(ready)
        if not has_room:
            refused.set()
        return has_room

    monkeypatch.setattr(shelf, "_serve", watched)
    with room_for(1):
        call = Call(ForkingPickler.loads, pickled)
        assert refused.wait(GENEROUS)
    call.result().close()


def test_a_thread_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with named("x") as descriptor, monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", fail)
        with pytest.raises(Error, match="can't start new thread"):
            dumps(descriptor)


def test_a_handler_that_raises_as_the_thread_starts_stays_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def strike(*_: Any) -> None:
        raise RuntimeError("of the handler")

    def start_struck(*args: Any) -> None:
        start(*args)
        signal.raise_signal(signal.SIGUSR1)

    start = _thread.start_new_thread
    with named("x") as descriptor, monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", start_struck)
        with handling(signal.SIGUSR1, strike), pytest.raises(RuntimeError, match="of the handler"):
            dumps(descriptor)


def test_where_there_are_no_abstract_names_a_private_directory_has_the_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.util, "get_temp_dir", lambda: str(tmp_path))
    with named("x") as descriptor, monkeypatch.context() as patch:
        patch.setattr(module.sys, "platform", "darwin")
        pickled = dumps(descriptor)
    [shelf] = module._shelves
    assert os.path.dirname(shelf.address) == str(tmp_path)
    ForkingPickler.loads(pickled).close()
    assert shelf.ended.wait(GENEROUS)
    assert os.listdir(tmp_path) == []
    with pytest.raises(Error) as caught:
        ForkingPickler.loads(pickled)
    assert caught.value.errno == errno.ENOENT


# The page about it

PAGE = (Path(__file__).parent.parent / "docs" / "multiprocessing.md").read_text()


@pytest.mark.parametrize(
    "code", re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
def test_an_example_of_the_page_runs(code: str, tmp_path: Path) -> None:
    # Spawned processes import the program, so it is a file.
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", tmp_path / "program.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == re.findall(r"# prints (.*)", code)


# Signals


class Alarm(Exception):
    pass


@not_traced
# A handler that strikes in a destructor.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handler_that_raises_anywhere_leaves_nothing_open(tmp_path: Path) -> None:
    due = [False]

    def strike(*_: Any) -> None:
        if due[0]:
            raise Alarm

    struck = rounds = 0
    with (
        Things(tmp_path) as things,
        named("") as unnamed,
        handling(signal.SIGALRM, strike),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ResourceWarning)
        kinds = [unnamed, *(each for each in things.all if not isinstance(each, Descriptor))]
        begun = time.monotonic()
        for kind in kinds:
            sent(kind).close()
        usual = (time.monotonic() - begun) / len(kinds)
        with module._lock:
            module._close_all()
        before = open_descriptors()
        while (rounds < 400 and time.monotonic() - begun < GENEROUS) or struck <= 50:
            arrived = None
            try:
                due[0] = True
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 1.5 * usual))
                arrived = sent(kinds[rounds % len(kinds)])
            except Alarm:
                struck += 1
            finally:
                due[0] = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            rounds += 1
            if arrived is not None:
                arrived.close()
            with module._lock:
                # What was pickled and not unpickled waits.
                module._close_all()
            if open_descriptors() != before:
                gc.collect()
                assert open_descriptors() == before
