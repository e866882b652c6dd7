"""What `conduit run` does next, given what happened: no input, no output, no clock of its own.

A *generation* is one start of COMMAND. At most one serves and at most one starts; any number drain.
`Plan` is told what happened, and when, and collects what is to be done (`take`); ``deadline`` is
when it wants to be told that time has passed. What it never does, whatever it is told:

- end a generation that serves before another one does, unless everything is ending;
- start one while another starts, or while everything is ending;
- leave a request without a final answer, or answer it twice;
- be over while a generation runs.

Its driver (`conduit.cli.run`) has the processes, sockets and conversations.
"""

from __future__ import annotations

import enum
import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

GRACE = 10.0
"""Seconds from the stop signal to SIGKILL for what failed, does not react, or was left behind."""

FIRST_PAUSE = 0.1
"""Seconds before the first respawn; each further one waits twice as long."""

LONGEST_PAUSE = 30.0

STEADY = 10.0
"""Seconds that a generation must serve for the pause to start over."""


class State(enum.Enum):
    """How far a generation has come."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    LEFTOVER = "ended, and left processes behind"
    ENDED = "ended"


class Policy(NamedTuple):
    """How COMMAND is treated.

    Attributes:
        timeout: seconds to be ready.
        restart: "no", "on-failure" or "always".
        stop_signal: tells COMMAND to finish.
        reload_signal: makes `conduit run` start the next generation; 0 for none.
        drain_timeout: seconds until a generation that finishes is killed; None for never, unless it
            is seen to go on accepting.
    """

    timeout: float = 60.0
    restart: str = "no"
    stop_signal: int = signal.SIGTERM
    reload_signal: int = 0
    drain_timeout: float | None = None


@dataclass(eq=False)
class Generation:
    """One start of COMMAND.

    Attributes:
        number: counts from 1.
        words: COMMAND.
        asker: the peer that asked for it, which is told how it goes; None if nobody asked.
        since: when its state began.
        deadline: when to act on it if nothing happens.
        state: how far it has come.
        code: the exit code of its first process; None while that runs.
        look_at: when to look whether it still accepts, though it was told to finish.
        served: whether it ever served.
        is_killed: whether SIGKILL was sent.
        doubt: what to add if it is not ready in time.
    """

    number: int
    words: Sequence[str]
    asker: Any
    since: float
    deadline: float | None
    state: State = State.STARTING
    code: int | None = None
    look_at: float | None = None
    served: bool = False
    is_killed: bool = False
    doubt: str = ""


class Start(NamedTuple):
    """Start COMMAND."""

    generation: Generation


class Send(NamedTuple):
    """Send a signal to the first process of a generation, or to all that is left of it."""

    generation: Generation
    number: int
    to_all: bool = False


class HandOver(NamedTuple):
    """Announce that a generation serves; the first one ends the takeover from a predecessor."""

    generation: Generation
    is_first: bool


class Answer(NamedTuple):
    """Tell the asker how it goes or, with an exit code, how it ended."""

    asker: Any
    text: str
    code: int | None = None
    generation: Generation | None = None


class Say(NamedTuple):
    """Print on standard error; about a generation, if one is given."""

    text: str
    generation: Generation | None = None


class Notify(NamedTuple):
    """Tell the service manager."""

    state: str


Action = Start | Send | HandOver | Answer | Say | Notify


class _Request(NamedTuple):
    asker: Any
    words: Sequence[str] | None
    timeout: float | None


class Plan:
    """The generations of one `conduit run`: Plan(policy, words). Times are in seconds.

    Attributes:
        policy: how they are treated.
        words: the COMMAND that served last, or will serve first.
        generations: those that have not ended, the oldest first.
        restarts: how often one that had ended was started again.
        reloads: how often a generation replaced one that served.
        is_ending: whether no more generations are started.
        is_followed: whether another process serves.
        outcome: the exit code, and why nothing ever served; None until it is over.
    """

    def __init__(self, policy: Policy, words: Sequence[str]) -> None:
        self.policy = policy
        self.words: Sequence[str] = words
        self.generations: list[Generation] = []
        self.restarts: int = 0
        self.reloads: int = 0
        self.is_ending: bool = False
        self.is_followed: bool = False
        self.outcome: tuple[int, str] | None = None
        self._actions: list[Action] = []
        self._requests: deque[_Request] = deque()
        self._stoppers: list[Any] = []
        self._stops = 0
        self._count = 0
        self._ever_served = False
        self._respawn_at: float | None = None
        self._pause = FIRST_PAUSE
        # The generation that decides the exit code once everything is ending.
        self._last: Generation | None = None
        self._forced_by = 0
        self._code = 0
        self._failure = ""

    def take(self) -> list[Action]:
        """Return the actions to do, in order, and forget them."""
        actions, self._actions = self._actions, []
        return actions

    @property
    def starting(self) -> Generation | None:
        """The generation that starts and will serve next."""
        return self._only(State.STARTING)

    @property
    def serving(self) -> Generation | None:
        """The generation that serves."""
        return self._only(State.SERVING)

    @property
    def deadline(self) -> float | None:
        """When `tick` or `suspects` has something to do; None if never."""
        times = [self._respawn_at]
        for generation in self.generations:
            times += [generation.deadline, generation.look_at]
        return min((time for time in times if time is not None), default=None)

    def suspects(self, now: float) -> list[Generation]:
        """Return those that should have stopped accepting by now; then call `looked`."""
        return [
            generation
            for generation in self.generations
            if generation.look_at is not None and now >= generation.look_at
        ]

    # What happened.

    def begin(self, now: float) -> None:
        """Start the first generation."""
        self._start(_Request(None, None, None), now)

    def ready(self, generation: Generation, now: float) -> None:
        """Note that a generation serves."""
        if generation.state is not State.STARTING:
            return
        old = self.serving
        generation.state, generation.since, generation.deadline = State.SERVING, now, None
        generation.served = True
        self.words = generation.words
        self._do(HandOver(generation, not self._ever_served))
        self._ever_served = True
        if old is not None:
            self.reloads += 1
            self._drain(old, self.policy.stop_signal, now)
        self._answer(generation, "serves", 0)
        self._next(now)

    def refuse(self, generation: Generation, why: str, now: float) -> None:
        """Note that a generation does not serve, and why."""
        if generation.state is State.STARTING:
            self._drain(generation, self.policy.stop_signal, now)
            self._fail(generation, why, 1, now)

    def reject(self, generation: Generation, why: str, now: float) -> None:
        """Note that the first generation may not serve: the predecessor does not hand over."""
        generation.served = self._ever_served = False
        self._drain(generation, self.policy.stop_signal, now)
        self._fail(generation, why, 1, now)

    def extend(self, generation: Generation, seconds: float, now: float) -> None:
        """Note that a generation asks for time to start."""
        if generation.state is State.STARTING and generation.deadline is not None:
            generation.deadline = max(generation.deadline, now + seconds)

    def exited(self, generation: Generation, code: int, how: str, now: float) -> None:
        """Note that the first process of a generation ended, with a code, and how in words.

        `emptied` says when nothing else is left of it.
        """
        before, lasted = generation.state, now - generation.since
        generation.code = code
        if generation is self._last:
            self._code = 128 + self._forced_by if self._forced_by else code
            if not self._ever_served:
                self._failure = f"{how} before it was ready"
                self._code = self._code or 1
        generation.state, generation.since, generation.look_at = State.LEFTOVER, now, None
        if generation.served and not generation.is_killed:
            self._do(Send(generation, self.policy.stop_signal, to_all=True))
            generation.deadline = max(generation.deadline or 0.0, now + GRACE)
        else:
            self._kill(generation, now)
        if before is State.STARTING:
            self._fail(generation, f"{how} before it was ready", code or 1, now)
        elif before is State.SERVING:
            self._lose(generation, code, how, lasted, now)

    def emptied(self, generation: Generation, now: float) -> None:
        """Note that nothing is left of a generation whose first process has ended."""
        if generation.state is State.LEFTOVER:
            generation.state, generation.since, generation.deadline = State.ENDED, now, None
            self.generations.remove(generation)
            self._look_whether_over()

    def looked(self, generation: Generation, is_accepting: bool, now: float) -> None:
        """Note whether one that was told to finish still waits for connections."""
        generation.look_at = None
        if is_accepting and generation.state is State.DRAINING:
            self._do(Say(f"still accepts {GRACE:g} seconds after the stop signal", generation))
            self._kill(generation, now)

    def reload(
        self,
        asker: Any,
        words: Sequence[str] | None,
        timeout: float | None,
        now: float,
    ) -> None:
        """Start the next generation, once none is starting; with new words, if given."""
        request = _Request(asker, words, timeout)
        # A signal during a reload asks for another, and so do many.
        if asker is not None or request not in self._requests:
            self._requests.append(request)
        if self.starting is not None:
            self._tell(asker, "waits until what is starting serves")
        self._next(now)

    def stop(self, asker: Any, number: int, now: float) -> None:
        """End everything, draining; at a second signal, at once.

        Args:
            asker: the peer to tell once it is over; None if it was a signal.
            number: the signal that asked for it.
            now: the time.
        """
        if asker is not None:
            self._stoppers.append(asker)
        else:
            self._stops += 1
        default = self.policy.stop_signal == signal.SIGTERM
        passed_on = number if default else self.policy.stop_signal
        if asker is None and self._stops > 1:
            self._forced_by = number
            for generation in list(self.generations):
                self._kill(generation, now)
        elif asker is None and self.is_ending:
            for generation in self.generations:
                if generation.state is State.DRAINING:
                    self._do(Send(generation, passed_on))
        elif not self.is_ending:
            self._do(Notify("STOPPING=1"))
            self._end(passed_on, now)
        self._look_whether_over()

    def signal(self, number: int, now: float) -> None:
        """Note a signal."""
        if number in (signal.SIGTERM, signal.SIGINT, self.policy.stop_signal):
            self.stop(None, number, now)
        elif number == self.policy.reload_signal:
            self.reload(None, None, None, now)
        else:
            generation = self.serving or self.starting
            if generation is not None:
                self._do(Send(generation, number))

    def followed(self, now: float) -> None:
        """Note that a successor, another process, serves from now on."""
        self.is_followed = True
        self._do(Say("finishes what it has begun: a successor serves", self.serving))
        self._end(self.policy.stop_signal, now)

    def tick(self, now: float) -> None:
        """Note the time."""
        for generation in self.generations.copy():
            if generation.deadline is None or now < generation.deadline:
                continue
            if generation.state is State.STARTING:
                seconds = generation.deadline - generation.since
                late = f"was not ready within {seconds:g} seconds{generation.doubt}"
                self.refuse(generation, late, now)
                continue
            if generation.state is State.DRAINING:
                lasted = f"{now - generation.since:.0f} seconds"
                self._do(Say(f"did not end within {lasted}, and is killed", generation))
            self._kill(generation, now)
        if self._respawn_at is not None and now >= self._respawn_at:
            self.restarts += 1
            self._start(_Request(None, None, None), now)

    # What follows from it.

    def _do(self, action: Action) -> None:
        self._actions.append(action)

    def _only(self, state: State) -> Generation | None:
        return next((each for each in self.generations if each.state is state), None)

    def _tell(self, asker: Any, text: str, code: int | None = None) -> None:
        if asker is not None:
            self._do(Answer(asker, text, code))

    def _answer(self, generation: Generation, text: str, code: int) -> None:
        asker, generation.asker = generation.asker, None
        if asker is not None:
            self._do(Answer(asker, text, code, generation))

    def _start(self, request: _Request, now: float) -> None:
        self._respawn_at = None
        self._count += 1
        timeout = self.policy.timeout if request.timeout is None else request.timeout
        words = self.words if request.words is None else request.words
        generation = Generation(self._count, words, request.asker, now, now + timeout)
        self.generations.append(generation)
        if self.serving is not None:
            self._do(Notify("RELOADING=1"))
        self._do(Start(generation))
        if request.asker is not None:
            self._do(Answer(request.asker, "starts", None, generation))

    def _next(self, now: float) -> None:
        """Start what was asked for, unless something starts."""
        while self._requests and self.is_ending:
            self._tell(self._requests.popleft().asker, "it is ending, and starts nothing more", 1)
        if self._requests and self.starting is None:
            self._start(self._requests.popleft(), now)

    def _drain(self, generation: Generation, number: int, now: float) -> None:
        """Have one finish; if it never served, within `GRACE`: it may have accepted already."""
        timeout = self.policy.drain_timeout if generation.served else GRACE
        generation.state, generation.since, generation.deadline = State.DRAINING, now, None
        if timeout is None:
            generation.look_at = now + GRACE
        else:
            generation.deadline = now + timeout
        self._do(Send(generation, number))

    def _kill(self, generation: Generation, now: float) -> None:
        if not generation.is_killed or generation.state is State.LEFTOVER:
            generation.is_killed = True
            self._do(Send(generation, signal.SIGKILL, to_all=True))
        generation.deadline = generation.look_at = None
        # Orphans that nobody reaps stay in the group.
        self.emptied(generation, now)

    def _fail(self, generation: Generation, why: str, code: int, now: float) -> None:
        """Continue after a generation that should have served failed."""
        self._answer(generation, why, code)
        if not self._ever_served:
            self._failure, self._code = why, code
            self._end(self.policy.stop_signal, now)
            return
        self._do(Say(why, generation))
        if self.serving is not None:
            self._do(Notify("READY=1"))
        self._go_on(code, now)

    def _lose(self, generation: Generation, code: int, how: str, lasted: float, now: float) -> None:
        """Continue after the generation that served ended, having served ``lasted`` seconds."""
        self._do(Say(how, generation))
        if lasted >= STEADY:
            self._pause = FIRST_PAUSE
        self._code = code
        self._go_on(code, now)

    def _go_on(self, code: int, now: float) -> None:
        """Have something serve, or end with a code."""
        self._next(now)
        if self.is_ending or self.serving is not None or self.starting is not None:
            return
        if self.policy.restart == "always" or (self.policy.restart == "on-failure" and code):
            self._do(Say(f"starting it again in {self._pause:g} seconds"))
            self._respawn_at = now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._end(self.policy.stop_signal, now)

    def _end(self, number: int, now: float) -> None:
        """Have all generations finish, and start no more."""
        self.is_ending = True
        self._respawn_at = None
        if self._last is None:
            self._last = self.serving or self.starting
        for generation in self.generations:
            if generation.state is State.STARTING:
                self._answer(generation, "is ended before it was ready", 1)
            if generation.state in (State.STARTING, State.SERVING):
                self._drain(generation, number, now)
        self._next(now)
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self.is_ending and not self.generations:
            self.outcome = self.outcome or (self._code, self._failure)
            while self._stoppers:
                self._tell(self._stoppers.pop(), "ended", 0)
