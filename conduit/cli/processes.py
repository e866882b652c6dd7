"""COMMAND as a process: started with its sockets, guarded, and ended with all that it started.

Three programs in Python stand between `conduit run` and COMMAND, since there need be no shell, and
shells drop variables whose names they do not like. Forking is no choice while other threads run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence

from conduit.cli.messages import say
from conduit.cli.plan import GRACE

FIRST = 3
"""The descriptor at which the sockets begin (sd_listen_fds(3), ``SD_LISTEN_FDS_START``)."""

# Becomes COMMAND, whose pid nobody knows before, once it is guarded: it waits at the gate, a pipe
# that closes if this process ends first. A terminal is not to stop COMMAND for writing from
# a group that is not the terminal's. The watchdog is asked of whoever serves.
_STAGE = """\
import os, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
if os.isatty(1) or os.isatty(2):
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
_, gate, kept, variables, *words = sys.argv
if not os.read(int(gate), 1):
    os._exit(1)
os.close(int(gate))
if not kept:
    os.environ.pop("LC_CTYPE", None)
for variable in variables.split():
    os.environ[variable] = str(os.getpid())
try:
    os.execvp(words[0], words)
except OSError as exc:
    os.write(2, b"conduit: " + os.fsencode(f"{words[0]}: {exc.strerror}\\n"))
    os._exit(126)
"""

# Ends COMMAND, which must not serve unattended, if this process is killed: the pipe then closes.
# What this process would have removed is removed here. A group lives as long as any of it.
_GUARD = f"""\
import os, signal, sys, time
group, number, directory, *files = int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
os.read(0, 1)
def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return False
    return True
for file in files:
    attempt(os.unlink, file)
attempt(os.rmdir, directory)
deadline = time.monotonic() + {GRACE}
told = attempt(os.kill, group, number)
attempt(os.kill, group, signal.SIGCONT)
while time.monotonic() < deadline and attempt(os.killpg, group, 0):
    if told and not attempt(os.kill, group, 0):
        told = attempt(os.killpg, group, number) and False
    time.sleep(0.05)
attempt(os.killpg, group, signal.SIGKILL)
"""


class Process:
    """COMMAND, with sockets from descriptor 3 on, in a process group of its own.

    So a terminal's Ctrl-C reaches it once, forwarded, and what it started ends with it.

    Args:
        words: COMMAND; ``{fd}`` and ``{NAME}`` in them become numbers of sockets.
        numbers: the sockets, as they are here.
        names: of the sockets.
        notify: the path of the socket at which it says that it is ready.
        listen_pid: whether LISTEN_PID says which process is meant.
        stop_signal: by which its guard ends it.
        files: what its guard removes then, beside ``notify``.

    Attributes:
        pid: of the process, which is also the number of its group.
        has_ended: whether it was reaped; others of its group may live.

    Raises:
        OSError: it cannot be started, or not guarded; it does not run then.
    """

    def __init__(
        self,
        words: Sequence[str],
        numbers: Sequence[int],
        names: Sequence[str],
        notify: str,
        *,
        listen_pid: bool,
        stop_signal: int,
        files: Sequence[str] = (),
    ) -> None:
        environment = dict(os.environ)
        # systemd's second check of who is meant; it would name this process.
        environment.pop("LISTEN_PIDFDID", None)
        environment.pop("LISTEN_PID", None)
        environment["LISTEN_FDS"] = str(len(numbers))
        environment["LISTEN_FDNAMES"] = ":".join(names)
        environment["NOTIFY_SOCKET"] = notify
        self.has_ended: bool = False
        self._guard_words = [str(int(stop_signal)), os.path.dirname(notify), notify, *files]
        if not _has_locale():
            environment.pop("LC_CTYPE", None)
        kept = "LC_CTYPE" if "LC_CTYPE" in environment else ""
        own = ["LISTEN_PID"] if listen_pid else []
        if environment.get("WATCHDOG_PID") == str(os.getpid()):
            own.append("WATCHDOG_PID")
        gate = FIRST + len(numbers)
        with _guard_ends() as (self._guard, ends), _pipe() as (waits, opens):
            with _above([*numbers, waits], gate + 1) as sources:
                self.pid: int = _spawn(
                    _STAGE,
                    [str(gate), kept, " ".join(own), *filled(words, names)],
                    environment,
                    enumerate(sources, FIRST),
                )
            try:
                self._guard_pid = self._spawn_guard(ends)
            except BaseException:
                os.killpg(self.pid, signal.SIGKILL)
                raise
            os.write(opens, b"\n")

    def _spawn_guard(self, ends: list[tuple[int, int]]) -> int:
        words = ["conduit-guard", str(self.pid), *self._guard_words]
        return _spawn(_GUARD, words, dict(os.environ), ends)

    def send(self, number: int) -> None:
        """Send the first process a signal, if it still runs."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)
                # A stopped one, as by a terminal that it reads from, would not hear of it. But
                # SIGCONT takes back what stops.
                if number not in (signal.SIGTTIN, signal.SIGTTOU):
                    os.kill(self.pid, signal.SIGCONT)

    def send_all(self, number: int) -> None:
        """Send all that is left of the group a signal."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
            os.killpg(self.pid, signal.SIGCONT)

    def is_gone(self) -> bool:
        """Whether nothing is left of the group."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def note(self, pid: int) -> bool:
        """Note that a child was reaped; whether it was the first process of this one."""
        if pid == self.pid:
            self.has_ended = True
            return True
        if pid == self._guard_pid:
            # Killed; what it guards is not to serve unguarded.
            self.abandon()
            try:
                with _guard_ends() as (self._guard, ends):
                    self._guard_pid = self._spawn_guard(ends)
            except OSError as exc:
                self._guard = self._guard_pid = -1
                say(f"pid {self.pid} has no guard any more: {exc}")
        return False

    def release(self) -> None:
        """Let the guard go, once nothing is left."""
        if self._guard >= 0:
            # That ends a stopped one as well.
            os.kill(self._guard_pid, signal.SIGKILL)
            os.waitpid(self._guard_pid, 0)
            self.abandon()

    def abandon(self) -> None:
        """Leave it to the guard to end it."""
        if self._guard >= 0:
            os.close(self._guard)
            self._guard = -1


def _has_locale() -> bool:
    """Whether this process was started with LC_CTYPE, which Python sets by itself (PEP 538)."""
    try:
        with open("/proc/self/environ", "rb") as environ:
            return any(each.startswith(b"LC_CTYPE=") for each in environ.read().split(b"\0"))
    except OSError:
        return True


def withhold() -> None:
    """Have descriptors 0, 1 and 2 open, and keep all others that came with them from COMMAND.

    Called before anything else is opened. What is opened next would otherwise be taken for standard
    output, and what a shell, say, left open would be open in all that is started here.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), int(name) < FIRST)
    while (fd := os.open(os.devnull, os.O_RDWR)) < FIRST:
        os.set_inheritable(fd, True)
    os.close(fd)


def reap() -> Iterator[tuple[int, int]]:
    """Yield pid and status of each child that has ended.

    All children, since this may be process 1 of a container, which inherits orphans.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, status


def fate(status: int) -> tuple[int, str]:
    """Return the exit code, or 128 and the signal, for what waitpid(2) told; and how in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code, f"exited with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        # A real-time signal.
        name = f"signal {-code}"
    return 128 - code, f"was ended by {name}"


def filled(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the words of COMMAND with the numbers of sockets in them."""
    numbers = {name: place for place, name in enumerate(names, FIRST) if name != "unknown"}
    found = list(words)
    for name, place in {"fd": FIRST, **numbers}.items():
        found = [word.replace(f"{{{name}}}", str(place)) for word in found]
    return found


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
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe, for a while: the end to read from, and the one to write to."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


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
    """Start a program in Python in a group of its own, with ``(there, here)`` descriptors."""
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", program, *words],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for there, here in descriptors],
        setpgroup=0,
        # Which Python would have a traceback for.
        setsigmask=[signal.SIGINT],
        # What Python ignores; the rest is as this process found it.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
