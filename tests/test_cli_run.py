"""`conduit run` as operators use it: when a COMMAND is ready, reload, status, stop, respawn."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import (
    Bench,
    Run,
    await_gone,
    await_that,
    children,
    conduit_says,
    is_listening,
    python,
)
from helpers import GENEROUS, fork_among_threads, handling, memory, room_for
from sides import NOBODY, beside, needs_root, unshared

import conduit
from conduit import Conduit, Descriptor, Error, Message, systemd
from conduit.channel import Channel
from conduit.cli import (
    control,
    inspection,
    main,
    messages,
    plan,
    processes,
    readiness,
    sockets,
)
from conduit.cli import run as module
from conduit.cli.addresses import parse_address
from conduit.cli.messages import CommandError
from conduit.cli.notices import Notice, Notices
from conduit.cli.readiness import Readiness, Verdict
from conduit.cli.sockets import Opened
from conduit.cli.status import table
from conduit.takeover import Takeover
from conduit.takeover.spares import Spares
from conduit.takeover.talk import TYPE

pytestmark = pytest.mark.slow

SOCKET = "import select, socket, sys, threading; s = socket.socket(fileno=3); "

WAITS = {
    "accept": "s.accept()",
    "timeout": "s.settimeout(1000); s.accept()",
    "select": "select.select([s], [], [])",
    "poll": "p = select.poll(); p.register(s, 1); p.poll()",
    "epoll": "p = select.epoll(); p.register(s, 1); p.poll()",
    "epoll of others": "e = select.epoll(); p = select.epoll(); p.register(e, 1); "
    "p.register(s, 1); p.poll()",
    "thread": "threading.Thread(target=s.accept).start()",
}

LIAR = """
import os, socket
os.close(3)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    {end}
"""


def ends(run: Run, number: int = signal.SIGTERM) -> int:
    run.process.send_signal(number)
    return run.end()[0]


def ask(bench: Bench, *words: str) -> subprocess.CompletedProcess[str]:
    return conduit_says(words[0], "--control", str(bench.directory / "control"), *words[1:])


def status(bench: Bench) -> Any:
    said = ask(bench, "status", "--json")
    assert said.returncode == 0
    return json.loads(said.stdout)


def reloading(bench: Bench, *words: str) -> subprocess.Popen[str]:
    """Begin a `conduit reload`."""
    command = [sys.executable, "-P", "-m", "conduit", "reload", "--control"]
    return subprocess.Popen(
        [*command, str(bench.directory / "control"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def states(bench: Bench) -> list[str]:
    return [each["state"] for each in status(bench)["generations"]]


# When COMMAND is ready


@pytest.mark.parametrize("how", WAITS)
def test_what_waits_for_connections_is_ready(bench: Bench, how: str) -> None:
    run = bench.run(command=python(SOCKET + WAITS[how]))
    run.await_line("serves")
    assert ends(run) == 128 + signal.SIGTERM


def test_it_has_to_wait_on_each_socket(bench: Bench, tmp_path: Path) -> None:
    options = [f"--listen={tmp_path}/one", "--listen=udp:127.0.0.1:0"]
    # Long, if COMMAND takes long to start.
    for timeout in (0.7, 15):
        one = bench.run(*options, f"--timeout={timeout}", command=python(SOCKET + WAITS["accept"]))
        code, line = one.end()
        assert code == 1
        assert f"was not ready within {timeout} seconds" in line
        if "was not seen to use" not in line:
            break
    # It used one of them.
    assert "was not seen to use" not in line
    both = (
        SOCKET + "u = socket.socket(fileno=4); threading.Thread(target=u.recv, args=(9,)).start(); "
    )
    run = bench.run(*options, command=python(both + WAITS["accept"]))
    run.await_line("serves")
    assert ends(run) == 128 + signal.SIGTERM


def test_a_server_behind_a_wrapper_that_forks_is_ready_and_ends_with_it(bench: Bench) -> None:
    code = SOCKET + WAITS["accept"]
    run = bench.run(command=["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, code])
    run.await_line("serves")
    # The wrapper ends; what it started gets the signal as one of its group.
    assert ends(run) == 128 + signal.SIGTERM


GRANDCHILD = """
import os, signal, socket
if os.fork() == 0:
    if os.fork() == 0:
        s = socket.socket(fileno=3)
        while True:
            s.accept()[0].sendall(b"hello")
    os._exit(0)
os.wait()
os.close(3)
signal.pause()
"""


def test_a_grandchild_whose_parent_is_gone_is_ready(bench: Bench) -> None:
    run = bench.run("--ready=accepting", command=python(GRANDCHILD))
    run.await_line("serves")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(GENEROUS)
        client.connect(bench.unix)
        assert client.recv(10) == b"hello"
    assert ends(run) == 128 + signal.SIGTERM


def test_what_says_that_it_is_ready_and_has_no_socket_is_refused(bench: Bench) -> None:
    old, first = bench.serve()
    code, line = bench.run(command=python(LIAR.format(end="import time; time.sleep(1000)"))).end()
    assert code == 1
    assert "LISTEN_FDS" in line
    assert "LISTEN_PID" in line
    assert f"the old one (pid {old.process.pid}) goes on serving" in line
    bench.assert_serves(first)


def test_that_a_wrapper_has_the_sockets_does_not_count(bench: Bench) -> None:
    code = LIAR.format(end="import time; time.sleep(1000)")
    command = ["/bin/sh", "-c", '"$0" -c "$1"; true', sys.executable, code]
    assert bench.run(command=command).end()[0] == 1


def test_it_can_be_asked_for_what_is_seen_only(bench: Bench) -> None:
    manager = Manager(bench)
    run = bench.run("--ready=accepting", environment=manager.environment)
    command = bench.command()
    command.tell("ready")
    # This came with READY=1.
    assert manager.hear() == ["STATUS=here"]
    assert states(bench) == ["starting"]
    run.process.terminate()
    assert command.hear() == {"signal": signal.SIGTERM}
    command.tell(0)
    assert run.end()[0] == 1


def test_it_can_be_asked_for_what_is_said_only(bench: Bench) -> None:
    run = bench.run("--ready=notify", "--timeout=0.5", command=python(SOCKET + WAITS["accept"]))
    assert run.end()[0] == 1


def test_a_guess_does_not_help_what_has_no_socket(bench: Bench) -> None:
    command = ["/bin/sh", "-c", "exec 3<&-; exec sleep 1000"]
    code, line = bench.run("--ready=2", command=command).end()
    assert code == 1
    assert "LISTEN_FDS" in line


def test_a_guess_is_told(bench: Bench) -> None:
    run = bench.run("--ready-after=0.1", command=["sleep", "1000"])
    run.await_line("is taken for ready after 0.1 seconds, and was not seen to serve")
    run.await_line("serves")
    assert ends(run) == 128 + signal.SIGTERM


def test_time_is_given_to_what_asks_for_it(bench: Bench) -> None:
    code = (
        "import os, socket, time; n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "[n.sendto(b'EXTEND_TIMEOUT_USEC=' + usec, os.environ['NOTIFY_SOCKET']) "
        "for usec in (b'x', b'9' * 4000, b'60000000')]; time.sleep({}); "
    )
    # Long, if COMMAND takes long to ask.
    for timeout in (0.7, 10):
        command = python(code.format(timeout + 0.3) + SOCKET + "s.accept()")
        run = bench.run(f"--timeout={timeout}", command=command)
        try:
            run.await_line("serves")
            break
        except EOFError:
            if timeout == 10:
                raise
    assert ends(run) == 128 + signal.SIGTERM


def test_words_of_a_command_may_name_a_socket(bench: Bench, tmp_path: Path) -> None:
    words = ["{fd}", "unix:{web}", "{other}", "{}"]
    run = bench.run(
        f"--listen={tmp_path}/x",
        f"--listen=web={tmp_path}/y",
        command=[*python("import sys; print(*sys.argv[1:])"), *words],
    )
    assert run.process.stdout is not None
    assert run.process.stdout.read() == "3 unix:4 {other} {}\n"
    assert run.end()[0] == 1


def test_listen_pid_can_be_left_out(bench: Bench) -> None:
    run = bench.run("--no-listen-pid")
    command = bench.command()
    assert "LISTEN_PID" not in command.start["listen"]
    command.tell(0)
    assert run.end()[0] == 1


def test_a_shell_that_becomes_the_server_behind_a_wrapper_says_its_pid(bench: Bench) -> None:
    own = 'LISTEN_PID=$$ exec "$@"'
    words = ["/bin/sh", "-c", "/bin/sh -c '" + own + '\' sh "$@"; exit', "sh", *bench.server]
    run = bench.run(command=words)
    command = bench.command()
    assert command.start["listen"]["LISTEN_PID"] == str(command.start["pid"])
    assert command.start["group"] != command.start["pid"]
    command.tell("ready")
    run.await_line("serves")
    command.tell(0)
    assert run.end()[0] == 0


def test_without_an_address_it_takes_what_was_passed_and_what_the_running_one_has(
    bench: Bench, tmp_path: Path
) -> None:
    stage = """if 1:
        import fcntl, os, socket, sys
        for place, kind in enumerate((socket.SOCK_STREAM, socket.SOCK_DGRAM), 3):
            sock = socket.socket(socket.AF_INET, kind)
            sock.bind(("127.0.0.1", 0))
            above = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 50)
            sock.close()
            os.dup2(above, place)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="web:web")
        os.execv(sys.argv[1], sys.argv[1:])
    """
    words = [sys.executable, "-P", "-m", "conduit", "run", "--control", f"{tmp_path}/control"]
    words += ["--", *bench.server]
    old = subprocess.Popen([sys.executable, "-c", stage, *words])
    first = bench.command()
    assert first.start["listen"]["LISTEN_FDNAMES"] == "web:web"
    first.tell("ready")
    await_that(lambda: is_listening(tmp_path / "control") and states(bench) == ["serving"])
    new = subprocess.Popen(words)
    second = bench.command()
    second.tell("ready")
    assert first.hear() == {"signal": signal.SIGTERM}
    assert second.start["names"] == first.start["names"]
    assert second.start["listen"]["LISTEN_FDNAMES"] == "web:web"
    for command, process in ((first, old), (second, new)):
        command.tell(0)
        assert process.wait(GENEROUS) == 0


def test_what_was_passed_and_is_stored_as_well_is_passed_on_once(tmp_path: Path) -> None:
    stage = """if 1:
        import fcntl, os, socket, sys
        sock = socket.create_server(("127.0.0.1", 0))
        above = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 50)
        sock.close()
        os.dup2(above, 3)
        os.dup2(above, 4)
        names = "web:conduit"
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES=names)
        os.execv(sys.argv[1], sys.argv[1:])
    """
    words = [sys.executable, "-P", "-m", "conduit", "run", "--control", f"{tmp_path}/control"]
    said = subprocess.run(
        [sys.executable, "-c", stage, *words, "--", "env"],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert {"LISTEN_FDS=1", "LISTEN_FDNAMES=web"} <= set(said.stdout.splitlines())


def test_command_does_not_get_the_locale_that_python_sets_itself(tmp_path: Path) -> None:
    clean = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    words = ["run", "--control", f"{tmp_path}/c", "--listen", f"{tmp_path}/s", "--", "env"]
    for given in ({}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "C.UTF-8"}):
        said = subprocess.run(
            [sys.executable, "-P", "-m", "conduit", *words],
            env={**clean, **given},
            capture_output=True,
            text=True,
            timeout=GENEROUS,
            check=False,
        )
        locales = [line for line in said.stdout.splitlines() if line.startswith("LC_CTYPE=")]
        assert len(locales) == len(given)


def test_where_the_system_does_not_tell_the_environment_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert processes._has_locale()


def test_what_was_passed_is_closed_if_not_all_of_it_can_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def passed() -> tuple[Descriptor, ...]:
        fds = tuple(Descriptor(memory(), "web") for _ in range(3))
        given.extend(fds)
        return fds

    given: list[Descriptor] = []
    monkeypatch.setattr(systemd, "listen_fds", passed)
    takeover: Any = None
    with pytest.raises(Error, match="socket"):
        list(sockets._given(takeover))
    assert all(fd.closed for fd in given)


def test_without_an_address_and_with_nothing_passed_it_says_so(tmp_path: Path) -> None:
    said = conduit_says("run", "--control", str(tmp_path / "c"), "--", "true")
    assert said.returncode == 2
    assert "--listen" in said.stderr
    assert os.listdir(tmp_path) == []


# Reload


def test_a_reload_replaces_command_without_a_gap(bench: Bench) -> None:
    run, first = bench.serve()
    asked = reloading(bench)
    second = bench.command()
    bench.assert_serves(first)
    second.tell("ready")
    assert first.hear() == {"signal": signal.SIGTERM}
    said, complaint = asked.communicate(timeout=GENEROUS)
    assert (asked.returncode, complaint) == (0, "")
    pid = second.start["pid"]
    assert said.splitlines() == [
        f"conduit: {sys.executable} (pid {pid}) starts",
        f"conduit: {sys.executable} (pid {pid}) serves",
    ]
    bench.assert_serves(second)
    assert sorted(states(bench)) == ["draining", "serving"]
    first.tell(9)
    await_that(lambda: states(bench) == ["serving"])
    assert status(bench)["reloads"] == 1
    second.tell(4)
    assert run.end()[0] == 4


def test_several_may_drain_at_once(bench: Bench) -> None:
    run, command = bench.serve()
    commands = [command]
    for _ in range(2):
        asked = reloading(bench)
        commands.append(bench.command())
        commands[-1].tell("ready")
        asked.communicate(timeout=GENEROUS)
        assert asked.returncode == 0
    assert states(bench) == ["draining", "draining", "serving"]
    for each in commands:
        each.tell(0)
    assert run.end()[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["sh", "-c", "exit 3"], 1, "exited with 3 before it was ready"),
        (["false"], 1, "exited with 1 before it was ready"),
        (["no-such-program"], 127, "no-such-program: command not found"),
        (["sleep", "1000"], 1, "was not ready within 0.4 seconds"),
    ],
)
def test_a_version_that_fails_leaves_the_old_one(
    bench: Bench, words: list[str], code: int, why: str
) -> None:
    run, command = bench.serve()
    options = ["--timeout=0.4"] if "within" in why else []
    said = ask(bench, "reload", *options, "--", *words)
    assert said.returncode == code
    assert why in said.stderr
    bench.assert_serves(command)
    command.tell(0)
    assert run.end()[0] == 0


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN], ids=["", "nohup"])
def test_a_signal_reloads(bench: Bench, before: signal.Handlers) -> None:
    with handling(signal.SIGHUP, before):
        run, first = bench.serve("--reload-signal=HUP")
    run.process.send_signal(signal.SIGHUP)
    second = bench.command()
    second.tell("ready")
    assert first.hear() == {"signal": signal.SIGTERM}
    first.tell(0)
    bench.assert_serves(second)
    second.tell(0)
    assert run.end()[0] == 0


def test_the_line_run_again_takes_over_what_was_reloaded(bench: Bench) -> None:
    old, first = bench.serve()
    asked = reloading(bench)
    second = bench.command()
    second.tell("ready")
    asked.communicate(timeout=GENEROUS)
    new = bench.run()
    third = bench.command()
    third.tell("ready")
    new.await_line("serves")
    # Both drain in the old one; who asks is answered by the new one.
    told = status(bench)
    assert told["pid"] == new.process.pid
    assert told["predecessor"] == old.process.pid
    for command in (first, second):
        assert command.hear() == {"signal": signal.SIGTERM}
        command.tell(3)
    assert old.end()[0] == 3
    await_that(lambda: status(bench)["predecessor"] is None)
    third.tell(0)
    assert new.end()[0] == 0


# Status, stop, and who may ask


def test_status_is_a_table(bench: Bench) -> None:
    run, command = bench.serve("--listen=web=127.0.0.1:0", f"--listen={bench.unix}")
    said = ask(bench, "status").stdout
    pid = command.start["pid"]
    row = next(line for line in said.splitlines() if line.startswith("1 "))
    assert row.split()[:4] == ["1", "serving", row.split()[2], str(pid)]
    port = command.start["names"][0][1][1]
    assert f"web      tcp   127.0.0.1:{port}" in said
    with socket.create_connection(("127.0.0.1", port)):
        told = status(bench)
    assert {each["type"]: each["queue"] for each in told["sockets"]}["tcp"] == 1
    assert told["version"] == conduit.__version__
    assert told["pid"] == run.process.pid
    assert told["control"] == str(bench.directory / "control")
    assert told["since"] <= time.time()
    assert (told["restarts"], told["reloads"], told["predecessor"]) == (0, 0, None)
    [serving] = told["generations"]
    assert 0 <= serving.pop("seconds") < GENEROUS
    assert serving == {"number": 1, "state": "serving", "pid": pid, "command": bench.server}
    command.tell(0)
    assert run.end()[0] == 0


def test_the_table_names_a_predecessor_that_drains() -> None:
    told = dict.fromkeys(("version", "pid", "control", "reloads", "restarts"), 1)
    lines = table({**told, "since": 0, "predecessor": 77, "generations": [], "sockets": []})
    assert "taken over from pid 77, which drains" in lines


@pytest.mark.parametrize(
    ("family", "address", "type", "shown"),
    [
        (socket.AF_INET6, ("::1", 0), socket.SOCK_DGRAM, "[::1]:"),
        (socket.AF_UNIX, f"\0{os.getpid()}", socket.SOCK_STREAM, f"@{os.getpid()}"),
    ],
    ids=["inet6", "abstract"],
)
def test_an_address_is_shown_as_it_is_written(
    family: int, address: Any, type: int, shown: str
) -> None:
    with socket.socket(family, type) as sock:
        sock.bind(address)
        told = Opened("key", "name", sock).status()
    assert told["address"].startswith(shown)


def test_who_waits_at_a_unix_socket_is_counted_where_the_system_tells(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, contextlib.ExitStack() as stack:
        sock.bind(str(tmp_path / "s"))
        assert Opened("key", "name", sock).status()["queue"] in (0, None)
        sock.listen()
        for _ in range(3):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / "s"))
        queue = Opened("key", "name", sock).status()["queue"]
        if queue is None:
            pytest.skip("the system does not tell (sock_diag)")
        assert queue == 3


def test_a_fresh_socket_has_the_backlog_that_was_asked_for(tmp_path: Path) -> None:
    address = parse_address("127.0.0.1:0")
    with Takeover(tmp_path / "c") as takeover:
        [found] = sockets.opened(takeover, sockets.Wanted([address], 7, 0o600, (-1, -1)))
        with found.sock as sock:
            # tcpi_sacked of struct tcp_info, for one that listens.
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            assert int.from_bytes(info[28:32], sys.byteorder) == 7


@pytest.mark.parametrize("what", ["reload", "status", "stop"])
def test_where_nobody_serves_the_exit_code_is_3(bench: Bench, what: str) -> None:
    said = ask(bench, what)
    assert said.returncode == 3
    assert said.stderr == f"conduit: nobody serves at {bench.directory}/control\n"


def test_stop_waits_until_all_has_finished(bench: Bench) -> None:
    run, command = bench.serve()
    asked = subprocess.Popen(
        [sys.executable, "-P", "-m", "conduit", "stop", "--control", f"{bench.directory}/control"]
    )
    assert command.hear() == {"signal": signal.SIGTERM}
    assert asked.poll() is None
    command.tell(0)
    assert asked.wait(GENEROUS) == 0
    assert run.end()[0] == 0


@needs_root
def test_another_user_may_not_ask(bench: Bench) -> None:
    bench.directory.chmod(0o755)
    run, command = bench.serve()
    (bench.directory / "control").chmod(0o666)

    def try_it() -> None:
        # Whatever is in the way of that path.
        os.fchdir(fd)
        with pytest.raises(CommandError, match="not allowed"):
            list(control.ask("control", "stop"))

    fd = os.open(bench.directory, os.O_RDONLY)
    with beside(try_it, user=NOBODY):
        os.close(fd)
    bench.assert_serves(command)
    command.tell(0)
    assert run.end()[0] == 0


def test_a_request_that_means_nothing_is_answered(bench: Bench) -> None:
    run, command = bench.serve()
    for request in (
        {"kind": "reload", "command": "x"},
        {"kind": "reload", "command": []},
        {"kind": "reload", "timeout": "x"},
        {"kind": "reload", "timeout": 10**400},
        {"kind": "reload", "timeout": -1},
        {"kind": "dance"},
    ):
        with Channel(
            Conduit.connect(bench.directory / "control", type=TYPE, timeout=GENEROUS)
        ) as channel:
            channel.send(request)
            answer = channel.receive()
        assert (answer["kind"], answer["code"]) == ("end", 2)
    command.tell(0)
    assert run.end()[0] == 0


@pytest.mark.parametrize("words", [["true", "a\0b"], ["true", "\ud800"]])
def test_words_that_no_program_can_have_end_nothing(bench: Bench, words: list[str]) -> None:
    run, command = bench.serve()
    *_, answer = control.ask(f"{bench.directory}/control", "reload", command=words)
    assert answer["code"] == 1
    assert "true could not be started (" in answer["text"]
    bench.assert_serves(command)
    command.tell(0)
    assert run.end()[0] == 0


def test_a_reload_works_though_the_directory_it_was_started_in_is_gone(tmp_path: Path) -> None:
    path, started = f"@conduit-{os.getpid()}", tmp_path / "started"
    started.mkdir()
    words = ["run", "--control", path, "--listen", f"{tmp_path}/s", "--"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "conduit", *words, *python(SOCKET + WAITS["accept"])],
        cwd=started,
    ) as run:
        await_that(lambda: conduit_says("status", "--control", path).returncode == 0)
        started.rmdir()
        said = conduit_says("reload", "--control", path)
        run.terminate()
    assert (said.returncode, run.returncode) == (0, 128 + signal.SIGTERM)


def test_a_command_that_never_stops_talking_does_not_keep_others_waiting(tmp_path: Path) -> None:
    with Notices(str(tmp_path)) as notices:
        talk = [Message(b"STATUS=and so on") for _ in range(1000)]
        talker: Any = SimpleNamespace(receive=lambda _: talk.pop(), close=notices._conduit.close)
        notices._conduit = talker
        assert 0 < len(notices.take(1)) < 1000


def test_a_failure_while_others_are_answered_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("unforeseen")

    takeover: Any = SimpleNamespace(step=fail)
    signals: Any = None
    runner = module._Runner(module.Options("path", [], ["serve"]), takeover, signals)
    assert not runner._is_followed()
    assert capsys.readouterr().err == "conduit: answering at path: ValueError('unforeseen')\n"


def test_who_asks_and_goes_is_forgotten() -> None:
    ours, theirs = Conduit.pair(type=TYPE)
    guest = control.Guest(ours)
    theirs.close()
    guest.say("progress", text="x")
    assert guest.closed
    guest.say("end", text="x", code=0)


def test_who_is_replaced_just_now_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(control, "_ATTEMPTS", 3)
    monkeypatch.setattr(time, "sleep", waits.append)
    with socket.socket(socket.AF_UNIX, TYPE) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def accept() -> None:
            for _ in range(3):
                server.accept()[0].close()

        with beside(accept), pytest.raises(CommandError, match="does not answer"):
            list(control.ask(str(tmp_path / "s"), "status"))
    assert len(waits) == 3
    with pytest.raises(OSError, match="File name too long"):
        list(control.ask("/" * 200, "status"))


def test_who_ends_before_it_has_answered_is_told_of() -> None:
    ours, theirs = Conduit.pair(type=TYPE)
    with Channel(ours) as channel:
        theirs.close()
        with pytest.raises(CommandError, match="ended without an answer"):
            list(control._all("path", "stop", {"kind": "progress", "text": "x"}, channel))


# Respawn and ending


def test_what_ends_by_itself_is_started_again_on_the_same_sockets(bench: Bench) -> None:
    run, first = bench.serve("--restart=on-failure")
    first.tell(3)
    with socket.socket(socket.AF_UNIX) as client:
        # It waits in the queue.
        client.settimeout(GENEROUS)
        client.connect(bench.unix)
        second = bench.command()
        second.tell("ready")
        second.tell("accept")
        assert client.recv(10) == b"hello"
    run.await_line("serves")
    assert status(bench)["restarts"] == 1
    second.tell(0)
    assert run.end()[0] == 0


def test_a_second_signal_forces(bench: Bench) -> None:
    run, command = bench.serve()
    run.process.terminate()
    assert command.hear() == {"signal": signal.SIGTERM}
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGTERM


def test_what_drains_too_long_is_killed(bench: Bench) -> None:
    run, _ = bench.serve("--drain-timeout=0.2")
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGKILL


def test_the_stop_signal_can_be_chosen(bench: Bench) -> None:
    run, command = bench.serve("--stop-signal=SIGQUIT")
    run.process.terminate()
    assert command.hear() == {"signal": signal.SIGQUIT}
    command.tell(0)
    assert run.end()[0] == 0


def test_what_goes_on_accepting_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def serves() -> bool:
        # Before it listens there, or has started COMMAND: not yet.
        with contextlib.suppress(CommandError, LookupError):
            answer = next(control.ask(str(tmp_path / "c"), "status"))
            return bool(answer["generations"][0]["state"] == "serving")
        return False

    def end_it() -> None:
        try:
            await_that(serves)
        finally:
            os.kill(runner, signal.SIGTERM)

    runner = os.getpid()
    monkeypatch.setattr(plan, "GRACE", 0.2)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); "
    words = ["run", "--control", f"{tmp_path}/c", "--listen", f"{tmp_path}/s", "--"]
    with beside_but_reaped(end_it):
        assert main([*words, *python(deaf + SOCKET + "s.accept()")]) == 128 + signal.SIGKILL
    assert "still accepts" in capfd.readouterr().err


@contextlib.contextmanager
def beside_but_reaped(function: Callable[[], None]) -> Iterator[None]:
    """Run a function in a child that is reaped in the block, as all children are."""
    pid = fork_among_threads()
    if pid == 0:
        try:
            signal.alarm(int(GENEROUS))
            function()
        finally:
            os._exit(0)
    yield
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_what_command_leaves_behind_ends_with_it(bench: Bench) -> None:
    code = SOCKET + "import os; os.fork() or s.accept(); s.accept()"
    run = bench.run(command=python(code))
    line = run.await_line("serves")
    pid = int(line.partition("(pid ")[2].partition(")")[0])
    await_that(lambda: len(children(pid)) == 1)
    [child] = children(pid)
    os.kill(pid, signal.SIGKILL)
    assert run.end()[0] == 128 + signal.SIGKILL
    await_gone(child)


def test_what_is_left_behind_has_time_to_finish(bench: Bench) -> None:
    run, command = bench.serve()
    command.tell("fork")
    child = command.hear()["child"]
    command.tell(["die", signal.SIGKILL])
    run.await_line("was ended by SIGKILL")
    assert run.process.poll() is None
    os.kill(child, signal.SIGKILL)
    assert run.end()[0] == 128 + signal.SIGKILL


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert processes.fate(signal.SIGRTMIN + 1) == (
        128 + signal.SIGRTMIN + 1,
        f"was ended by signal {signal.SIGRTMIN + 1}",
    )


# The paths of Unix sockets

REMOVER = """
import os, signal, socket, sys
def leave(*_):
    os.unlink(sys.argv[1])
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
s = socket.socket(fileno=3)
while True:
    s.accept()[0].sendall(b"hello")
"""


@pytest.mark.parametrize("by", ["reload", "takeover"])
def test_a_path_that_the_old_one_removes_is_there_again(bench: Bench, by: str) -> None:
    command = [*python(REMOVER), bench.unix]
    old = new = bench.run(command=command)
    old.await_line("serves")
    if by == "reload":
        assert ask(bench, "reload").returncode == 0
        old.await_line("has been put back")
    else:
        new = bench.run(command=command)
        new.await_line("serves")
        assert old.end()[0] == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(GENEROUS)
        client.connect(bench.unix)
        assert client.recv(10) == b"hello"
    # The successor has a second name, too, until it sees that the old one is gone.
    await_that(lambda: sorted(os.listdir(bench.directory)) == ["control", "reports", "server"])
    assert ends(new) == 0


def test_a_path_that_is_removed_before_a_respawn_is_there_again(bench: Bench) -> None:
    run = bench.run("--restart=always", command=[*python(REMOVER), bench.unix])
    line = run.await_line("serves")
    os.kill(int(line.partition("(pid ")[2].partition(")")[0]), signal.SIGTERM)
    run.await_line("has been put back")
    run.await_line("serves")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(GENEROUS)
        client.connect(bench.unix)
        assert client.recv(10) == b"hello"
    assert ends(run) == 0
    assert os.listdir(bench.directory) == ["reports"]


def test_where_the_system_does_not_tell_a_path_is_taken_for_listened_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise FileNotFoundError

    assert not inspection.is_listened_at("/no/such")
    monkeypatch.setattr("builtins.open", refuse)
    assert inspection.is_listened_at("/no/such")


def test_other_sockets_may_have_any_name(tmp_path: Path) -> None:
    path = str(tmp_path / "a b\nc")
    odd = f"\0{tmp_path}\n\n0: 0\n\xff\n".encode("latin-1")
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as sock:
        other.bind(odd)
        other.listen()
        assert not inspection.is_listened_at(path)
        sock.bind(path)
        assert not inspection.is_listened_at(path)
        sock.listen()
        assert inspection.is_listened_at(path)
        assert not inspection.is_listened_at(path[:-1])


def test_a_path_that_nobody_listens_at_is_not_put_back(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    spares = Spares(".run", inspection.is_listened_at)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        inode = os.stat(path).st_dev, os.stat(path).st_ino
        for _ in range(2):
            spares.add(path, inode)
        os.unlink(path)
        spares.restore()
        assert os.listdir(tmp_path) == [f".s.{os.getpid()}.run"]
        sock.listen()
        spares.restore()
        assert os.path.exists(path)
    spares.close()
    assert os.listdir(tmp_path) == ["s"]


@needs_root
def test_a_unix_socket_has_the_mode_and_owner_that_were_asked_for(bench: Bench) -> None:
    run, command = bench.serve("--mode=660", "--owner=nobody", "--group=12345")
    found = os.stat(bench.unix)
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, 65534, 12345)
    command.tell(0)
    assert run.end()[0] == 0


# Processes


def test_what_has_ended_gets_no_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    notify = str(tmp_path / "x" / "notify")
    process = processes.Process(
        ["true"], [], [], notify, listen_pid=True, stop_signal=signal.SIGTERM
    )
    await_that(lambda: any(process.note(pid) for pid, _ in processes.reap()))
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda *_: pytest.fail("a signal"))
        process.send(signal.SIGTERM)
    process.send_all(signal.SIGTERM)
    assert process.is_gone()
    # What has changed its user may not be asked.
    monkeypatch.setattr(os, "killpg", refuse)
    assert not process.is_gone()
    process.send_all(signal.SIGTERM)
    process.release()


def test_what_cannot_be_guarded_any_more_runs_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = processes.Process(
        ["sleep", "1000"], [], [], f"{tmp_path}/x/n", listen_pid=True, stop_signal=signal.SIGTERM
    )
    [guard] = children(os.getpid()) - {process.pid}
    os.kill(guard, signal.SIGKILL)
    os.waitpid(guard, 0)
    with room_for(0):
        assert not process.note(guard)
    assert f"pid {process.pid} has no guard any more: " in capsys.readouterr().err
    assert not process.is_gone()
    process.send_all(signal.SIGKILL)
    os.waitpid(process.pid, 0)
    process.release()
    process.abandon()


def test_command_does_not_begin_if_its_run_is_killed_before_it_is_guarded(tmp_path: Path) -> None:
    def start() -> None:
        os.close(reads)

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        processes.Process._spawn_guard = die  # type: ignore[method-assign, assignment]
        processes.Process(
            ["sh", "-c", f"echo begun > {tmp_path}/begun"],
            [writes],
            ["unknown"],
            f"{tmp_path}/x/n",
            listen_pid=True,
            stop_signal=signal.SIGTERM,
        )

    reads, writes = os.pipe()
    if (pid := fork_among_threads()) == 0:
        start()
    os.close(writes)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    with open(reads, "rb") as pipe:
        # What would have become COMMAND has one end as a socket.
        assert pipe.read() == b""
    assert os.listdir(tmp_path) == []


def test_a_stopped_guard_does_not_hold_up_the_end(bench: Bench) -> None:
    run, command = bench.serve()
    [guard] = children(run.process.pid) - {command.start["pid"]}
    os.kill(guard, signal.SIGSTOP)
    command.tell(4)
    assert run.end()[0] == 4
    await_gone(guard)


def test_more_sockets_than_the_soft_limit_allows_are_passed(bench: Bench) -> None:
    soft = "import os, resource, sys; hard = resource.getrlimit(7)[1]; "
    soft += "resource.setrlimit(7, (128, hard)); os.execv(sys.argv[1], sys.argv[1:])"
    addresses = [f"--listen={bench.directory}/{number}" for number in range(50)]
    words = ["run", "--control", f"{bench.directory}/control", *addresses, "--", *bench.server]
    with subprocess.Popen(
        [sys.executable, "-c", soft, sys.executable, "-P", "-m", "conduit", *words]
    ) as run:
        command = bench.command()
        assert len(command.start["names"]) == 50
        command.tell("ready")
        command.tell(5)
    assert run.returncode == 5


def test_a_run_that_is_killed_leaves_no_second_names(bench: Bench) -> None:
    run, command = bench.serve("--restart=always")
    assert f".server.{run.process.pid}.run" in os.listdir(bench.directory)
    run.process.kill()
    assert command.hear() == {"signal": signal.SIGTERM}
    assert sorted(os.listdir(bench.directory)) == ["control", "reports", "server"]
    command.tell(0)
    await_gone(command.start["pid"])


def test_what_runs_when_something_fails_unforeseen_is_ended_by_its_guard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module._Runner, "_judge", fail)
    words = ["run", "--control", f"{tmp_path}/c", f"--listen={tmp_path}/s", "--", "sleep", "1000"]
    with pytest.raises(MemoryError):
        main(words)
    # COMMAND and its guard.
    for _ in range(2):
        os.wait()
    assert os.listdir(tmp_path) == []


def test_a_run_that_is_killed_leaves_no_temporary_files(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    run = bench.run(environment={"TMPDIR": str(tmp_path / "tmp")})
    command = bench.command()
    assert len(os.listdir(tmp_path / "tmp")) == 1
    run.process.kill()
    await_that(lambda: os.listdir(tmp_path / "tmp") == [])
    assert command.hear() == {"signal": signal.SIGTERM}
    command.tell(0)
    await_gone(command.start["pid"])


@pytest.mark.parametrize("what", ["run", "reload", "status", "stop", "send", "receive", "connect"])
def test_each_command_has_a_help(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([what, "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: conduit {what} ")
    assert f"conduit {what} " in told.partition("\nexample")[2]


def test_an_interrupt_before_command_begins_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: processes.Process, ends: Any) -> int:
        # It waits to be guarded: reads from a pipe.
        await_that(lambda: Path(f"/proc/{self.pid}/syscall").read_text().split()[1:2] == ["0x4"])
        os.kill(self.pid, signal.SIGINT)
        return spawn_guard(self, ends)

    spawn_guard = processes.Process._spawn_guard
    monkeypatch.setattr(processes.Process, "_spawn_guard", interrupt)
    words = ["run", "--control", f"{tmp_path}/c", "--listen", f"{tmp_path}/s", "--", "true"]
    assert main(words) == 128 + signal.SIGINT
    assert "Traceback" not in capfd.readouterr().err


def test_command_has_standard_descriptors_and_the_sockets_and_no_others(bench: Bench) -> None:
    # What it says is in a file, since all that is open is to be closed or open elsewhere.
    stage = "import os, sys; os.dup2(2, 50); [os.close(fd) for fd in (0, 1, 2)]; "
    stage += "os.execv(sys.argv[1], sys.argv[1:])"
    code = "import os, sys; found = {n: os.readlink(f'/proc/self/fd/{n}')[:7] for n in range(99) "
    code += "if os.path.exists(f'/proc/self/fd/{n}') or os.path.islink(f'/proc/self/fd/{n}')}; "
    code += "open(sys.argv[1], 'w').write(repr(found))"
    words = ["run", "--control", f"{bench.directory}/control", "--listen", bench.unix, "--"]
    words += [*python(code), f"{bench.directory}/found"]
    first = [sys.executable, "-P", "-m", "conduit"]
    subprocess.run([sys.executable, "-c", stage, *first, *words], timeout=GENEROUS, check=False)
    found = (bench.directory / "found").read_text()
    assert found == str({**dict.fromkeys(range(3), "/dev/nu"), 3: "socket:"})


def test_a_standard_descriptor_that_is_closed_is_opened() -> None:
    def close_one() -> None:
        os.close(0)
        processes.withhold()
        assert os.path.samestat(os.fstat(0), os.stat(os.devnull))
        assert os.get_inheritable(0)
        assert not os.get_inheritable(given)

    given = os.dup(2)
    os.set_inheritable(given, True)
    with beside(close_one):
        os.close(given)


@pytest.mark.parametrize("words", [(), ("--", "sh", "-c", "exit 3")])
def test_the_exit_code_of_a_reload_holds_though_nobody_reads_what_it_tells(
    bench: Bench, words: tuple[str, ...]
) -> None:
    run = bench.run(command=python(SOCKET + WAITS["accept"]))
    run.await_line("serves")
    reads, writes = os.pipe()
    os.close(reads)
    asks = [sys.executable, "-P", "-m", "conduit", "reload"]
    asks += ["--control", f"{bench.directory}/control"]
    for output in ("", ">&-"):
        said = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {output}', "sh", *asks, *words],
            stdout=writes,
            timeout=GENEROUS,
            check=False,
        )
        assert said.returncode == (1 if words else 0)
    os.close(writes)
    assert ends(run) == 128 + signal.SIGTERM


def test_a_reader_that_does_not_read_holds_nothing_up(bench: Bench) -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writes, b"x" * 4096)
    os.set_blocking(writes, True)
    words = ["run", "--control", f"{bench.directory}/control", "--listen", bench.unix, "--"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "conduit", *words, *bench.server], stderr=writes
    ) as run:
        command = bench.command()
        command.tell("ready")
        await_that(lambda: states(bench) == ["serving"])
        run.terminate()
        assert command.hear() == {"signal": signal.SIGTERM}
        command.tell(0)
        assert run.wait(GENEROUS) == 0
    os.close(reads)
    os.close(writes)


def test_what_is_logged_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    messages.Log().handle(logging.makeLogRecord({"msg": "so"}))
    assert capsys.readouterr().err == "conduit: so\n"


# Where there is little

# Its first argument is where it may write. What it becomes is found without a shell.
BARE = """
mount --bind "$0" "$0"
for each in / /tmp /var/tmp; do
    ! mountpoint -q "$each" || mount -o remount,bind,ro "$each"
done
mount --bind /dev/null "$(readlink -f /bin/sh)"
cd /
exec "$@"
"""

# Serves once the orphans that it made are reaped: it, process 1 and a guard are left.
ORPHANS = """
import os, socket, time
s = socket.socket(fileno=3)
for _ in range(3):
    if os.fork() == 0:
        os.fork()
        os._exit(0)
    os.wait()
while sum(name.isdigit() for name in os.listdir("/proc")) > 3:
    time.sleep(0.01)
while True:
    s.accept()[0].sendall(b"hello")
"""


def test_process_1_needs_no_shell_no_temporary_files_and_no_utf_8(bench: Bench) -> None:
    place = os.fsencode(bench.directory) + b"/\xff"
    os.mkdir(place)
    isolate = unshared("--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    words: list[str | bytes] = [*isolate, "/bin/sh", "-euc", BARE, str(bench.directory)]
    words += [sys.executable, "-P", "-m", "conduit", "run", "--control", place + b"/control"]
    words += [b"--listen=" + place + b"/s", "--", *python(ORPHANS)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as isolated:
        assert isolated.stderr is not None
        try:
            for line in isolated.stderr:
                assert b"conduit: " in line
                if b"serves" in line:
                    break
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(GENEROUS)
                client.connect(place + b"/s")
                assert client.recv(10) == b"hello"
            # As in a locale that is not C, where Python would not print what is no UTF-8.
            said = subprocess.run(
                [sys.executable, "-P", "-m", "conduit", "status", "--control", place + b"/control"],
                env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
                capture_output=True,
                timeout=GENEROUS,
                check=False,
            )
            assert (said.returncode, said.stderr) == (0, b"")
            assert place + b"/s" in said.stdout
            [one] = children(isolated.pid)
            os.kill(one, signal.SIGTERM)
            assert isolated.wait(GENEROUS) == 128 + signal.SIGTERM
        finally:
            isolated.kill()
    assert os.listdir(place) == []


# Before it runs


def test_check_tells_what_would_happen(bench: Bench) -> None:
    options = ["--control", f"{bench.directory}/control", f"--listen=web={bench.unix}", "--check"]
    said = conduit_says("run", *options, "--", "cat", "{web}")
    assert said.returncode == 0
    assert said.stdout.splitlines() == [
        f"starts anew: nobody serves at {bench.directory}/control",
        "descriptor 3: web, web",
        "runs: cat 3",
    ]
    run, command = bench.serve()
    said = conduit_says("run", options[0], options[1], "--check", "--", "cat", "{fd}")
    assert said.stdout.splitlines() == [
        f"takes over from conduit {conduit.__version__} (pid {run.process.pid})",
        f"descriptor 3: unknown, {bench.unix}",
        "runs: cat 3",
    ]
    command.tell(0)
    assert run.end()[0] == 0
    assert conduit_says("run", *options, "--", "no-such-program").returncode == 127


def test_check_tells_what_was_passed_or_that_there_is_nothing(tmp_path: Path) -> None:
    stage = "import os, sys; os.dup2(0, 3); os.environ.update(LISTEN_FDS='1', "
    stage += "LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='web'); "
    stage += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    words = ["-P", "-m", "conduit", "run", f"--control={tmp_path}/c", "--check", "--", "cat"]
    for before, code, line in (
        (["-c", stage], 0, "descriptor 3: web, passed by the service manager"),
        ([], 2, "conduit: there is nothing to listen on"),
    ):
        said = subprocess.run(
            [sys.executable, *before, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=GENEROUS,
            check=False,
        )
        assert said.returncode == code
        assert said.stdout.splitlines()[1].startswith(line)


def test_check_tells_when_it_may_not_ask(tmp_path: Path) -> None:
    def refuse() -> None:
        with socket.socket(socket.AF_UNIX, TYPE) as server:
            server.bind(str(tmp_path / "c"))
            server.listen()
            with Channel(Conduit.from_conn(server.accept()[0])) as channel:
                channel.receive()
                channel.send({"kind": "refused", "reason": "no"})

    words = ["run", "--control", f"{tmp_path}/c", "--listen=:1", "--check", "--", "true"]
    with beside(refuse):
        await_that(lambda: is_listening(tmp_path / "c"))
        assert main(words) == 1


@pytest.mark.parametrize(
    "option",
    [
        "--timeout=-1",
        "--timeout=x",
        "--ready=soon",
        "--stop-signal=KILL",
        "--mode=999",
        "--mode=7777",
        "--owner=no-such-user",
        "--group=no-such-group",
        "--restart=maybe",
        "--owner=99999999999",
        "--group=4294967295",
        "--backlog=-1",
        "--backlog=2147483648",
        "--listen=a..b:80",
        "--listen=" + "x" * 300 + ":80",
        "--listen=/" + "x" * 300,
    ],
)
def test_an_option_that_cannot_be_is_told(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--control=c", "--listen=:1", option, "--", "true"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option.partition('=')[0]}: " in told
    assert "_" not in told


@pytest.mark.parametrize("number", ["TERM", "INT", "QUIT"])
def test_a_signal_that_ends_it_cannot_reload(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--stop-signal=QUIT", f"--reload-signal={number}", "--", "true"]
    with pytest.raises(SystemExit):
        main(["run", "--control=c", "--listen=:1", *words])
    assert "--reload-signal: this signal ends `conduit run`" in capsys.readouterr().err


def test_a_relative_address_needs_a_directory(tmp_path: Path) -> None:
    asks = [sys.executable, "-P", "-m", "conduit", "run"]
    words = f'cd {tmp_path}; mkdir x; cd x; rmdir ../x; exec "$@"'
    said = subprocess.run(
        ["/bin/sh", "-c", words, "sh", *asks, "--control=/no/such", "--listen=./s", "--", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert "the current directory is not to be found" in said.stderr


def test_a_host_that_cannot_be_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "a..b", "80"]) == 1
    assert capsys.readouterr().err.startswith("conduit: connecting to a..b port 80: ")


# The manager


class Manager:
    """A service manager, seen from its socket."""

    def __init__(self, bench: Bench) -> None:
        self.sock = bench.stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self.sock.settimeout(GENEROUS)
        self.environment = {"NOTIFY_SOCKET": str(bench.directory / "manager")}
        self.sock.bind(self.environment["NOTIFY_SOCKET"])

    def hear(self) -> list[str]:
        return self.sock.recv(1000).decode().splitlines()


def test_a_manager_hears_of_reloads_and_of_the_end(bench: Bench) -> None:
    manager = Manager(bench)
    with handling(signal.SIGHUP, signal.SIG_DFL):
        run = bench.run("--reload-signal=HUP", environment=manager.environment)
    first = bench.command()
    first.tell("ready")
    assert manager.hear() == ["STATUS=here"]
    assert manager.hear() == ["READY=1", f"MAINPID={run.process.pid}"]
    run.process.send_signal(signal.SIGHUP)
    reloading, clock = manager.hear()
    assert reloading == "RELOADING=1"
    assert 0 < int(clock.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    bench.command().tell(1)
    # It failed; the old one serves.
    assert manager.hear() == ["READY=1"]
    run.process.send_signal(signal.SIGHUP)
    assert manager.hear()[0] == "RELOADING=1"
    second = bench.command()
    second.tell("ready")
    assert manager.hear() == ["READY=1"]
    first.tell(0)
    run.process.terminate()
    assert manager.hear() == ["STOPPING=1"]
    assert second.hear() == {"signal": signal.SIGTERM}
    second.tell(0)
    assert run.end()[0] == 0


SAID = {
    "STATUS": "at work",
    "WATCHDOG": "1",
    "WATCHDOG_USEC": "7",
    "EXTEND_TIMEOUT_USEC": "8",
    "ERRNO": "9",
    "BUSERROR": "x.y",
}

SAYS = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
    for said in json.loads(sys.argv[1]):
        manager.sendto(said.encode(), os.environ["NOTIFY_SOCKET"])
s = socket.socket(fileno=3)
while True:
    s.accept()
"""


def test_what_command_says_is_passed_on_and_who_is_meant_is_not(bench: Bench) -> None:
    manager = Manager(bench)
    # What it says of its own pid, of sockets, and of the end of what a reload replaces, is not.
    own = ["MAINPID=1", "FDSTORE=1", "STOPPING=1", "READY=1"]
    said = [*(f"{key}={value}" for key, value in SAID.items()), *own]
    command = [*python(SAYS), json.dumps(said)]
    run = bench.run("--ready=notify", command=command, environment=manager.environment)
    run.await_line("serves")
    heard = [manager.hear() for _ in range(len(SAID) + 1)]
    assert heard[:-1] == [[each] for each in said[: len(SAID)]]
    assert heard[-1] == ["READY=1", f"MAINPID={run.process.pid}"]
    run.process.terminate()
    assert manager.hear() == ["STOPPING=1"]
    assert run.end()[0] == 128 + signal.SIGTERM


def test_a_manager_is_given_the_sockets(bench: Bench) -> None:
    manager = Manager(bench)
    run = bench.run("--fdstore", environment=manager.environment)
    command = bench.command()
    command.tell("ready")
    assert manager.hear() == ["STATUS=here"]
    assert manager.hear()[0] == "READY=1"
    # What an earlier one listened on is not kept open by the manager.
    assert manager.hear() == ["FDSTOREREMOVE=1", "FDNAME=conduit"]
    data, fds, _, _ = socket.recv_fds(manager.sock, 1000, 5)
    assert data == b"FDSTORE=1\nFDNAME=conduit"
    with socket.socket(fileno=fds[0]) as kept:
        assert kept.getsockname() == bench.unix
    command.tell(0)
    assert run.end()[0] == 0


def test_a_manager_that_does_not_read_is_not_waited_for_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: Any = None
    runner = module._Runner(module.Options("path", [], ["serve"]), nothing, nothing)
    runner._plan.begin(0)
    generation, running = runner._plan.generations[0], nothing
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/manager")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        contextlib.ExitStack() as stack,
    ):
        manager.bind(f"{tmp_path}/manager")
        # Each has room for some.
        for _ in range(10):
            other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    other.sendto(b"X=1", f"{tmp_path}/manager")
        begun = time.monotonic()
        for _ in range(4):
            runner._hear(generation, running, Notice({"STATUS": "x"}, 0), 0)
        # Were each awaited, it would be longer.
        assert time.monotonic() - begun < 15
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_a_manager_that_cannot_keep_the_sockets_is_complained_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "no path")
    nothing: Any = None
    runner = module._Runner(module.Options("path", [], ["serve"]), nothing, nothing)
    with socket.socket() as sock:
        runner._sockets = [Opened("key", "name", sock)]
        runner._store()
    assert "NOTIFY_SOCKET" in capsys.readouterr().err


def test_the_watchdog_is_asked_of_command(bench: Bench) -> None:
    stage = "import os, sys; os.environ['WATCHDOG_PID'] = str(os.getpid()); "
    stage += "os.execv(sys.argv[1], sys.argv[1:])"
    code = "import os; print(os.environ['WATCHDOG_PID'] == str(os.getpid()))"
    words = [sys.executable, "-P", "-m", "conduit", "run", "--control", f"{bench.directory}/c"]
    words += ["--listen", bench.unix, "--", *python(code)]
    said = subprocess.run(
        [sys.executable, "-c", stage, *words],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert said.stdout == "True\n"


# What can be seen


def test_what_cannot_be_looked_at_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspection.see([1 << 22], frozenset([1])).having is None
    monkeypatch.setattr(inspection, "family", lambda *_: set())
    assert readiness.has_sockets(1, 0, frozenset([1])) is None
    # READY=1 has to do then.
    ready = Readiness(readiness.EITHER, frozenset([1]), 1, 0)
    ready.hear(1, 5)
    assert ready.look(5) is Verdict.SERVES


def test_what_says_that_it_is_ready_has_a_second_to_have_the_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    having: list[int] = []
    sight = lambda *_: inspection.Sight(frozenset(having), frozenset())  # noqa: E731
    monkeypatch.setattr(inspection, "see", sight)
    ready = Readiness(readiness.NOTIFY, frozenset([1, 2]), 1, 0)
    assert ready.look(1) is Verdict.OPEN
    ready.hear(1, 10)
    ready.hear(1, 10.5)
    having.append(1)
    assert ready.look(10) is Verdict.OPEN
    # It is not looked at all the time.
    assert ready.look(10.001) is Verdict.OPEN
    assert 10.001 < ready.next_look < 10.1
    assert ready.look(11) is Verdict.REFUSED
    having.append(2)
    assert ready.look(12) is Verdict.SERVES


def test_descendants_are_seen_in_whatever_session_they_are() -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as child:
        assert child.pid in inspection.family(os.getpid(), -1)
        child.kill()


def test_what_is_polled_without_a_timeout_is_read_from_memory() -> None:
    # A select of which no set is to be read.
    assert inspection._selected(os.getpid(), 10, 0) == []
    assert inspection._epoll_set(os.getpid(), 1 << 20) == []


def test_a_predecessor_of_another_user_is_said_to_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    other: Any = SimpleNamespace(predecessor=SimpleNamespace(pid=77))
    assert "(pid 77) goes on serving" in module._who_serves(other)


def test_a_predecessor_that_is_dead_is_not_said_to_serve() -> None:
    gone: Any = SimpleNamespace(predecessor=SimpleNamespace(pid=1 << 22))
    assert module._who_serves(gone) == ""


# Servers that say nothing

NODE = "require('http').createServer((q, r) => r.end('hello')).listen({fd: +process.argv[1]})"

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--fd", "{fd}", "--app-dir", "{directory}", "app:app"],
    "gunicorn": ["-m", "gunicorn", "--chdir", "{directory}", "app:wsgi"],
    "twisted": ["-m", "twisted", "web", "--listen", "systemd:domain=INET:index=0"],
}

APP = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
"""


def answers(bench: Bench) -> bool:
    host, _, port = status(bench)["sockets"][0]["address"].rpartition(":")
    with socket.create_connection((host, int(port)), GENEROUS) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return client.recv(100).startswith(b"HTTP/1.")


@pytest.mark.parametrize("name", [*SERVERS, "node"])
def test_servers_are_ready_once_they_wait_and_are_reloaded(bench: Bench, name: str) -> None:
    if name == "node":
        if shutil.which("node") is None:
            pytest.skip("not installed: node")
        command = ["node", "-e", NODE, "{fd}"]
    else:
        pytest.importorskip(name)
        (bench.directory / "app.py").write_text(APP)
        words = [word.replace("{directory}", str(bench.directory)) for word in SERVERS[name]]
        command = [sys.executable, *words]
    # Where gunicorn has a socket of its own, which another's would be in the way of.
    environment = {"XDG_RUNTIME_DIR": str(bench.directory)}
    words = ["--ready=accepting", "--listen=127.0.0.1:0"]
    run = bench.run(*words, command=command, environment=environment)
    run.await_line(") serves")
    assert answers(bench)
    assert ask(bench, "reload").returncode == 0
    # The old one may still accept.
    await_that(lambda: states(bench) == ["serving"])
    assert answers(bench)
    run.process.terminate()
    # Some end by the signal, others by themselves.
    assert run.end()[0] in (0, 128 + signal.SIGTERM)
