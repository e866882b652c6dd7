"""``conduit run``: keep listening sockets, run a server on them, and let the next one follow.

`Plan` decides; this module does what it decides, and tells it what happens. It is one loop around
poll(2) in one thread. It starts processes (`conduit.cli.processes`), looks whether they serve
(`conduit.cli.readiness`), receives their notifications (`conduit.cli.notices`), and answers
requests at the control socket (`conduit.cli.control`).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from conduit import __version__, systemd
from conduit._conduit import Conduit
from conduit.cli import inspection, plan, processes, sockets
from conduit.cli.addresses import Address
from conduit.cli.control import NOBODY, Guest, ask, checked
from conduit.cli.messages import CommandError, say, show
from conduit.cli.notices import Notice, Notices
from conduit.cli.plan import Generation, Plan, Policy, State
from conduit.cli.processes import Process
from conduit.cli.readiness import EITHER, Readiness, Verdict
from conduit.cli.signals import Signals
from conduit.cli.sockets import Opened, Wanted, opened
from conduit.errors import Error
from conduit.paths import absolute, inode_of
from conduit.takeover import Takeover
from conduit.takeover.room import make_room
from conduit.takeover.spares import Spares, second_name
from conduit.takeover.watch import has_ended

_BACKLOG = 4096
"""The default backlog, which is systemd's; net.core.somaxconn limits it."""

_GLANCE = 0.02
"""Seconds between two looks at whether an ended COMMAND left processes behind."""

_OFTEN = 5.0
"""The most seconds between two steps of the takeover, for successors that say nothing."""

_LONGEST_TIMEOUT = 1e9
"""Seconds that somebody may ask for, some thirty years."""

_ROOM = 64
"""How many descriptors are needed to start and inspect COMMAND, and for guests."""

_END = ".run"
"""The suffix of this module's second names of Unix sockets; its `Takeover` has its own."""

_STORED = "conduit"
"""The name of everything in the service manager's store."""

_PATIENCE = 5.0
"""Seconds to wait for room in the service manager's queue, for what it must get."""

_BRIEF = 0.1
"""The same for what is said again and again."""

_HOW_TO_TAKE = (
    "it has to take them by LISTEN_FDS and LISTEN_PID (behind a wrapper: --no-listen-pid), "
    "or as {fd} in its words"
)

_UNUSED = f", and was not seen to use its sockets: {_HOW_TO_TAKE}"

_PASSED_ON = ("STATUS", "WATCHDOG", "WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC", "ERRNO", "BUSERROR")
"""The notifications of COMMAND that are passed on to the service manager."""


class Options(NamedTuple):
    """What ``conduit run`` is asked to do.

    Attributes:
        control: the path of the control socket.
        addresses: where to listen; with none, on the sockets that the service manager passed, or
            all that the predecessor has.
        command: what to run.
        policy: how to treat it.
        ready: what shows that it is ready: see `Readiness`; seconds show nothing.
        listen_pid: whether to set LISTEN_PID.
        mode: of Unix sockets.
        owner: of Unix sockets: user and group, -1 for this process's.
        backlog: connections that may wait.
        store: whether the service manager keeps the sockets as well.
    """

    control: str
    addresses: Sequence[Address]
    command: Sequence[str]
    policy: Policy = Policy()
    ready: str | float = EITHER
    listen_pid: bool = True
    mode: int = 0o600
    owner: tuple[int, int] = (-1, -1)
    backlog: int = _BACKLOG
    store: bool = False


def run(options: Options) -> int:
    """Serve until COMMAND ends, by itself, by a signal or for a successor.

    Returns:
        the exit code of COMMAND, or 128 and the signal that ended it.

    Raises:
        CommandError: COMMAND cannot be found, or does not become ready. It is gone, and a
            predecessor goes on serving.
        Error: the predecessor refuses, an address cannot be had, or the environment announces
            sockets (LISTEN_FDS) that are not there.
    """
    check_command(options.command)
    systemd.announced()
    processes.withhold()
    with contextlib.ExitStack() as stack:
        # Longer than COMMAND's own deadline, so that its deadline is the one reported.
        takeover = stack.enter_context(
            Takeover(options.control, timeout=options.policy.timeout + plan.GRACE, thread=False)
        )
        signals = stack.enter_context(Signals(options.policy.reload_signal))
        runner = stack.enter_context(_Runner(options, takeover, signals))
        return runner.run()


def check(options: Options) -> None:
    """Print what `run` would do, and do nothing.

    Raises:
        CommandError: COMMAND cannot be found, or there is nothing to listen on.
    """
    check_command(options.command)
    told = None
    try:
        for answer in ask(options.control, "status"):
            told = checked(options.control, answer)
            show(f"takes over from conduit {told['version']} (pid {told['pid']})")
    except CommandError as exc:
        if exc.code != NOBODY:
            raise
        show(f"starts anew: {exc}")
    found = [(each.name, each.key) for each in options.addresses] or sockets.passed()
    if told is not None and not found:
        found = [(each["name"], each["address"]) for each in told["sockets"]]
    if not found:
        raise sockets.nothing()
    for place, (name, what) in enumerate(found, processes.FIRST):
        show(f"descriptor {place}: {name}, {what}")
    show(" ".join(["runs:", *processes.filled(options.command, [name for name, _ in found])]))


def check_command(command: Sequence[str]) -> None:
    """Raise `CommandError` if a program cannot be found."""
    if shutil.which(command[0]) is None:
        raise CommandError(f"{command[0]}: command not found", 127)


class _Running(NamedTuple):
    """A generation that has a process."""

    process: Process
    notices: Notices
    readiness: Readiness


class _Runner:
    """Does what a `Plan` says; context manager.

    Leaving the block closes all that it owns. If COMMAND still runs then, after an unforeseen
    exception, its guard ends it.
    """

    def __init__(self, options: Options, takeover: Takeover, signals: Signals) -> None:
        self._options = options
        self._takeover = takeover
        self._signals = signals
        self._plan = Plan(options.policy, options.command)
        self._running: dict[Generation, _Running] = {}
        self._error: Error | None = None
        # Now, since the current directory may be removed later.
        self._directory: str | None = None
        if not options.control.startswith("@"):
            self._directory = os.path.dirname(os.fsdecode(absolute(options.control)))
        self._begun = time.time()
        self._first = options.command[0]
        self._sockets: list[Opened] = []
        self._guests: list[Guest] = []
        self._paths: dict[str, tuple[int, int]] = {}
        self._unseen: set[str] = set()
        self._spares = Spares(_END, self._is_needed)
        self._poller = select.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._spares.close()
        self._close_sockets()
        for guest in self._guests:
            guest.close()
        for running in self._running.values():
            running.notices.close()
            running.process.abandon()

    def run(self) -> int:
        """Serve; as `run`."""
        options = self._options
        wanted = Wanted(options.addresses, options.backlog, options.mode, options.owner)
        self._sockets.extend(opened(self._takeover, wanted))
        for each in self._sockets:
            # One that this process may not look at can't be put back.
            with contextlib.suppress(OSError):
                if each.path and (inode := inode_of(each.path)):
                    self._paths[each.path] = inode
                    if each.is_listening and not inspection.is_listened_at(each.path):
                        # It is of another network namespace, which /proc does not show.
                        self._unseen.add(each.path)
        self._inodes = frozenset(os.fstat(each.sock.fileno()).st_ino for each in self._sockets)
        self._takeover._receive_guests(self._answer)
        for number in (self._signals.fileno(), self._takeover.fileno()):
            self._poller.register(number, select.POLLIN)
        if options.policy.restart != "no":
            # It may end at any time.
            self._keep_paths()
        self._plan.begin(time.monotonic())
        self._do_all()
        while self._plan.outcome is None:
            self._poller.poll(self._milliseconds())
            self._notice()
            self._do_all()
        code, failure = self._plan.outcome
        if self._error is not None:
            raise self._error
        if failure:
            raise CommandError(f"{self._first} {failure}{_who_serves(self._takeover)}", code)
        return code

    # What is to be done.

    def _do_all(self) -> None:
        while actions := self._plan.take():
            for action in actions:
                self._do(action)

    def _do(self, action: plan.Action) -> None:
        if isinstance(action, plan.Start):
            self._start(action.generation)
        elif isinstance(action, plan.Send):
            self._send(action)
        elif isinstance(action, plan.HandOver):
            self._hand_over(action)
        elif isinstance(action, plan.Answer):
            text = self._about(action.generation, action.text)
            if action.code is None:
                action.asker.say("progress", text=text)
            else:
                action.asker.say("end", text=text, code=action.code)
        elif isinstance(action, plan.Say):
            say(self._about(action.generation, action.text))
        elif action.state == "RELOADING=1":
            _tell(f"{action.state}\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        else:
            _tell(action.state)

    def _start(self, generation: Generation) -> None:
        options = self._options
        make_room(len(self._sockets) + _ROOM)
        try:
            notices = Notices(self._directory)
            try:
                process = Process(
                    generation.words,
                    [each.sock.fileno() for each in self._sockets],
                    [each.name for each in self._sockets],
                    notices.path,
                    listen_pid=options.listen_pid,
                    stop_signal=options.policy.stop_signal,
                    files=[second_name(path, end) for path in self._paths for end in (_END, "")],
                )
            except BaseException:
                notices.close()
                raise
        except Exception as exc:
            # Also words that no program can have: what serves is not to end for that.
            how = f"could not be started ({getattr(exc, 'strerror', None) or exc})"
            self._plan.exited(generation, 1, how, time.monotonic())
            return
        readiness = Readiness(options.ready, self._inodes, process.pid, generation.since)
        self._running[generation] = _Running(process, notices, readiness)
        self._poller.register(notices.fileno(), select.POLLIN)
        if generation.number == 1:
            self._first = self._about(generation, "").strip()

    def _send(self, action: plan.Send) -> None:
        running = self._running.get(action.generation)
        if running is None:
            return
        if action.generation.state is State.DRAINING and (
            not self._plan.is_ending or self._plan.is_followed
        ):
            self._keep_paths()
        if action.to_all:
            running.process.send_all(action.number)
        else:
            running.process.send(action.number)

    def _is_needed(self, path: str) -> bool:
        """Whether to put a path back that is gone: somebody listens there, or may."""
        return path in self._unseen or inspection.is_listened_at(path)

    def _keep_paths(self) -> None:
        """Make second names of Unix sockets, as a COMMAND that ends may remove the first."""
        for path, inode in self._paths.items():
            self._spares.add(path, inode)

    def _hand_over(self, action: plan.HandOver) -> None:
        text = "serves"
        if action.is_first:
            try:
                self._takeover.ready()
            except Error as exc:
                self._error = exc
                self._plan.reject(action.generation, str(exc), time.monotonic())
                return
            text += _whom_it_follows(self._takeover)
            _tell(f"READY=1\nMAINPID={os.getpid()}")
            if self._options.store:
                self._store()
        else:
            _tell("READY=1")
        say(self._about(action.generation, text))

    def _store(self) -> None:
        """Store these sockets, and no others, in the service manager."""
        try:
            systemd.unstore(_STORED)
            for each in self._sockets:
                systemd.store(_STORED, each.sock)
        except Error as exc:
            say(f"NOTIFY_SOCKET: {exc}")

    def _about(self, generation: Generation | None, text: str) -> str:
        """Return a sentence about a generation, if it is about one."""
        if generation is None:
            return text
        running = self._running.get(generation)
        pid = "" if running is None else f" (pid {running.process.pid})"
        return f"{generation.words[0]}{pid} {text}"

    def _close_sockets(self) -> None:
        while self._sockets:
            self._sockets.pop().sock.close()

    # What happens.

    def _milliseconds(self) -> float | None:
        """Return how long to wait at most."""
        now = time.monotonic()
        times = [now + _OFTEN, now + self._takeover._until_step()]
        if self._plan.deadline is not None:
            times.append(self._plan.deadline)
        starting = self._plan.starting
        if starting is not None and starting in self._running:
            times.append(self._running[starting].readiness.next_look)
        if any(each.state is State.LEFTOVER for each in self._plan.generations):
            times.append(now + _GLANCE)
        return max(0.0, min(times) - now) * 1000 + 1

    def _notice(self) -> None:
        """Tell the plan what has happened."""
        now = time.monotonic()
        for number in self._signals.take():
            self._plan.signal(number, now)
        for generation, running in list(self._running.items()):
            for notice in running.notices.take(running.process.pid):
                self._hear(generation, running, notice, now)
        self._reap(now)
        if not self._plan.is_followed and self._is_followed():
            self._poller.unregister(self._takeover.fileno())
            self._plan.followed(now)
        if self._plan.is_ending:
            self._close_sockets()
        starting = self._plan.starting
        if starting is not None and starting in self._running:
            self._judge(starting, self._running[starting], now)
        for generation in self._plan.suspects(now):
            pid = self._running[generation].process.pid
            sight = inspection.see(inspection.family(pid, pid), self._inodes)
            self._plan.looked(generation, bool(sight.waiting), now)
        self._plan.tick(now)

    def _is_followed(self) -> bool:
        """Answer the control socket; return whether a successor serves now."""
        try:
            self._takeover.step()
            return self._takeover.wait(0)
        except Exception as exc:
            # What serves is not to end for that.
            say(f"answering at {self._options.control}: {exc!r}")
            time.sleep(_GLANCE)
            return False

    def _reap(self, now: float) -> None:
        for pid, status in processes.reap():
            for generation, running in self._running.items():
                if running.process.note(pid):
                    self._plan.exited(generation, *processes.fate(status), now)
                    break
        # Before they are forgotten, what is told of them is told with their pids.
        self._do_all()
        for generation, running in list(self._running.items()):
            if generation.state is State.LEFTOVER and running.process.is_gone():
                self._plan.emptied(generation, now)
            if generation.state is State.ENDED:
                self._spares.restore()
                del self._running[generation]
                self._poller.unregister(running.notices.fileno())
                running.notices.close()
                running.process.release()
        nothing_ends = all(each.state in (State.STARTING, State.SERVING) for each in self._running)
        if nothing_ends and self._options.policy.restart == "no":
            self._spares.close()

    def _hear(self, generation: Generation, running: _Running, notice: Notice, now: float) -> None:
        said = notice.said
        if said.get("READY") == "1":
            running.readiness.hear(notice.pid, now)
        usec = said.get("EXTEND_TIMEOUT_USEC", "")
        # More digits than any number that systemd takes.
        if usec.isascii() and usec.isdigit() and len(usec) <= 20:
            self._plan.extend(generation, int(usec) / 1e6, now)
        heard = self._plan.serving or self._plan.starting
        is_last = self._plan.is_ending and not self._plan.is_followed
        if generation is heard or is_last:
            state = "\n".join(f"{key}={said[key]}" for key in _PASSED_ON if key in said)
            if state:
                # It is said often; what serves does not wait for a manager that does not read.
                _tell(state, _BRIEF)

    def _judge(self, generation: Generation, running: _Running, now: float) -> None:
        """Tell the plan whether a generation serves, if that is to be seen."""
        verdict = running.readiness.look(now)
        if verdict is Verdict.REFUSED:
            self._plan.refuse(
                generation,
                f"says that it is ready, and has not the sockets: {_HOW_TO_TAKE}",
                now,
            )
        elif verdict is Verdict.OPEN:
            generation.doubt = _UNUSED if running.readiness.is_idle else ""
        else:
            if verdict is Verdict.GUESSED:
                after = f"is taken for ready after {self._options.ready:g} seconds"
                say(self._about(generation, f"{after}, and was not seen to serve"))
            self._plan.ready(generation, now)

    # What others ask.

    def _answer(self, conduit: Conduit, message: dict[str, Any]) -> None:
        guest = Guest(conduit)
        self._guests = [each for each in self._guests if not each.closed] + [guest]
        now = time.monotonic()
        kind = message["kind"]
        if kind == "status":
            guest.say("status", **self.status())
        elif kind == "stop":
            self._plan.stop(guest, self._options.policy.stop_signal, now)
        elif kind == "reload":
            words, timeout = message.get("command"), message.get("timeout")
            is_command = words is None or (
                isinstance(words, list) and words and all(isinstance(word, str) for word in words)
            )
            is_time = timeout is None or (
                isinstance(timeout, int | float) and 0 <= timeout <= _LONGEST_TIMEOUT
            )
            if not is_command or not is_time:
                guest.say("end", text="a request that is malformed", code=2)
            elif words and shutil.which(words[0]) is None:
                guest.say("end", text=f"{words[0]}: command not found", code=127)
            else:
                self._plan.reload(guest, words, timeout, now)
        else:
            guest.say("end", text=f"conduit {__version__} knows no {kind!r}", code=2)

    def status(self) -> dict[str, Any]:
        """Return what `conduit status` tells."""
        now = time.monotonic()
        old = self._takeover.predecessor_line
        predecessor = self._takeover.predecessor
        drains = old is not None and predecessor is not None and not has_ended(old)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "control": self._options.control,
            "since": self._begun,
            "restarts": self._plan.restarts,
            "reloads": self._plan.reloads,
            "predecessor": predecessor.pid if drains and predecessor else None,
            "sockets": [each.status() for each in self._sockets],
            "generations": [
                {
                    "number": generation.number,
                    "state": generation.state.value,
                    "seconds": round(now - generation.since, 3),
                    "pid": running.process.pid,
                    "command": list(generation.words),
                }
                for generation, running in self._running.items()
            ],
        }


def _who_serves(takeover: Takeover) -> str:
    old = takeover.predecessor
    if old is None:
        return ""
    if old.pid:
        try:
            os.kill(old.pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
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


def _tell(state: str, timeout: float = _PATIENCE) -> None:
    """Notify the service manager, if there is one."""
    try:
        systemd.notify(state, timeout=timeout)
    except (Error, ValueError) as exc:
        say(f"NOTIFY_SOCKET: {exc}")
