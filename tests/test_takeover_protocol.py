"""The rules of a takeover alone, without a socket: who may say what, and who owns the sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conduit.errors import TakeoverError
from conduit.takeover import protocol
from conduit.takeover.protocol import Conversation, Side, State

RIGHT: list[tuple[Side, str]] = [
    (Side.SUCCESSOR, "hello"),
    (Side.PREDECESSOR, "welcome"),
    (Side.PREDECESSOR, "sockets"),
    (Side.PREDECESSOR, "items"),
    (Side.PREDECESSOR, "state"),
    (Side.PREDECESSOR, "control"),
    (Side.SUCCESSOR, "received"),
    (Side.SUCCESSOR, "ready"),
    (Side.PREDECESSOR, "sockets"),
    (Side.PREDECESSOR, "state"),
    (Side.PREDECESSOR, "confirmed"),
    (Side.SUCCESSOR, "done"),
    (Side.PREDECESSOR, "over"),
]

KINDS = sorted({kind for _, kind in RIGHT} | {"refused"})

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def other(side: Side) -> Side:
    return Side.SUCCESSOR if side is Side.PREDECESSOR else Side.PREDECESSOR


def after(steps: list[tuple[Side, str]], side: Side) -> Conversation:
    """A conversation as one side sees it after some steps."""
    conversation = Conversation(side)
    for speaker, kind in steps:
        if speaker is side:
            conversation.say(kind)
        else:
            assert conversation.hear({"kind": kind}) == kind
    return conversation


@pytest.mark.parametrize("side", Side)
def test_a_takeover_goes_from_hello_to_over(side: Side) -> None:
    conversation = after(RIGHT, side)
    assert conversation.state is State.OVER
    assert conversation.received
    assert not conversation.is_refused


@pytest.mark.parametrize("side", Side)
@settings(deadline=None)
@given(length=st.integers(0, len(RIGHT)), message=ANYTHING | st.sampled_from(KINDS))
def test_what_may_not_be_said_is_an_error_and_changes_nothing(
    side: Side, length: int, message: Any
) -> None:
    conversation = after(RIGHT[:length], side)
    before = conversation.state
    if message in KINDS:
        message = {"kind": message}
    kind = message.get("kind") if isinstance(message, dict) else None
    follows = length < len(RIGHT) and RIGHT[length] == (other(side), kind)
    try:
        heard = conversation.hear(message)
    except TakeoverError as exc:
        assert not follows
        assert conversation.state is (State.REFUSED if kind == "refused" else before)
        assert str(exc)
    else:
        assert heard == kind if heard is not None else isinstance(kind, str)
        if heard is None:
            assert conversation.state is before


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("length", range(len(RIGHT) + 1))
def test_a_refusal_may_come_at_any_time_and_ends_it(side: Side, length: int) -> None:
    conversation = after(RIGHT[:length], side)
    with pytest.raises(TakeoverError, match=r"the other side refuses: no \(pid 7\)"):
        conversation.hear({"kind": "refused", "reason": "no", "pid": 7})
    assert conversation.is_refused
    for kind in KINDS:
        assert conversation.hear({"kind": kind}) is None
    assert conversation.hear(5) is None
    conversation = after(RIGHT[:length], side)
    conversation.say("refused")
    assert conversation.is_refused


@pytest.mark.parametrize("side", Side)
def test_a_side_says_only_what_it_may(side: Side) -> None:
    for length in range(len(RIGHT) + 1):
        for kind in {*KINDS, "x"} - {"refused"}:
            conversation = after(RIGHT[:length], side)
            before = conversation.state
            speaker, steps = protocol._STEPS[before]
            if speaker is side and kind in steps:
                continue
            with pytest.raises(ValueError, match="cannot be said"):
                conversation.say(kind)
            assert conversation.state is before


def test_an_unknown_kind_is_ignored() -> None:
    assert after(RIGHT[:3], Side.SUCCESSOR).hear({"kind": "hint", "x": 1}) is None


def test_a_refusal_has_a_reason_of_some_length_the_versions_and_the_pid() -> None:
    fields = protocol.refused("x" * 100_000)
    assert len(fields["reason"]) == protocol.LONGEST_REASON
    assert fields["version"] in fields["versions"]
    assert fields["pid"] > 0
    with pytest.raises(TakeoverError, match=r"refuses: None$"):
        Conversation(Side.SUCCESSOR).hear({"kind": "refused", "pid": "x"})


@settings(deadline=None)
@given(ANYTHING)
def test_the_version_is_the_highest_that_both_speak_or_none(versions: Any) -> None:
    version = protocol.version_for({"versions": versions})
    assert version is None or version in versions
    assert protocol.version_for({"versions": [0, 1, 2**70]}) == 1
    assert protocol.version_for({}) is None


class TwoSides(RuleBasedStateMachine):
    """Two sides that speak, lose what is under way, refuse and end, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = {side: Conversation(side) for side in Side}
        self.under_way: dict[Side, list[str]] = {side: [] for side in Side}
        self.ended: set[Side] = set()

    def choices(self, side: Side) -> list[str]:
        speaker, steps = protocol._STEPS[self.sides[side].state]
        return sorted(steps) if speaker is side and side not in self.ended else []

    @rule(side=st.sampled_from(Side), data=st.data())
    def speak(self, side: Side, data: st.DataObject) -> None:
        if choices := self.choices(side):
            kind = data.draw(st.sampled_from(choices))
            self.sides[side].say(kind)
            self.under_way[other(side)].append(kind)

    @rule(side=st.sampled_from(Side))
    def hear(self, side: Side) -> None:
        if side in self.ended or not self.under_way[side]:
            return
        kind = self.under_way[side].pop(0)
        refused = self.sides[side].is_refused
        try:
            assert self.sides[side].hear({"kind": kind}) == (None if refused else kind)
        except TakeoverError:
            assert kind == "refused"

    @precondition(lambda self: self.sides[Side.PREDECESSOR].state is not State.DONE)
    @rule(side=st.sampled_from(Side))
    def refuse(self, side: Side) -> None:
        # The successor never does once its last word has left.
        states = (State.REFUSED, State.DONE, State.OVER)
        if side not in self.ended and self.sides[side].state not in states:
            self.sides[side].say("refused")
            self.under_way[other(side)].append("refused")

    @rule(side=st.sampled_from(Side))
    def end(self, side: Side) -> None:
        self.ended.add(side)
        self.under_way[side].clear()

    @invariant()
    def the_successor_is_sure_only_when_the_predecessor_has_let_go(self) -> None:
        old, new = self.sides[Side.PREDECESSOR], self.sides[Side.SUCCESSOR]
        if new.state is State.OVER:
            assert old.state is State.OVER

    @invariant()
    def the_predecessor_lets_go_only_of_what_the_successor_has_claimed(self) -> None:
        old, new = self.sides[Side.PREDECESSOR], self.sides[Side.SUCCESSOR]
        if old.state in (State.DONE, State.OVER):
            assert new.state in (State.DONE, State.OVER, State.REFUSED)
        if old.received:
            assert new.received or new.is_refused


TwoSides.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_no_order_of_events_makes_two_owners = TwoSides.TestCase
