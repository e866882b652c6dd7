"""What `conduit run` does next: told what happened, without a process."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conduit.cli import plan as module
from conduit.cli.plan import (
    GRACE,
    Answer,
    Generation,
    HandOver,
    Notify,
    Plan,
    Policy,
    Say,
    Send,
    Start,
    State,
)

TERM, KILL = signal.SIGTERM, signal.SIGKILL
WORDS = ("serve",)


def begun(**policy: Any) -> tuple[Plan, Generation]:
    plan = Plan(Policy(**policy), WORDS)
    plan.begin(0)
    [start] = plan.take()
    assert isinstance(start, Start)
    return plan, start.generation


def serving(**policy: Any) -> tuple[Plan, Generation]:
    plan, generation = begun(**policy)
    plan.ready(generation, 1)
    assert plan.take() == [HandOver(generation, True)]
    return plan, generation


def started(plan: Plan) -> Generation:
    """The generation that is started now; what is told of it is passed over."""
    [generation] = [action.generation for action in plan.take() if isinstance(action, Start)]
    return generation


def end(plan: Plan, generation: Generation, code: int, now: float) -> None:
    plan.exited(generation, code, f"exited with {code}", now)
    plan.emptied(generation, now)


def kinds(plan: Plan, kind: Any) -> list[Any]:
    return [action for action in plan.take() if isinstance(action, kind)]


# One generation


def test_the_exit_code_is_that_of_what_served() -> None:
    plan, only = serving()
    plan.exited(only, 7, "exited with 7", 2)
    assert plan.outcome is None
    plan.emptied(only, 2)
    assert plan.outcome == (7, "")


def test_what_ends_before_it_is_ready_is_a_failure() -> None:
    plan, only = begun()
    end(plan, only, 0, 2)
    assert plan.outcome == (1, "exited with 0 before it was ready")


def test_what_is_not_ready_in_time_is_ended() -> None:
    plan, only = begun(timeout=5)
    only.doubt = ", and not seen"
    assert plan.deadline == 5
    plan.tick(4.9)
    assert plan.take() == []
    plan.tick(5)
    assert plan.take() == [Send(only, TERM)]
    plan.ready(only, 6)
    plan.tick(5 + GRACE)
    assert Send(only, KILL, to_all=True) in plan.take()
    assert plan.outcome is None
    end(plan, only, 137, 16)
    assert plan.outcome == (1, "was not ready within 5 seconds, and not seen")


def test_what_the_predecessor_does_not_hand_over_to_is_ended() -> None:
    plan, only = serving()
    plan.reject(only, "it refuses", 2)
    assert plan.take() == [Send(only, TERM)]
    assert plan.deadline == 2 + GRACE
    end(plan, only, 143, 3)
    assert plan.outcome == (1, "it refuses")


def test_time_that_is_asked_for_is_given() -> None:
    plan, only = begun(timeout=5)
    plan.extend(only, 10, 3)
    assert plan.deadline == 13
    plan.extend(only, 1, 3)
    assert plan.deadline == 13
    plan.ready(only, 12)
    plan.extend(only, 10, 12)
    assert plan.deadline is None


def test_what_it_leaves_behind_is_told_to_finish_and_then_killed() -> None:
    plan, only = serving()
    plan.exited(only, 0, "exited with 0", 2)
    assert Send(only, TERM, to_all=True) in plan.take()
    plan.tick(2 + GRACE)
    assert plan.take() == [Send(only, KILL, to_all=True)]
    # Whether anybody reaps them or not.
    assert plan.outcome == (0, "")


# Signals


@pytest.mark.parametrize(
    ("stop_signal", "number", "sent"),
    [
        (TERM, TERM, TERM),
        (TERM, signal.SIGINT, signal.SIGINT),
        (signal.SIGQUIT, TERM, signal.SIGQUIT),
        (signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR1),
    ],
)
def test_a_signal_that_ends_it_is_passed_on(stop_signal: int, number: int, sent: int) -> None:
    plan, only = serving(stop_signal=stop_signal)
    plan.signal(number, 2)
    assert plan.take() == [Notify("STOPPING=1"), Send(only, sent)]
    assert only.state is State.DRAINING
    end(plan, only, 0, 3)
    assert plan.outcome == (0, "")


def test_other_signals_are_passed_on_to_what_serves_or_starts() -> None:
    plan, only = begun()
    plan.signal(signal.SIGUSR1, 0)
    assert plan.take() == [Send(only, signal.SIGUSR1)]
    plan.ready(only, 1)
    plan.take()
    plan.signal(signal.SIGHUP, 2)
    assert plan.take() == [Send(only, signal.SIGHUP)]
    end(plan, only, 0, 3)
    plan.take()
    plan.signal(signal.SIGHUP, 2)
    assert plan.take() == []


def test_a_second_signal_forces_and_is_in_the_exit_code() -> None:
    plan, only = serving()
    plan.signal(signal.SIGINT, 2)
    plan.take()
    plan.signal(signal.SIGINT, 3)
    assert plan.take() == [Send(only, KILL, to_all=True)]
    end(plan, only, 137, 4)
    assert plan.outcome == (130, "")


def test_a_signal_while_it_starts_is_a_failure_with_its_code() -> None:
    plan, only = begun()
    plan.signal(signal.SIGINT, 2)
    assert Send(only, signal.SIGINT) in plan.take()
    end(plan, only, 130, 3)
    assert plan.outcome == (130, "exited with 130 before it was ready")


def test_a_signal_reloads_and_during_a_reload_once_more() -> None:
    plan, first = serving(reload_signal=signal.SIGHUP)
    plan.signal(signal.SIGHUP, 2)
    second = started(plan)
    plan.signal(signal.SIGHUP, 3)
    plan.signal(signal.SIGHUP, 3)
    assert plan.take() == []
    plan.ready(second, 4)
    third = started(plan)
    plan.ready(third, 5)
    assert kinds(plan, Start) == []
    assert [each.state for each in (first, second, third)] == [
        State.DRAINING,
        State.DRAINING,
        State.SERVING,
    ]
    assert plan.reloads == 2


# Reload


def test_a_reload_replaces_what_serves_and_tells_who_asked() -> None:
    plan, first = serving()
    plan.reload("me", ["next"], None, 2)
    said = plan.take()
    second = plan.starting
    assert second is not None
    assert second.words == ["next"]
    assert said == [
        Notify("RELOADING=1"),
        Start(second),
        Answer("me", "starts", None, second),
    ]
    assert first.state is State.SERVING
    plan.ready(second, 3)
    assert plan.take() == [
        HandOver(second, False),
        Send(first, TERM),
        Answer("me", "serves", 0, second),
    ]
    assert plan.words == ["next"]
    end(plan, first, 9, 4)
    assert plan.outcome is None
    end(plan, second, 5, 5)
    assert plan.outcome == (5, "")


@pytest.mark.parametrize("how", ["ends", "late", "lies"])
def test_a_reload_that_fails_leaves_what_serves(how: str) -> None:
    plan, first = serving()
    plan.reload("me", ["next"], 3, 2)
    second = started(plan)
    if how == "ends":
        end(plan, second, 3, 4)
        code, why = 3, "exited with 3 before it was ready"
    elif how == "late":
        plan.tick(5)
        code, why = 1, "was not ready within 3 seconds"
    else:
        plan.refuse(second, "lies", 4)
        code, why = 1, "lies"
    said = plan.take()
    assert Answer("me", why, code, second) in said
    assert Notify("READY=1") in said
    assert first.state is State.SERVING
    assert plan.words == WORDS
    assert plan.reloads == 0
    if how != "ends":
        end(plan, second, 1, 6)
    assert plan.generations == [first]


def test_who_asks_while_another_starts_waits() -> None:
    plan, _ = serving()
    plan.reload("one", None, None, 2)
    second = started(plan)
    plan.reload("other", None, None, 2)
    assert plan.take() == [Answer("other", "waits until what is starting serves")]
    end(plan, second, 3, 4)
    assert [answer.asker for answer in kinds(plan, Answer)] == ["one", "other"]


def test_what_served_may_end_while_the_next_one_starts() -> None:
    plan, first = serving()
    plan.reload("me", None, None, 2)
    second = started(plan)
    end(plan, first, 4, 3)
    assert plan.outcome is None
    plan.ready(second, 4)
    assert second.state is State.SERVING
    end(plan, second, 0, 5)
    assert plan.outcome == (0, "")


def test_when_both_fail_the_code_is_that_of_what_served() -> None:
    plan, first = serving()
    plan.reload("me", None, None, 2)
    second = started(plan)
    end(plan, first, 4, 3)
    end(plan, second, 7, 4)
    assert plan.outcome == (4, "")


# Respawn


@pytest.mark.parametrize(
    ("restart", "code", "again"),
    [("no", 1, False), ("on-failure", 1, True), ("on-failure", 0, False), ("always", 0, True)],
)
def test_what_ends_is_started_again_if_that_was_asked_for(
    restart: str, code: int, again: bool
) -> None:
    plan, only = serving(restart=restart)
    end(plan, only, code, 2)
    assert (plan.outcome is None) == again
    assert kinds(plan, Start) == []
    plan.tick(3)
    assert len(kinds(plan, Start)) == again


def test_the_pause_grows_and_begins_anew() -> None:
    plan, each = serving(restart="always")
    now, pauses = 2.0, []
    for _ in range(11):
        end(plan, each, 1, now)
        assert plan.deadline is not None
        pauses.append(round(plan.deadline - now, 3))
        now = plan.deadline
        plan.tick(now)
        each = started(plan)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    plan.ready(each, now)
    end(plan, each, 1, now + module.STEADY)
    assert plan.deadline == pytest.approx(now + module.STEADY + 0.1)
    assert plan.restarts == 11


def test_a_reload_need_not_wait_for_the_pause() -> None:
    plan, only = serving(restart="always")
    end(plan, only, 1, 2)
    plan.reload("me", None, None, 2)
    assert len(kinds(plan, Start)) == 1
    plan.tick(100)
    assert kinds(plan, Start) == []


def test_a_signal_in_the_pause_ends_it() -> None:
    plan, only = serving(restart="always")
    end(plan, only, 3, 2)
    plan.signal(TERM, 2)
    assert plan.outcome == (3, "")


# Ending


def test_several_drain_at_once_and_are_killed_in_time() -> None:
    plan, first = serving(drain_timeout=20)
    plan.reload(None, None, None, 2)
    second = started(plan)
    plan.ready(second, 3)
    plan.followed(5)
    assert plan.is_followed
    assert {each.state for each in plan.generations} == {State.DRAINING}
    assert plan.suspects(1000) == []
    plan.take()
    plan.tick(23)
    assert plan.take() == [
        Say("did not end within 20 seconds, and is killed", first),
        Send(first, KILL, to_all=True),
    ]
    end(plan, first, 137, 23)
    end(plan, second, 0, 24)
    assert plan.outcome == (0, "")


@pytest.mark.parametrize("is_accepting", [True, False])
def test_what_goes_on_accepting_is_killed(is_accepting: bool) -> None:
    plan, only = serving()
    plan.followed(5)
    plan.take()
    assert plan.suspects(5) == []
    assert plan.deadline == 5 + GRACE
    assert plan.suspects(5 + GRACE) == [only]
    plan.looked(only, is_accepting, 5 + GRACE)
    assert (Send(only, KILL, to_all=True) in plan.take()) == is_accepting
    assert plan.suspects(100) == []


def test_who_asked_to_stop_is_told_once_it_is_over() -> None:
    plan, only = serving()
    plan.stop("me", TERM, 2)
    plan.stop("you", TERM, 2)
    plan.reload("late", None, None, 2)
    assert kinds(plan, Answer) == [Answer("late", "it is ending, and starts nothing more", 1)]
    end(plan, only, 0, 3)
    assert {answer.asker for answer in kinds(plan, Answer)} == {"me", "you"}


def test_a_signal_reaches_what_drains_for_a_successor() -> None:
    plan, only = serving()
    plan.followed(2)
    plan.take()
    plan.signal(TERM, 3)
    assert plan.take() == [Send(only, TERM)]


def test_a_signal_does_not_reach_what_has_ended() -> None:
    plan, only = serving()
    plan.followed(2)
    plan.exited(only, 0, "exited with 0", 3)
    plan.take()
    plan.signal(TERM, 3)
    assert plan.take() == []


def test_a_respawn_that_fails_is_tried_again() -> None:
    plan, only = serving(restart="always")
    end(plan, only, 0, 2)
    plan.tick(3)
    second = started(plan)
    end(plan, second, 1, 3)
    assert plan.deadline == pytest.approx(3.2)
    assert Notify("READY=1") not in plan.take()


def test_a_successor_may_come_while_it_ends() -> None:
    plan, only = serving()
    plan.stop("me", TERM, 2)
    plan.followed(3)
    end(plan, only, 6, 4)
    assert plan.outcome == (6, "")


def test_who_asked_for_what_starts_is_told_that_it_ends() -> None:
    plan, _ = serving()
    plan.reload("me", None, None, 2)
    second = started(plan)
    plan.signal(TERM, 3)
    assert Answer("me", "is ended before it was ready", 1, second) in plan.take()


# Whatever happens

CODES = st.sampled_from([0, 1, 143])
SIGNALS = st.sampled_from([TERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])


class Anything(RuleBasedStateMachine):
    """All that may happen, in any order, and what holds all the time."""

    plan: Plan

    @initialize(
        restart=st.sampled_from(["no", "on-failure", "always"]),
        drain=st.sampled_from([None, 5.0]),
    )
    def begin(self, restart: str, drain: float | None) -> None:
        policy = Policy(10, restart, TERM, signal.SIGHUP, drain)
        self.plan = Plan(policy, WORDS)
        self.now = 0.0
        self.asked = 0
        self.answered: list[object] = []
        self.told_to_end: set[int] = set()
        self.alive: dict[int, Generation] = {}
        self.plan.begin(0)

    def each(self, data: st.DataObject) -> Generation:
        return data.draw(st.sampled_from(list(self.alive.values())))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def is_ready(self, data: st.DataObject) -> None:
        self.plan.ready(self.each(data), self.now)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def lies(self, data: st.DataObject) -> None:
        self.plan.refuse(self.each(data), "lies", self.now)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), code=CODES, empty=st.booleans())
    def ends(self, data: st.DataObject, code: int, empty: bool) -> None:
        generation = self.each(data)
        del self.alive[generation.number]
        self.plan.exited(generation, code, "ended", self.now)
        if empty:
            self.plan.emptied(generation, self.now)

    @rule(seconds=st.sampled_from([0.05, 1, 30]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for generation in self.plan.suspects(self.now):
            self.plan.looked(generation, generation.number % 2 == 0, self.now)
        self.plan.tick(self.now)

    @rule(words=st.sampled_from([None, ("next",)]))
    def somebody_reloads(self, words: tuple[str, ...] | None) -> None:
        self.asked += 1
        self.plan.reload(self.asked, words, None, self.now)

    @rule()
    def somebody_stops(self) -> None:
        self.asked += 1
        self.plan.stop(self.asked, TERM, self.now)

    @rule(number=SIGNALS)
    def a_signal_comes(self, number: int) -> None:
        self.plan.signal(number, self.now)

    @precondition(lambda self: self.plan.serving and not self.plan.is_followed)
    @rule()
    def a_successor_serves(self) -> None:
        self.plan.followed(self.now)

    @invariant()
    def promises_hold(self) -> None:
        plan = self.plan
        for action in plan.take():
            if isinstance(action, Start):
                assert not plan.is_ending or action.generation.state is State.DRAINING
                self.alive[action.generation.number] = action.generation
            elif isinstance(action, Answer) and action.code is not None:
                assert action.asker not in self.answered
                self.answered.append(action.asker)
            elif isinstance(action, Send) and action.number == KILL:
                assert action.generation.state is not State.SERVING
        states = [generation.state for generation in plan.generations]
        assert states.count(State.STARTING) <= 1
        assert states.count(State.SERVING) <= 1
        assert set(self.alive.values()) <= set(plan.generations)
        if plan.outcome is not None:
            assert not self.alive
            assert len(self.answered) == self.asked
        elif not plan.generations:
            assert plan.deadline is not None

    def teardown(self) -> None:
        if not hasattr(self, "plan"):
            return
        self.plan.stop(None, TERM, self.now)
        self.plan.stop(None, TERM, self.now)
        self.promises_hold()
        for generation in list(self.alive.values()):
            del self.alive[generation.number]
            self.plan.exited(generation, 137, "was killed", self.now)
        self.promises_hold()
        assert self.plan.outcome is not None


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
