"""COMMAND as a process: started with its sockets, guarded, and ended with all that it started.

The launcher and the guard are Python programs: there may be no shell, and shells drop variables
whose names they do not accept. os.fork() is not an option while other threads run.
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

# Becomes COMMAND by exec, since LISTEN_PID needs its pid. It waits at the gate until it is guarded;
# the gate is a pipe, which closes if this process ends first. SIGTTOU is ignored: a terminal must
# not stop COMMAND for writing from a background group. WATCHDOG_PID is COMMAND's, too.
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

# The guard ends COMMAND, which must not serve unattended, if this process is killed: the pipe then
# closes. It removes the files that this process would have. A group lives as long as any member.
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

    So Ctrl-C at a terminal reaches it once, forwarded, and its children end with it.

    Args:
        words: COMMAND; ``{fd}`` and ``{NAME}`` in them become numbers of sockets.
        numbers: the sockets, as they are here.
        names: of the sockets.
        notify: the path of the socket at which it says that it is ready.
        listen_pid: whether to set LISTEN_PID.
        stop_signal: the signal with which its guard ends it.
        files: the files that its guard removes then, beside ``notify``.

    Attributes:
        pid: of the process, and of its group.
        has_ended: whether it was reaped; others of its group may live.

    Raises:
        OSError: it cannot be started, or its guard cannot; it does not run then.
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
                # A stopped process, such as one that reads from its terminal, gets the signal only
                # after SIGCONT. Not for a stop signal, which SIGCONT would undo.
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
        """Note that a child was reaped; return whether it was COMMAND's first process."""
        if pid == self.pid:
            self.has_ended = True
            return True
        if pid == self._guard_pid:
            # The guard was killed; COMMAND must not serve unguarded.
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
            # SIGKILL ends a stopped guard, too.
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
    """Make sure that descriptors 0, 1 and 2 are open, and make all others close-on-exec.

    Called before anything else is opened. Otherwise the next descriptor could become standard
    output, and COMMAND would inherit what a shell, say, left open.
    """
    # The first on Linux, where /dev may lack the other; macOS and the BSDs have the other.
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for name in os.listdir(directory):
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(name), int(name) < FIRST)
            break
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
    """Return the exit code, or 128 plus the signal, for a waitpid(2) status, and it in words."""
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
    """Yield the end of a pipe that releases a guard, and the descriptors to start it with."""
    with contextlib.ExitStack() as stack:
        watched, told = os.pipe()
        stack.callback(os.close, watched)
        try:
            # Not this process's output: its reader would wait until the guard, too, has ended.
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, null)
            yield told, [(0, watched), (1, null), (2, null)]
        except BaseException:
            os.close(told)
            raise


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Yield the two ends of a pipe, reading end first; close them after the block."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@contextlib.contextmanager
def _above(numbers: Sequence[int], lowest: int) -> Iterator[list[int]]:
    """Yield duplicates of descriptors, at ``lowest`` or above; close them after the block."""
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
    # -I ignores PYTHONHOME, too, without which the Python of a bundle finds no library.
    isolated = "-P" if "PYTHONHOME" in environment else "-I"
    return os.posix_spawn(
        sys.executable,
        [sys.executable, isolated, "-S", "-c", program, *words],
        # Wine leaves variables without a name, which Python does not pass on.
        {name: value for name, value in environment.items() if name},
        file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for there, here in descriptors],
        setpgroup=0,
        # Which Python would have a traceback for.
        setsigmask=[signal.SIGINT],
        # What Python ignores; the rest is as this process found it.
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
