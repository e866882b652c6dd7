"""``conduit run``: keep listening sockets, run a server on them, and let the next one follow."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

from conduit import systemd
from conduit._conduit import Conduit
from conduit.cli.addresses import Address
from conduit.cli.messages import CommandError, say
from conduit.errors import Error
from conduit.peer import Peer
from conduit.takeover import Takeover

_FIRST = 3
"""The descriptor at which the sockets begin (sd_listen_fds(3), ``SD_LISTEN_FDS_START``)."""

_BACKLOG = 4096
"""Connections that may wait; systemd's own choice, which net.core.somaxconn limits."""

_LONGEST_NOTICE = 4096

_GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL for a COMMAND that must go."""

_FORWARDED = (
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)

# Becomes COMMAND, whose pid nobody knows before. Python itself, since there need be no shell, and
# shells drop variables whose names they do not like. A terminal is not to stop COMMAND for writing
# from a group that is not the terminal's.
_STAGE = """\
import os, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
if os.isatty(1) or os.isatty(2):
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
_, kept, *words = sys.argv
if not kept:
    os.environ.pop("LC_CTYPE", None)
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    os.execvp(words[0], words)
except OSError as exc:
    os.write(2, b"conduit: " + os.fsencode(f"{words[0]}: {exc.strerror}\\n"))
    os._exit(126)
"""

# Ends COMMAND, which must not serve unattended, if this process is killed: the pipe then closes
# without the line that says that COMMAND has ended by itself.
_GUARD = f"""\
import os, signal, sys, time
group = int(sys.argv[1])
if os.read(0, 1):
    sys.exit()
try:
    os.kill(group, signal.SIGTERM)
    deadline = time.monotonic() + {_GRACE}
    while time.monotonic() < deadline:
        os.kill(group, 0)
        time.sleep(0.1)
except ProcessLookupError:
    pass
try:
    os.killpg(group, signal.SIGKILL)
except ProcessLookupError:
    pass
"""


class Options(NamedTuple):
    """What ``conduit run`` is asked to do; seconds are floats."""

    control: str
    addresses: Sequence[Address]
    command: Sequence[str]
    ready_after: float | None
    timeout: float


def run(options: Options) -> int:
    """Serve until COMMAND ends, by itself, by a signal or for a successor.

    Returns:
        the exit code of COMMAND, or 128 and the signal that ended it.

    Raises:
        CommandError: COMMAND cannot be found, or does not become ready. It is gone, and a
            predecessor goes on serving.
        Error: the predecessor refuses, or an address cannot be had.
    """
    if shutil.which(options.command[0]) is None:
        raise CommandError(f"{options.command[0]}: command not found", 127)
    with contextlib.ExitStack() as stack:
        # Longer than this run gives itself, so that its own deadline is the one that is told.
        takeover = stack.enter_context(Takeover(options.control, timeout=options.timeout + _GRACE))
        signals = stack.enter_context(_Signals())
        notices = stack.enter_context(_Notices())
        with contextlib.ExitStack() as sockets:
            numbers = [
                sockets.enter_context(
                    takeover.listen(
                        address.host,
                        address.port,
                        name=address.key,
                        type=address.type,
                        backlog=_BACKLOG,
                    )
                ).fileno()
                for address in options.addresses
            ]
            names = [address.name for address in options.addresses]
            command = _Command(options.command, numbers, names, notices.path)
        stack.callback(command.release)
        try:
            return _serve(options, takeover, command, signals, notices)
        except BaseException:
            command.stop(signals)
            raise


def _serve(
    options: Options,
    takeover: Takeover,
    command: _Command,
    signals: _Signals,
    notices: _Notices,
) -> int:
    """Watch over COMMAND, from its start to its end."""
    title = f"{options.command[0]} (pid {command.pid})"
    poller = select.poll()
    for number in (signals.fileno(), notices.fileno(), takeover.fileno()):
        poller.register(number, select.POLLIN)
    started = time.monotonic()
    deadline = started + options.timeout
    assumed = deadline if options.ready_after is None else started + options.ready_after
    ready = draining = False
    while True:
        poller.poll(None if ready else _milliseconds(min(deadline, assumed)))
        for number in signals.take():
            command.send(number)
        said = notices.take(command.pid)
        if command.ended():
            if ready:
                return command.code
            raise CommandError(
                f"{title} {command.fate} before it was ready{_who_serves(takeover)}",
                command.code or 1,
            )
        if not ready:
            now = time.monotonic()
            if said or (options.ready_after is not None and now >= assumed):
                takeover.ready()
                ready = True
                _tell(f"READY=1\nMAINPID={os.getpid()}")
                say(f"{title} serves{_whom_it_follows(takeover)}")
            elif now >= deadline:
                raise CommandError(
                    f"{title} was not ready within {options.timeout:g} seconds"
                    f"{_who_serves(takeover)}"
                )
        elif not draining and takeover.wait(0):
            draining = True
            poller.unregister(takeover.fileno())
            say(f"a successor serves; {title} finishes what it has begun")
            command.send(signal.SIGTERM)


def _milliseconds(deadline: float) -> float:
    return max(0.0, (deadline - time.monotonic()) * 1000) + 1


def _who_serves(takeover: Takeover) -> str:
    old = takeover.predecessor
    if old is None:
        return ""
    return f"; the old one{f' (pid {old.pid})' if old.pid else ''} goes on serving"


def _whom_it_follows(takeover: Takeover) -> str:
    old = takeover.predecessor
    text = ""
    if old is not None:
        # One in another pid namespace has no pid here.
        text = f", taken over from pid {old.pid}" if old.pid else ", taken over"
    if takeover.dropped:
        text += f"; no longer listening: {', '.join(takeover.dropped)}"
    return text


def _tell(state: str) -> None:
    """Notify the manager that started this process, if one did."""
    try:
        systemd.notify(state)
    except Error as exc:
        say(f"NOTIFY_SOCKET: {exc}")


class _Signals:
    """The signals that this process gets, as something to poll; context manager."""

    def __enter__(self) -> Self:
        self._inside, self._outside = os.pipe()
        os.set_blocking(self._inside, False)
        os.set_blocking(self._outside, False)
        self._old_wakeup = signal.set_wakeup_fd(self._outside, warn_on_full_buffer=False)
        # A signal that is ignored here (nohup) is ignored by COMMAND as well.
        self._old_handlers = {
            number: signal.signal(number, lambda *_: None)
            for number in (*_FORWARDED, signal.SIGCHLD)
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN
        }
        # Whoever started this may have blocked some.
        self._old_mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return self

    def __exit__(self, *exc_info: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._old_mask)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._inside)
        os.close(self._outside)

    def fileno(self) -> int:
        return self._inside

    def wait(self, timeout: float) -> None:
        """Wait so many seconds for any signal, and forget it."""
        if select.select([self._inside], [], [], max(timeout, 0))[0]:
            os.read(self._inside, 4096)

    def take(self) -> list[int]:
        """Return the signals that came and are to be forwarded, in their order."""
        try:
            return [n for n in os.read(self._inside, 4096) if n in _FORWARDED]
        except BlockingIOError:
            return []


class _Notices:
    """The socket at which COMMAND says that it is ready (sd_notify(3)); context manager.

    Where the system tells who sends, others reach it, too: COMMAND may change its user.
    """

    def __enter__(self) -> Self:
        told = sys.platform == "linux"
        self._directory = tempfile.TemporaryDirectory(prefix="conduit-")
        self.path = os.path.join(self._directory.name, "notify")
        try:
            if told:  # pragma: no branch
                os.chmod(self._directory.name, 0o711)
            self._conduit = Conduit.bind(self.path, mode=0o666 if told else 0o600)
            self._conduit.timeout = 0
        except BaseException:
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._conduit.close()
        self._directory.cleanup()

    def fileno(self) -> int:
        return self._conduit.fileno()

    def take(self, command: int) -> bool:
        """Read what came, and return whether COMMAND, of this pid, says READY=1."""
        ready = False
        # All of it, whatever it says: COMMAND would block when nobody reads.
        while True:
            try:
                with self._conduit.receive(_LONGEST_NOTICE) as message:
                    said = b"READY=1" in message.data.split(b"\n")
                    ready |= said and _speaks_for(message.sender, command)
            except BlockingIOError:
                return ready
            except Error as exc:
                say(f"a notice that cannot be read: {exc}")


def _speaks_for(sender: Peer | None, command: int) -> bool:
    """Whether who sent a notice is this user or root, or a process of COMMAND."""
    if sender is None or sender.uid in (0, os.geteuid()):
        return True
    pid = sender.pid
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == command:
            return True
        while pid > 1 and pid != command:
            with open(f"/proc/{pid}/stat", "rb") as status:
                pid = int(status.read().rpartition(b")")[2].split()[1])
        return pid == command
    return False


class _Command:
    """COMMAND as a process, with sockets from descriptor 3 on.

    It has a process group of its own: a terminal's Ctrl-C reaches it once, forwarded, and what
    it started goes with it when it fails.

    Attributes:
        pid: of the process, which is also the number of its group.
        status: as waitpid(2) told it; None while COMMAND runs.
    """

    def __init__(
        self, words: Sequence[str], numbers: Sequence[int], names: Sequence[str], notify: str
    ) -> None:
        environment = dict(os.environ)
        # systemd's second check of who is meant; it would name this process.
        environment.pop("LISTEN_PIDFDID", None)
        environment["LISTEN_FDS"] = str(len(numbers))
        environment["LISTEN_FDNAMES"] = ":".join(names)
        environment["NOTIFY_SOCKET"] = notify
        self.status: int | None = None
        kept = "LC_CTYPE" if "LC_CTYPE" in environment else ""
        # Before COMMAND, which is not to run without a guard.
        with _guard_ends() as (self._guard, ends):
            with _above(numbers, _FIRST + len(numbers)) as sources:
                self.pid = _spawn(_STAGE, [kept, *words], environment, enumerate(sources, _FIRST))
            try:
                self._guard_pid = _spawn(_GUARD, [str(self.pid)], environment, ends)
            except BaseException:
                os.killpg(self.pid, signal.SIGKILL)
                raise

    @property
    def code(self) -> int:
        """The exit code, or 128 and the signal; 0 while it runs."""
        code = os.waitstatus_to_exitcode(self.status or 0)
        return code if code >= 0 else 128 - code

    @property
    def fate(self) -> str:
        """How it ended, in words."""
        code = os.waitstatus_to_exitcode(self.status or 0)
        return f"exited with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.status is None:
            os.kill(self.pid, number)
            if number == signal.SIGTERM:
                # A stopped one, as by a terminal that it reads from, would not hear of it.
                os.kill(self.pid, signal.SIGCONT)

    def ended(self) -> bool:
        """Return whether it has ended."""
        # All children, since this may be process 1 of a container, which inherits orphans.
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self.pid:
                    self.status = status
                elif pid == self._guard_pid and self.status is None:
                    # Killed; what it guards is not to serve unguarded.
                    os.close(self._guard)
                    with _guard_ends() as (self._guard, ends):
                        self._guard_pid = _spawn(_GUARD, [str(self.pid)], dict(os.environ), ends)
                if pid == 0:
                    break
        return self.status is not None

    def stop(self, signals: _Signals) -> None:
        """Make an end of it and of its group: gently, then not."""
        deadline = time.monotonic() + _GRACE
        # It may have accepted connections already.
        self.send(signal.SIGTERM)
        while not self.ended() and time.monotonic() < deadline:
            signals.wait(deadline - time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            _, self.status = os.waitpid(self.pid, 0)

    def release(self) -> None:
        """Let the guard go, once COMMAND has ended."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._guard, b"\n")
        os.close(self._guard)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._guard_pid, 0)


@contextlib.contextmanager
def _guard_ends() -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The end of a pipe by which to let a guard go, and descriptors to start it with."""
    with contextlib.ExitStack() as stack:
        watched, told = os.pipe()
        stack.callback(os.close, watched)
        try:
            # Who reads this process's output is not to wait for the guard as well.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, null)
            yield told, [(0, watched), (1, null), (2, null)]
        except BaseException:
            os.close(told)
            raise


@contextlib.contextmanager
def _above(numbers: Sequence[int], lowest: int) -> Iterator[list[int]]:
    """Duplicates of descriptors, at ``lowest`` or above, for a while."""
    with contextlib.ExitStack() as stack:
        copies = []
        for number in numbers:
            copies.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, lowest))
            stack.callback(os.close, copies[-1])
        yield copies


def _spawn(
    program: str,
    words: Sequence[str],
    environment: dict[str, str],
    descriptors: Iterable[tuple[int, int]],
) -> int:
    """Start a program in Python in a group of its own, with ``(there, here)`` descriptors.

    Forking is no choice while a thread of `Takeover` runs.
    """
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", program, *words],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for there, here in descriptors],
        setpgroup=0,
        setsigmask=[],
        # What Python ignores; the rest is as this process found it.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
