"""What the tests share: looking at descriptors, threads whose state can be seen, processes."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

from conduit.takeover import room

T = TypeVar("T")

KINDS = [
    pytest.param(socket.SOCK_STREAM, id="stream"),
    pytest.param(socket.SOCK_SEQPACKET, id="seqpacket"),
]

PORTABLE = bool(os.environ.get("CONDUIT_PORTABLE"))
"""Whether the modules were compiled without what only Linux has; see setup.py."""

TRACED = bool(os.environ.get("CONDUIT_TRACE"))
"""Whether coverage traces the modules; see setup.py."""

SANITIZED = bool(os.environ.get("CONDUIT_SANITIZE"))
"""Whether the modules were compiled for the sanitizers; see setup.py."""

not_traced = pytest.mark.skipif(
    TRACED, reason="a handler that raises inside coverage's own lock leaves it locked for ever"
)

GENEROUS = 30.0
"""Seconds that nothing takes unless it hangs."""


WANTED_LIMIT = 20_000
"""How many descriptors this process and its children may open at once, where the system lets it."""


HAS_PROC = os.path.isdir("/proc/self/fd")
"""Whether processes and threads can be looked at as Linux lets them. Most tests do."""


def raise_limit_of_descriptors() -> None:
    """Raise the soft limit, which is 1024 on most systems, towards the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < WANTED_LIMIT:
        wanted = WANTED_LIMIT if hard == resource.RLIM_INFINITY else min(WANTED_LIMIT, hard)
        # macOS has a smaller limit of its own (kern.maxfilesperproc) below an infinite hard one.
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def needs_descriptors(count: int) -> pytest.MarkDecorator:
    """Skip a test that opens so many descriptors, or has them on their way, where it may not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return pytest.mark.skipif(
        hard != resource.RLIM_INFINITY and hard < count,
        reason=f"needs {count} descriptors; the hard limit (ulimit -Hn) is {hard}",
    )


def open_descriptors() -> dict[int, str]:
    """Every open descriptor, and what it is open on."""
    if not HAS_PROC:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return {number: str(os.fstat(number)[:3]) for number in range(soft) if is_open(number)}
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return found


def is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def is_private(number: int) -> bool:
    """Whether a descriptor is close-on-exec."""
    return bool(fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


def waits(number: int) -> bool:
    """Whether a descriptor has no O_NONBLOCK."""
    return not fcntl.fcntl(number, fcntl.F_GETFL) & os.O_NONBLOCK


def memory(content: bytes = b"") -> int:
    """A new file in memory, positioned at its beginning."""
    number = os.memfd_create("conduit-test")
    os.write(number, content)
    os.lseek(number, 0, os.SEEK_SET)
    return number


def content(number: int) -> bytes:
    """All bytes of a file, whatever its offset."""
    return os.pread(number, 1 << 16, 0)


def send(peer: socket.socket, numbers: list[int], data: bytes = b"\0") -> None:
    """Send a message as any other program would."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(as_int, numbers)))]
    peer.sendmsg([data], rights if numbers else [])


def as_int(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def fill(number: int) -> int:
    """Send through a borrowed number until its socket takes no more; how many messages went."""
    sent = 0
    with borrowed(number) as sock, contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"\0", socket.MSG_DONTWAIT)
            sent += 1
    return sent


def drain(number: int, messages: int) -> None:
    """Take one-byte messages off a borrowed number's socket."""
    with borrowed(number) as sock:
        for _ in range(messages):
            assert sock.recv(1) == b"\0"


@contextlib.contextmanager
def borrowed(number: int) -> Iterator[socket.socket]:
    """A socket object for a number that it does not own."""
    sock = socket.socket(fileno=number)
    try:
        yield sock
    finally:
        sock.detach()


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let this process open so many more descriptors.

    The table is filled, and the limit not only lowered: it also says how many descriptors an
    ordinary user may have on their way, those of tests that run beside this one included.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers: list[int] = []
    try:
        # The highest number of a table may be taken, and so the end come before it.
        with contextlib.suppress(OSError):
            while len(numbers) <= count or numbers[-1] < min(soft - 1, 4000):
                numbers.append(os.dup(0))
        # Each was the lowest free number, so that all below the last are taken.
        resource.setrlimit(resource.RLIMIT_NOFILE, (numbers[-1] + 1, hard))
        for _ in range(count):
            os.close(numbers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in numbers:
            os.close(number)


@contextlib.contextmanager
def no_more_room(count: int = 0) -> Iterator[None]:
    """Let only so many more descriptors fit, as if the hard limit were the soft one."""
    with room_for(count), pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_raise_limit", lambda: False)
        yield


@contextlib.contextmanager
def stdin_closed() -> Iterator[None]:
    """Free the number 0 meanwhile."""
    kept = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


ELSEWHERE: dict[int, Callable[[], None]] = {}
"""Threads, by native id, whose call an event loop runs: what returns once that one waits."""


def wait_until_gone(path: str | Path) -> None:
    """Return once nothing is at a path."""
    while os.path.lexists(path):
        os.sched_yield()


def wait_until_polling(thread: int) -> None:
    """Return once a thread of this process (its native id) waits in poll(2), or has ended.

    Where nothing tells of what it waits for, it sleeps for a time instead.
    """
    asleep = 0
    while asleep < 100:
        if settle := ELSEWHERE.get(thread):
            settle()
            return
        try:
            with open(f"/proc/self/task/{thread}/wchan") as wchan:
                where = wchan.read()
            sleeps = is_asleep(thread)
        except (FileNotFoundError, ProcessLookupError):
            return
        if "poll" in where or "nanosleep" in where:
            return
        # A kernel that does not tell where a thread sleeps still tells that it does.
        asleep = asleep + 1 if where in ("", "0") and sleeps else 0
        os.sched_yield()


def is_asleep(thread: int) -> bool:
    """Whether a thread of this process (its native id) sleeps right now."""
    with open(f"/proc/self/task/{thread}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"


def wait_until_asleep(thread: int) -> None:
    """Return once a thread of this process (its native id) waits: it sleeps whenever one looks."""
    asleep = 0
    while asleep < 200:
        asleep = asleep + 1 if is_asleep(thread) else 0
        os.sched_yield()


class Call(Generic[T]):
    """A call under way in a thread of its own."""

    def __init__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> None:
        self._outcome: tuple[T] | BaseException | None = None

        def run() -> None:
            try:
                self._outcome = (function(*args, **kwargs),)
            except BaseException as exc:
                self._outcome = exc

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def is_waiting(self) -> bool:
        """Wait until the call waits in poll(2); False if it ended instead."""
        assert self.thread.native_id is not None
        wait_until_polling(self.thread.native_id)
        return self.thread.is_alive()

    def result(self) -> T:
        """Wait for its end; return or raise what it did."""
        self.thread.join(GENEROUS)
        assert not self.thread.is_alive(), "the call does not end"
        outcome = self._outcome
        assert outcome is not None
        # The exception's traceback holds this frame, which would hold the exception.
        self._outcome = None
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                del outcome
        return outcome[0]


@contextlib.contextmanager
def dripping(peer: socket.socket) -> Iterator[Call[int]]:
    """Send a byte every now and then; the call returns how many, once the block has ended."""
    ended = threading.Event()

    def drip() -> int:
        sent = 0
        while not ended.wait(0.02):
            peer.sendall(b"x")
            sent += 1
        return sent

    call = Call(drip)
    try:
        yield call
    finally:
        ended.set()
        call.thread.join()


@contextlib.contextmanager
def flooding(peer: socket.socket, data: bytes) -> Iterator[None]:
    """Let several processes send this without end, faster than one can receive it."""
    program = (
        "import contextlib, socket, sys\n"
        "peer = socket.socket(fileno=int(sys.argv[1]))\n"
        "with contextlib.suppress(OSError):\n"
        "    while True:\n"
        "        peer.sendall(bytes.fromhex(sys.argv[2]))\n"
    )
    command = [sys.executable, "-S", "-c", program, str(peer.fileno()), data.hex()]
    senders = [subprocess.Popen(command, pass_fds=[peer.fileno()]) for _ in range(3)]
    try:
        yield
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()


def interrupt_once_polling(number: int) -> Call[None]:
    """Send a signal to the calling thread as soon as it sleeps in poll(2)."""
    target, native = threading.get_ident(), threading.get_native_id()

    def interrupt() -> None:
        wait_until_polling(native)
        signal.pthread_kill(target, number)

    return Call(interrupt)


@contextlib.contextmanager
def handling(number: int, handler: Any) -> Iterator[None]:
    """Handle a signal, and put the old handler back.

    What hypothesis has called in each collection is not called meanwhile: an exception that the
    handler raises in there reaches nobody, and fails the test.
    """
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        # A test that fails leaves its timer running, and who does not handle SIGALRM dies of it.
        if number == signal.SIGALRM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(number, before)
        gc.callbacks.extend(callbacks)


def fork_among_threads() -> int:
    """Fork without a warning: forking while other threads run is what some tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_child(function: Callable[[], None]) -> int:
    """Fork, run a function in the child, and return the child's exit status: 0 if it returned."""
    pid = fork_among_threads()
    if not pid:
        status = 1
        try:
            signal.alarm(int(GENEROUS))
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that refuses, and that is given to nobody meanwhile; with "::", of both families.

    A server can listen there: where all set SO_REUSEADDR, two may be bound and one may listen.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, 0))
        yield sock.getsockname()[1]


OTHER = str(Path(__file__).with_name("other_process.py"))


def other_process(task: str, number: int, *args: str) -> subprocess.Popen[str]:
    """Start the other process of a test, with the number of its end of a Unix socket."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", OTHER, task, str(number), *args],
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def patient(example: str) -> str:
    """Return an example with its deadlines of some seconds as long as a test's."""
    return re.sub(r"(timeout( = |=|\())(5|10)\b", rf"\g<1>{GENEROUS}", example)


def run_python(
    code: str, *args: str, timeout: float = GENEROUS, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own."""
    return subprocess.run(
        # Not from the current directory, where the modules may not be compiled.
        [sys.executable, "-P", "-W", "error", "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **kwargs,
    )


def compiled(directory: Path, name: str, source: str, *options: str) -> Path:
    """Compile a program, or a library with ``-shared``."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a helper with")
    (directory / f"{name}.c").write_text(source)
    made = directory / name
    subprocess.run([compiler, *options, "-o", made, directory / f"{name}.c"], check=True)
    return made
