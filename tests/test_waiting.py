"""Waiting: deadlines, signals, closing from another thread, sharers that flip flags, forks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import signal
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from drivers import only_blocking
from helpers import (
    GENEROUS,
    Call,
    content,
    drain,
    fill,
    handling,
    in_child,
    interrupt_once_polling,
    is_open,
    memory,
    open_descriptors,
    room_for,
    run_python,
    send,
    wait_until_asleep,
    wait_until_polling,
    waits,
)

import conduit
from conduit import Conduit, Error, ErrType

Ends = tuple[Conduit, Conduit]
Wired = tuple[Conduit, socket.socket]

RECEIVERS = ["receive_fd", "receive_file", "receive_conn"]


def set_waits(number: int, wait: bool) -> None:
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    flags = flags & ~os.O_NONBLOCK if wait else flags | os.O_NONBLOCK
    fcntl.fcntl(number, fcntl.F_SETFL, flags)


def test_what_wakes_a_waiting_call_is_no_standard_stream() -> None:
    def child() -> None:
        one, other = Conduit.pair()
        with one, other:
            os.close(0)
            os.close(1)
            call = Call(one.receive)
            assert call.is_waiting()
            assert not is_open(0)
            assert not is_open(1)
            other.transfer(data=b"x")
            assert call.result().data == b"x"

    assert in_child(child) == 0


# Deadlines


@pytest.mark.parametrize("name", RECEIVERS)
@pytest.mark.parametrize("timeout", [0.001, 0.05, 0.3])
def test_receiving_ends_at_the_deadline(ends: Ends, name: str, timeout: float) -> None:
    ends[0].timeout = timeout
    start = time.monotonic()
    with pytest.raises(conduit.TransferTimeoutError) as caught:
        getattr(ends[0], name)()
    assert timeout <= time.monotonic() - start < GENEROUS
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.type is ErrType.FAILED_TRANSFER
    assert caught.value.errno == errno.ETIMEDOUT
    ends[1].transfer_fd(memory(b"after"))
    with ends[0].receive_file() as arrived:
        assert arrived.read() == b"after"


@pytest.mark.hazard("B15")
def test_sending_ends_at_the_deadline_and_nothing_is_lost(ends: Ends) -> None:
    queued = fill(ends[0].fileno())
    number = memory(b"mine")
    sock, peer = socket.socketpair()
    with sock, peer, open(os.devnull, "rb") as file:
        ends[0].timeout = 0.05
        calls: list[Callable[[], None]] = [
            lambda: ends[0].transfer_fd(number),
            lambda: ends[0].transfer_file(file),
            lambda: ends[0].transfer_conn(sock),
        ]
        for call in calls:
            start = time.monotonic()
            with pytest.raises(conduit.TransferTimeoutError) as caught:
                call()
            assert 0.05 <= time.monotonic() - start < GENEROUS
            assert caught.value.type is ErrType.FAILED_TRANSFER
            assert caught.value.sent == 0
        assert content(number) == b"mine"
        assert not file.closed
        assert sock.fileno() >= 0
    drain(ends[1].fileno(), queued)
    ends[0].transfer_fd(number)
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"mine"


@only_blocking
def test_a_deadline_counts_for_the_whole_call_whatever_interrupts_it(ends: Ends) -> None:
    ends[0].timeout = 0.3
    ticks: list[int] = []
    # Again, if the machine stood still through a whole wait.
    while len(ticks) < 2:
        ticks.clear()
        with handling(signal.SIGALRM, lambda *_: ticks.append(1)):
            start = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            try:
                with pytest.raises(conduit.TransferTimeoutError):
                    ends[0].receive_fd()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert 0.3 <= time.monotonic() - start < GENEROUS


def test_a_timeout_of_zero_never_waits(ends: Ends) -> None:
    number = memory()
    ends[0].timeout = 0
    for name in RECEIVERS:
        with pytest.raises(conduit.WouldBlockError) as caught:
            getattr(ends[0], name)()
        assert isinstance(caught.value, BlockingIOError)
        assert caught.value.type is ErrType.FAILED_TRANSFER
        assert caught.value.errno == errno.EAGAIN
    fill(ends[0].fileno())
    with pytest.raises(conduit.WouldBlockError) as caught:
        ends[0].transfer_fd(number)
    assert caught.value.sent == 0
    assert is_open(number)
    os.close(number)


def test_a_timeout_of_zero_takes_and_sends_what_is_ready(ends: Ends) -> None:
    for end in ends:
        end.timeout = 0
    ends[0].transfer_fd(memory(b"ready"))
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"ready"


@only_blocking
def test_a_huge_timeout_is_waited_for(ends: Ends) -> None:
    for timeout in (1e9, 1e18, float("inf")):
        ends[0].timeout = timeout
        call = Call(ends[0].receive_fd)
        assert call.is_waiting()
        ends[1].transfer_fd(memory())
        os.close(call.result())


@only_blocking
def test_a_new_timeout_does_not_end_a_call_for_which_another_was_faster(ends: Ends) -> None:
    calls = [Call(ends[0].receive_fd), Call(ends[0].receive_fd)]
    assert all(call.is_waiting() for call in calls)
    ends[0].timeout = 0
    # Both are woken by the first, and one of them waits again.
    ends[1].transfer_fd(memory())
    assert any(call.is_waiting() for call in calls)
    ends[1].transfer_fd(memory())
    for call in calls:
        os.close(call.result())


def test_a_new_timeout_holds_from_the_next_call(ends: Ends) -> None:
    call = Call(ends[0].receive_fd)
    assert call.is_waiting()
    ends[0].timeout = 0
    assert call.is_waiting()
    ends[1].transfer_fd(memory())
    os.close(call.result())
    with pytest.raises(conduit.WouldBlockError):
        ends[0].receive_fd()


# Flags that the holders of a socket share


@pytest.mark.hazard("F18")
def test_a_non_blocking_socket_is_waited_for(wired: Wired) -> None:
    link, peer = wired
    set_waits(link.fileno(), False)
    call = Call(link.receive_fd)
    assert call.is_waiting()
    number = memory(b"waited")
    send(peer, [number])
    os.close(call.result())
    queued = fill(link.fileno())
    sending = Call(link.transfer_fd, number)
    assert sending.is_waiting()
    drain(peer.fileno(), queued)
    sending.result()
    assert not waits(link.fileno())
    with Conduit(peer.fileno()) as other, other.receive_file() as arrived:
        assert arrived.read() == b"waited"


@only_blocking
def test_waiting_changes_no_flag(wired: Wired) -> None:
    link, peer = wired
    call = Call(link.receive_fd)
    assert call.is_waiting()
    assert waits(link.fileno())
    number = memory()
    send(peer, [number])
    os.close(call.result())
    queued = fill(link.fileno())
    sending = Call(link.transfer_fd, number)
    assert sending.is_waiting()
    assert waits(link.fileno())
    drain(peer.fileno(), queued)
    sending.result()


@pytest.mark.hazard("F18")
def test_a_sharer_that_flips_o_nonblock_changes_nothing(wired: Wired) -> None:
    link, peer = wired
    call = Call(link.receive_fd)
    for wait in (False, True, False):
        assert call.is_waiting()
        set_waits(link.fileno(), wait)
    number = memory()
    send(peer, [number])
    os.close(number)
    os.close(call.result())
    set_waits(link.fileno(), True)
    link.timeout = 0
    with pytest.raises(conduit.WouldBlockError):
        link.receive_fd()


@pytest.mark.hazard("F1")
def test_receive_timeouts_of_the_socket_itself_change_nothing(wired: Wired) -> None:
    link, peer = wired
    with socket.socket(fileno=os.dup(link.fileno())) as sock:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", 0, 1000))
    call = Call(link.receive_fd)
    assert call.is_waiting()
    number = memory()
    send(peer, [number])
    os.close(number)
    os.close(call.result())


# Other threads


@only_blocking
def test_a_blocked_call_lets_other_threads_run(ends: Ends) -> None:
    receiving = Call(ends[1].receive_fd)
    assert receiving.is_waiting()
    assert sum(range(100_000)) == 4_999_950_000
    ends[0].transfer_fd(memory())
    os.close(receiving.result())
    queued = fill(ends[0].fileno())
    sending = Call(ends[0].transfer_fd, memory(b"sent"))
    assert sending.is_waiting()
    assert sum(range(100_000)) == 4_999_950_000
    drain(ends[1].fileno(), queued)
    sending.result()
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"sent"


@pytest.mark.hazard("F4", "P14")
@pytest.mark.parametrize("count", [1, 5])
def test_close_wakes_every_receiver(ends: Ends, count: int) -> None:
    calls = [Call(ends[0].receive_fd) for _ in range(count)]
    for call in calls:
        assert call.is_waiting()
    number = ends[0].fileno()
    ends[0].close()
    for call in calls:
        with pytest.raises(Error) as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD
    assert not is_open(number)
    with pytest.raises(conduit.PeerClosedError):
        ends[1].receive_fd()


@pytest.mark.parametrize("name", RECEIVERS)
def test_close_wakes_each_kind_of_receiver(ends: Ends, name: str) -> None:
    call = Call(getattr(ends[0], name))
    assert call.is_waiting()
    ends[0].close()
    with pytest.raises(Error) as caught:
        call.result()
    assert caught.value.type is ErrType.NO_FD


@pytest.mark.hazard("F4", "P14")
def test_close_wakes_senders_and_what_they_sent_stays_theirs(ends: Ends) -> None:
    fill(ends[0].fileno())
    numbers = [memory() for _ in range(3)]
    calls = [Call(ends[0].transfer_fd, numbers[0])]
    # The others wait for their turn, not for the socket.
    assert calls[0].is_waiting()
    calls += [Call(ends[0].transfer_fd, number) for number in numbers[1:]]
    ends[0].close()
    for number, call in zip(numbers, calls, strict=True):
        with pytest.raises(Error) as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD
        assert is_open(number)
        os.close(number)


def test_close_of_a_borrowed_number_wakes_and_takes_nothing(kind: int) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    with mine, peer:
        link = Conduit(mine.fileno())
        call = Call(link.receive_fd)
        assert call.is_waiting()
        link.close()
        with pytest.raises(Error) as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD
        number = memory(b"for the next")
        send(peer, [number])
        os.close(number)
        with Conduit(mine.fileno()) as following, following.receive_file() as arrived:
            assert arrived.read() == b"for the next"


@only_blocking
def test_close_wakes_a_receiver_for_which_there_was_no_descriptor_to_be_woken_by(
    ends: Ends,
) -> None:
    started = threading.Event()

    def receive() -> int:
        started.set()
        return ends[0].receive_fd()

    with room_for(0):
        call = Call(receive)
        assert started.wait(GENEROUS)
        ends[0].close()
        with pytest.raises(Error) as caught:
            call.result()
    assert caught.value.type is ErrType.NO_FD


def test_two_threads_may_close_at_once() -> None:
    for _ in range(50):
        one, other = Conduit.pair()
        with other:
            barrier = threading.Barrier(3)

            def close(link: Conduit = one, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                link.close()

            calls = [Call(close) for _ in range(2)]
            receiving = Call(one.receive_fd)
            barrier.wait()
            for call in calls:
                call.result()
            with pytest.raises(Error):
                receiving.result()


@pytest.mark.hazard("FT")
def test_close_while_others_send_and_receive_closes_no_foreign_number(kind: int) -> None:
    for _ in range(30):
        one, other = Conduit.pair(type=kind)
        barrier = threading.Barrier(3)

        def transmit(link: Conduit = one, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            number = memory()
            try:
                while True:
                    link.transfer_fd(number, keep=True)
            except Error as exc:
                assert exc.type is ErrType.NO_FD, exc
            finally:
                os.close(number)

        def collect(link: Conduit = other, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                while True:
                    os.close(link.receive_fd())
            except conduit.PeerClosedError:
                pass

        calls = [Call(transmit), Call(collect)]
        barrier.wait()
        one.close()
        for call in calls:
            call.result()
        other.close()


@pytest.mark.hazard("Y2")
def test_a_program_whose_worker_waits_ends_by_ctrl_c() -> None:
    program = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import conduit, helpers
one, other = conduit.Conduit.pair()
def work():
    try:
        one.receive_fd()
    except conduit.Error as exc:
        print(exc.type.name)
worker = threading.Thread(target=work)
worker.start()
helpers.wait_until_polling(worker.native_id)
try:
    os.kill(os.getpid(), signal.SIGINT)
    worker.join()
except KeyboardInterrupt:
    one.close()
    worker.join()
    other.close()
    print("interrupted")
"""
    done = run_python(program, os.path.dirname(__file__))
    assert (done.returncode, done.stdout) == (0, "NO_FD\ninterrupted\n"), done.stderr


# Signals


@pytest.mark.hazard("CY1")
@only_blocking
@pytest.mark.parametrize("name", RECEIVERS)
def test_ctrl_c_ends_a_receiver(ends: Ends, name: str) -> None:
    interrupting = interrupt_once_polling(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        getattr(ends[0], name)()
    interrupting.result()
    ends[1].transfer_fd(memory(b"nothing was lost"))
    with ends[0].receive_file() as arrived:
        assert arrived.read() == b"nothing was lost"


@pytest.mark.hazard("CY1")
@only_blocking
def test_ctrl_c_ends_a_sender_and_nothing_is_lost(ends: Ends) -> None:
    queued = fill(ends[0].fileno())
    number = memory(b"mine")
    interrupting = interrupt_once_polling(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        ends[0].transfer_fd(number)
    interrupting.result()
    assert content(number) == b"mine"
    drain(ends[1].fileno(), queued)
    ends[0].transfer_fd(number)
    with ends[1].receive_file() as arrived:
        assert arrived.read() == b"mine"


@pytest.mark.hazard("F1")
@only_blocking
@pytest.mark.parametrize("restart", [False, True])
def test_a_handler_that_returns_lets_the_call_wait_on(ends: Ends, restart: bool) -> None:
    def transmit(*_: Any) -> None:
        ends[1].transfer_fd(memory(b"from the handler"))

    with handling(signal.SIGUSR1, transmit):
        signal.siginterrupt(signal.SIGUSR1, not restart)
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with ends[0].receive_file() as arrived:
            assert arrived.read() == b"from the handler"
        interrupting.result()


@pytest.mark.hazard("Y3")
@only_blocking
def test_a_signal_that_another_thread_took_is_seen_by_the_main_thread(ends: Ends) -> None:
    native = threading.get_native_id()

    def take_it() -> None:
        wait_until_polling(native)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    call = Call(take_it)
    with pytest.raises(KeyboardInterrupt):
        ends[0].receive_fd()
    call.result()


@only_blocking
def test_a_handler_that_closes_the_conduit_ends_the_call(ends: Ends) -> None:
    number = ends[0].fileno()
    with handling(signal.SIGUSR1, lambda *_: ends[0].close()):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with pytest.raises(Error) as caught:
            ends[0].receive_fd()
        interrupting.result()
    assert caught.value.type is ErrType.NO_FD
    assert not is_open(number)


@pytest.mark.hazard("G5")
def test_a_number_reused_by_a_handler_is_not_read_by_the_old_call(kind: int) -> None:
    mine, peer = socket.socketpair(socket.AF_UNIX, kind)
    new, new_peer = socket.socketpair(socket.AF_UNIX, kind)
    link = Conduit(mine.fileno())
    number = memory(b"for the new owner")

    def reuse(*_: Any) -> None:
        link.close()
        os.dup2(new.fileno(), mine.fileno(), inheritable=False)
        send(new_peer, [number])

    with mine, peer, new, new_peer:
        with handling(signal.SIGUSR1, reuse):
            interrupting = interrupt_once_polling(signal.SIGUSR1)
            with pytest.raises(Error) as caught:
                link.receive_fd()
            interrupting.result()
        assert caught.value.type is ErrType.NO_FD
        with Conduit(new.fileno()) as following, following.receive_file() as arrived:
            assert arrived.read() == b"for the new owner"
    os.close(number)


@only_blocking
@pytest.mark.parametrize("raises", [False, True])
def test_a_signal_runs_while_a_sender_waits_for_its_turn(ends: Ends, raises: bool) -> None:
    queued = fill(ends[0].fileno())
    first, second = memory(b"first"), memory(b"second")
    sending = Call(ends[0].transfer_fd, first)
    assert sending.is_waiting()
    me, native = threading.get_ident(), threading.get_native_id()

    def interrupt() -> None:
        wait_until_asleep(native)
        signal.pthread_kill(me, signal.SIGUSR1)

    def handler(*_: Any) -> None:
        if raises:
            raise InterruptedError
        drain(ends[1].fileno(), queued)

    with handling(signal.SIGUSR1, handler):
        interrupting = Call(interrupt)
        with pytest.raises(InterruptedError) if raises else contextlib.nullcontext():
            ends[0].transfer_fd(second)
        interrupting.result()
    if raises:
        assert content(second) == b"second"
        drain(ends[1].fileno(), queued)
        ends[0].transfer_fd(second)
    sending.result()
    arrived = []
    for _ in range(2):
        with ends[1].receive_file() as file:
            arrived.append(file.read())
    # A packet socket lets whoever wakes first be first.
    assert sorted(arrived) == [b"first", b"second"]


@pytest.mark.hazard("F1b")
@only_blocking
def test_a_storm_of_signals_loses_no_message(ends: Ends) -> None:
    def transmit() -> None:
        for i in range(2000):
            ends[0].transfer_fd(memory(b"%d" % i))

    with handling(signal.SIGALRM, lambda *_: None):
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        try:
            sending = Call(transmit)
            for i in range(2000):
                with ends[1].receive_file() as arrived:
                    assert arrived.read() == b"%d" % i
            sending.result()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


# Forks


@pytest.mark.hazard("S1")
@only_blocking
def test_a_child_that_closes_does_not_disturb_the_parent(ends: Ends) -> None:
    receiving = Call(ends[0].receive_fd)
    assert receiving.is_waiting()

    def child() -> None:
        ends[0].close()
        ends[1].close()

    assert in_child(child) == 0
    assert receiving.is_waiting()
    ends[1].transfer_fd(memory(b"still connected"))
    number = receiving.result()
    assert content(number) == b"still connected"
    os.close(number)


@pytest.mark.hazard("S1")
def test_a_child_that_drops_its_conduits_does_not_disturb_the_parent(kind: int) -> None:
    held = list(Conduit.pair(type=kind))
    receiving = Call(held[0].receive_fd)
    assert receiving.is_waiting()

    def child() -> None:
        warnings.simplefilter("ignore", ResourceWarning)
        held.clear()
        gc.collect()

    assert in_child(child) == 0
    assert receiving.is_waiting()
    held[1].transfer_fd(memory())
    os.close(receiving.result())
    for end in held:
        end.close()


@only_blocking
def test_a_child_closes_its_own_copy_though_a_thread_of_the_parent_waits(ends: Ends) -> None:
    receiving = Call(ends[0].receive_fd)
    assert receiving.is_waiting()

    def child() -> None:
        before = open_descriptors()
        number = ends[0].fileno()
        ends[0].close()
        assert not is_open(number)
        assert len(open_descriptors()) < len(before)

    assert in_child(child) == 0
    ends[1].transfer_fd(memory())
    os.close(receiving.result())


@only_blocking
def test_parent_and_child_talk_over_a_pair(ends: Ends) -> None:
    def child() -> None:
        ends[0].close()
        with ends[1].receive_file("r+b") as arrived:
            assert arrived.read() == b"from the parent"
        ends[1].transfer_fd(memory(b"from the child"))

    ends[0].transfer_fd(memory(b"from the parent"))
    assert in_child(child) == 0
    with ends[0].receive_file() as arrived:
        assert arrived.read() == b"from the child"


@pytest.mark.hazard("Y4")
@only_blocking
def test_a_child_can_wait_and_be_woken_by_its_own_close(ends: Ends) -> None:
    receiving = Call(ends[0].receive_fd)
    assert receiving.is_waiting()

    def child() -> None:
        call = Call(ends[0].receive_fd)
        assert call.is_waiting()
        ends[0].close()
        with pytest.raises(Error) as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD

    assert in_child(child) == 0
    assert receiving.is_waiting()
    ends[1].transfer_fd(memory())
    os.close(receiving.result())


@pytest.mark.hazard("Y4")
@only_blocking
def test_a_child_can_send_though_a_thread_of_the_parent_held_the_turn(ends: Ends) -> None:
    fill(ends[0].fileno())
    number = memory(b"the parent's")
    sending = Call(ends[0].transfer_fd, number)
    assert sending.is_waiting()

    def child() -> None:
        ends[0].timeout = 0.01
        mine = memory()
        with pytest.raises(conduit.TransferTimeoutError, match="transferred"):
            ends[0].transfer_fd(mine)
        ends[0].timeout = 0
        with pytest.raises(conduit.WouldBlockError, match="not ready"):
            ends[0].transfer_fd(mine)

    assert in_child(child) == 0
    assert sending.is_waiting()
    ends[0].close()
    with pytest.raises(Error):
        sending.result()
    os.close(number)


@pytest.mark.hazard("Y4")
@only_blocking
def test_a_child_can_send_though_threads_of_the_parent_waited_for_their_turn(ends: Ends) -> None:
    fill(ends[0].fileno())
    numbers = [memory(), memory()]
    sending = [Call(ends[0].transfer_fd, number) for number in numbers]
    for call in sending:
        assert call.thread.native_id is not None
        wait_until_asleep(call.thread.native_id)

    def child() -> None:
        ends[0].timeout = 0
        with pytest.raises(conduit.WouldBlockError, match="not ready"):
            ends[0].transfer_fd(memory())
        second = Call(ends[0].transfer_fd, memory())
        with pytest.raises(conduit.WouldBlockError, match="not ready"):
            second.result()

    assert in_child(child) == 0
    ends[0].close()
    for call, number in zip(sending, numbers, strict=True):
        with pytest.raises(Error) as caught:
            call.result()
        assert caught.value.type is ErrType.NO_FD
        os.close(number)


@only_blocking
def test_a_fork_in_a_signal_handler_leaves_both_usable(ends: Ends) -> None:
    statuses: list[int] = []

    def child() -> None:
        ends[0].timeout = 0
        with pytest.raises(conduit.WouldBlockError):
            ends[0].receive_fd()
        ends[0].close()

    def fork(*_: Any) -> None:
        statuses.append(in_child(child))
        ends[1].transfer_fd(memory(b"after the fork"))

    with handling(signal.SIGUSR1, fork):
        interrupting = interrupt_once_polling(signal.SIGUSR1)
        with ends[0].receive_file() as arrived:
            assert arrived.read() == b"after the fork"
        interrupting.result()
    assert statuses == [0]


def test_senders_take_turns_on_a_full_socket(ends: Ends) -> None:
    queued = fill(ends[0].fileno())
    calls = [Call(ends[0].transfer_fd, memory(b"0"))]
    assert calls[0].is_waiting()
    calls += [Call(ends[0].transfer_fd, memory(b"%d" % i)) for i in range(1, 8)]
    drain(ends[1].fileno(), queued)
    got = []
    for _ in calls:
        with ends[1].receive_file() as arrived:
            got.append(arrived.read())
    for call in calls:
        call.result()
    assert sorted(got) == [b"%d" % i for i in range(8)]


def test_a_sender_whose_turn_does_not_come_ends_at_its_deadline() -> None:
    one, other = Conduit.pair()
    with one, other:
        fill(one.fileno())
        first, second = memory(), memory()
        holding = Call(one.transfer_fd, first)
        assert holding.is_waiting()
        expected: list[tuple[float, type[Error]]] = [
            (0, conduit.WouldBlockError),
            (0.05, conduit.TransferTimeoutError),
        ]
        for timeout, error in expected:
            one.timeout = timeout
            start = time.monotonic()
            with pytest.raises(error):
                one.transfer_fd(second)
            assert timeout <= time.monotonic() - start < GENEROUS
            assert is_open(second)
        assert holding.is_waiting()
        one.close()
        with pytest.raises(Error):
            holding.result()
        os.close(first)
        os.close(second)


def test_a_receiver_is_woken_by_the_peers_end(ends: Ends) -> None:
    call = Call(ends[0].receive_fd)
    assert call.is_waiting()
    ends[1].close()
    with pytest.raises(conduit.PeerClosedError):
        call.result()


def test_a_sender_is_woken_by_the_peers_end(ends: Ends) -> None:
    fill(ends[0].fileno())
    number = memory()
    call = Call(ends[0].transfer_fd, number)
    assert call.is_waiting()
    ends[1].close()
    with pytest.raises(conduit.PeerClosedError):
        call.result()
    assert is_open(number)
    os.close(number)
