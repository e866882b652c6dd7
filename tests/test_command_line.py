"""The command line, as processes: what it starts, what it says, and how it ends."""

from __future__ import annotations

import ast
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Bench, await_gone, await_that, children, conduit_says, is_listening
from helpers import GENEROUS, Call, memory, room_for
from sides import NOBODY, beside, is_at_eof, needs_root, wait_until_process_polls

import conduit
from conduit import Conduit, Peer
from conduit.cli import main, notices, plan, processes
from conduit.cli import run as module
from conduit.cli.addresses import parse_address
from conduit.cli.messages import CommandError
from conduit.cli.run import Options
from conduit.cli.signals import Signals
from conduit.errors import TakeoverError
from conduit.takeover import Takeover

pytestmark = pytest.mark.slow

# Addresses


@pytest.mark.parametrize(
    ("text", "name", "host", "port", "type"),
    [
        ("127.0.0.1:80", "unknown", "127.0.0.1", 80, socket.SOCK_STREAM),
        ("http=localhost:80", "http", "localhost", 80, socket.SOCK_STREAM),
        (":80", "unknown", "", 80, socket.SOCK_STREAM),
        ("x=[::1]:80", "x", "::1", 80, socket.SOCK_STREAM),
        ("udp:[::]:53", "unknown", "::", 53, socket.SOCK_DGRAM),
        ("dns=udp:0.0.0.0:53", "dns", "0.0.0.0", 53, socket.SOCK_DGRAM),
        ("/run/a=b", "unknown", "/run/a=b", None, socket.SOCK_STREAM),
        ("a=/run/b", "a", "/run/b", None, socket.SOCK_STREAM),
        ("@a=b", "unknown", "@a=b", None, socket.SOCK_STREAM),
    ],
)
def test_an_address_is_read(text: str, name: str, host: str, port: int | None, type: int) -> None:
    address = parse_address(text)
    assert address[1:] == (name, host, port, type)
    assert address.key == (text if name == "unknown" else name)


def test_a_relative_path_is_the_same_for_a_successor_elsewhere() -> None:
    assert parse_address("./x").host == os.path.abspath("x") == parse_address("./x").key


@pytest.mark.parametrize(
    "text",
    ["", "80", "host", "host:http", "host:65536", "::1:80", "=h:1", "a:b=h:1", "a\nb=h:1", "h:²"],
)
def test_what_is_no_address_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_address(text)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--control", "c", "--listen", "h:1"],
        ["run", "--control", "c", "--listen", "h", "--", "true"],
        ["run", "--control", "c", "--listen", "h:1", "--listen", "h:1", "--", "true"],
        ["run", "--control", "c", "--listen", "h:1", "--timeout", "-1", "--", "true"],
        ["run", "--control", "c", "--listen", "h:1", "--timeout", "nan", "--", "true"],
        ["run", "--listen", "h:1", "--", "true"],
        ["send", "s", "--", "true"],
        ["run", "--control", "c", "--listen", "h:1", "true"],
        ["status", "--control", "c", "more"],
        [],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


# What COMMAND gets


def test_a_command_gets_its_sockets_as_from_systemd(bench: Bench, tmp_path: Path) -> None:
    run, command = bench.serve(
        "--listen=http=127.0.0.1:0",
        "--listen=dns=udp:127.0.0.1:0",
        f"--listen={tmp_path}/u",
        "--listen=last=[::1]:0",
    )
    start = command.start
    assert start["listen"] == {
        "LISTEN_FDS": "4",
        "LISTEN_PID": str(start["pid"]),
        "LISTEN_FDNAMES": "http:dns:unknown:last",
    }
    kinds = [kind for kind, _ in start["names"]]
    assert kinds == [socket.SOCK_STREAM, socket.SOCK_DGRAM, *[socket.SOCK_STREAM] * 2]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/u")
    assert start["names"][3][1][0] == "::1"
    assert start["other_sockets"] == []
    assert start["inheritable"]
    assert start["arguments"] == ["--", "x y"]
    assert start["group"] == start["pid"]
    command.tell(0)
    assert run.end()[0] == 0


ENVIRONMENT = """\
import os, sys
os.write(1, repr(dict(os.environb)).encode())
"""


def test_a_command_gets_the_environment_as_it_is_and_four_variables_more(bench: Bench) -> None:
    given = {"discovery.type": "single", "my-setting": "1", "ODD": "name\udce9", "LC_ALL": "C"}
    run = bench.run(command=[sys.executable, "-c", ENVIRONMENT], environment=given)
    assert run.process.stdout is not None
    got = ast.literal_eval(run.process.stdout.read())
    assert run.end()[0] == 1
    before = {**os.environ, **given}
    names = {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET"}
    # Python itself sets it in the C locale (PEP 538).
    after = {os.fsdecode(name): os.fsdecode(value) for name, value in got.items()}
    assert set(after) - {"LC_CTYPE"} == (set(before) | names) - {"LC_CTYPE"}
    assert all(after[name] == before[name] for name in set(before) - names)


def test_a_command_that_is_no_program_says_so(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("nonsense")
    (tmp_path / "program").chmod(0o755)
    run = bench.run(command=[str(tmp_path / "program")])
    assert "Exec format error" in run.await_line("Exec")
    assert run.end()[0] == 126


OTHER_USER = """\
import os, socket, time
os.setgid(65534), os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""


@needs_root
def test_a_command_that_has_changed_its_user_says_that_it_is_ready(bench: Bench) -> None:
    run = bench.run(command=[sys.executable, "-c", OTHER_USER])
    run.await_line("serves")
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGTERM


def test_only_a_process_of_the_command_or_of_this_user_speaks_for_it() -> None:
    me, stranger = os.getpid(), os.geteuid() + 12345
    assert notices._speaks_for(None, 1 << 22)
    assert notices._speaks_for(Peer(me, os.geteuid(), 0), 1 << 22)
    assert notices._speaks_for(Peer(me, stranger, 0), os.getpgid(0))
    assert notices._speaks_for(Peer(me, stranger, 0), os.getppid())
    assert not notices._speaks_for(Peer(me, stranger, 0), 1 << 22)
    assert not notices._speaks_for(Peer(1 << 22, stranger, 0), 1 << 22)


@needs_root
def test_what_another_user_says_is_not_heard(tmp_path: Path) -> None:
    def say() -> None:
        with Conduit.connect(board.path, type=socket.SOCK_DGRAM) as link:
            link.transfer(data=b"READY=1")

    with notices.Notices(str(tmp_path)) as board:
        with beside(say, user=NOBODY):
            pass
        assert board.take(1 << 22) == []


def test_a_manager_that_cannot_be_told_is_complained_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "no path")
    module._tell("READY=1")
    assert "NOTIFY_SOCKET" in capsys.readouterr().err


def test_what_a_command_says_at_length_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    with notices.Notices("/") as board:
        with Conduit.connect(board.path, type=socket.SOCK_DGRAM) as link:
            link.transfer(data=b"STATUS=" + bytes(10_000))
            link.transfer(memory(), data=b"READY=1")
        assert [notice.said for notice in board.take(os.getpid())] == [{"READY": "1"}]
        assert board.take(os.getpid()) == []
    assert "cannot be read" in capsys.readouterr().err


def test_no_pid_is_told_that_means_nothing() -> None:
    def follows(pid: int) -> tuple[str, str]:
        old: Any = SimpleNamespace(predecessor=Peer(pid, 0, 0), dropped=())
        return module._whom_it_follows(old), module._who_serves(old)

    assert follows(5) == (", taken over from pid 5", "; the old one (pid 5) goes on serving")
    assert follows(0) == (", taken over", "; the old one goes on serving")


@pytest.mark.parametrize("killed", [True, False])
def test_a_guard_that_is_killed_is_replaced(bench: Bench, killed: bool) -> None:
    run, command = bench.serve()
    pid = command.start["pid"]
    [guard] = children(run.process.pid) - {pid}
    os.kill(guard, signal.SIGKILL)
    await_that(lambda: len(children(run.process.pid) - {pid, guard}) == 1)
    if killed:
        run.process.kill()
        assert command.hear() == {"signal": signal.SIGTERM}
        command.tell(0)
        await_gone(pid)
    else:
        command.tell(0)
        assert run.end()[0] == 0


WRITER = """\
import os, socket, sys
print("starting", flush=True)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
sys.stdin.read()
"""


def test_a_terminal_that_stops_who_writes_from_the_background_stops_nobody(
    tmp_path: Path,
) -> None:
    ours, theirs = os.openpty()
    settings = termios.tcgetattr(theirs)
    settings[3] |= termios.TOSTOP
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    words = ["run", "--control", str(tmp_path / "c"), "--listen", str(tmp_path / "s"), "--"]
    # Where it has no terminal, it becomes the leader of this one's session.
    leader = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    leader += "os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", leader, sys.executable, "-P", "-m", "conduit", *words,
         sys.executable, "-c", WRITER],
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while b"serves" not in said:
        said += os.read(ours, 4096)
    process.terminate()
    process.wait(GENEROUS)
    os.close(ours)
    assert b"starting" in said


def test_a_command_starts_with_default_signals(bench: Bench, tmp_path: Path) -> None:
    code, _ = bench.run(command=["/bin/sh", "-c", f"cat /proc/self/status >{tmp_path}/x"]).end()
    assert code == 1
    lines = (tmp_path / "x").read_text().splitlines()
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD):
        assert not int(status["SigIgn"], 16) & 1 << number - 1


def test_fifty_listeners_are_taken_over(bench: Bench, tmp_path: Path) -> None:
    listens = [f"--listen=n{i}={tmp_path}/s{i}" for i in range(50)]
    old, first = bench.serve(*listens)
    assert first.start["listen"]["LISTEN_FDNAMES"] == ":".join(f"n{i}" for i in range(50))
    new, second = bench.serve(*listens)
    assert second.start["names"] == first.start["names"]
    assert first.hear() == {"signal": signal.SIGTERM}
    first.tell(0)
    assert old.end()[0] == 0
    second.tell(0)
    assert new.end()[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["reports"]


# How it ends


@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_the_exit_code_is_the_commands(bench: Bench, code: int) -> None:
    run, command = bench.serve()
    command.tell(code)
    assert run.end()[0] == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_signal_that_ended_it_is_in_the_exit_code(bench: Bench, number: int) -> None:
    run, command = bench.serve()
    command.tell(["die", number])
    assert run.end()[0] == 128 + number


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGWINCH,
    ],
)
def test_a_signal_reaches_the_command(bench: Bench, number: int) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests were started with this signal ignored, as under nohup")
    run, command = bench.serve()
    run.process.send_signal(number)
    assert command.hear() == {"signal": number}
    command.tell(3)
    assert run.end()[0] == 3


def test_what_it_was_started_with_blocked_reaches_the_command(bench: Bench) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        run = bench.run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    command = bench.command()
    command.tell("ready")
    run.await_line("serves")
    run.process.terminate()
    assert command.hear() == {"signal": signal.SIGTERM}
    command.tell(0)
    assert run.end()[0] == 0


def test_an_ignored_signal_stays_ignored(bench: Bench) -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = bench.run(command=["/bin/sh", "-c", "kill -HUP $$; exit 5"])
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert run.end()[0] == 5


def test_no_signal_comes_while_the_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python complains of one for which a handler is no longer there when it is to be called."""
    signals = Signals()
    with signals:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        put_back = []

        def look(number: int, handler: Any) -> None:
            assert number in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            put_back.append(number)
            real(number, handler)

        real = signal.signal
        monkeypatch.setattr(signal, "signal", look)
    assert signal.SIGCHLD in put_back
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


# One after the other


def test_the_old_command_drains_when_the_new_one_is_ready(bench: Bench) -> None:
    old, first = bench.serve()
    new = bench.run()
    second = bench.command()
    bench.assert_serves(first)
    second.tell("ready")
    assert f"taken over from pid {old.process.pid}" in new.await_line("serves")
    assert first.hear() == {"signal": signal.SIGTERM}
    assert second.start["names"] == first.start["names"]
    bench.assert_serves(second)
    first.tell(9)
    assert old.end()[0] == 9
    bench.assert_serves(second)
    new.process.terminate()
    assert second.hear() == {"signal": signal.SIGTERM}
    second.tell(0)
    assert new.end()[0] == 0
    assert not os.path.exists(bench.unix)


def test_each_names_the_one_before_it(bench: Bench) -> None:
    old, command = bench.serve()
    for _ in range(2):
        new = bench.run()
        successor = bench.command()
        successor.tell("ready")
        assert f"taken over from pid {old.process.pid}" in new.await_line("serves")
        assert command.hear() == {"signal": signal.SIGTERM}
        command.tell(0)
        assert old.end()[0] == 0
        old, command = new, successor


def test_a_command_that_says_nothing_is_ready_after_a_while(bench: Bench) -> None:
    old, first = bench.serve()
    new = bench.run("--ready-after=0.05")
    second = bench.command()
    new.await_line("serves")
    assert first.hear() == {"signal": signal.SIGTERM}
    first.tell(0)
    assert old.end()[0] == 0
    second.tell(4)
    assert new.end()[0] == 4


def test_a_command_that_ends_before_its_time_is_not_ready(bench: Bench) -> None:
    run = bench.run("--ready-after=20", command=["true"])
    code, line = run.end()
    assert code == 1
    assert "exited with 0 before it was ready" in line


def test_an_address_no_longer_asked_for_is_told(bench: Bench, tmp_path: Path) -> None:
    old, first = bench.serve(f"--listen={tmp_path}/a", f"--listen={tmp_path}/b")
    new = bench.run(f"--listen={tmp_path}/b")
    second = bench.command()
    second.tell("ready")
    assert f"no longer listening: {tmp_path}/a" in new.await_line("serves")
    assert first.hear() == {"signal": signal.SIGTERM}
    first.tell(0)
    assert old.end()[0] == 0
    second.tell(0)
    assert new.end()[0] == 0


# The old one goes on


def fails(bench: Bench, *options: str, command: list[str] | None = None) -> tuple[int, str]:
    """A run that is to fail beside one that serves and goes on: its exit code and last line."""
    old, first = bench.serve()
    failing = bench.run(*options, command=command)
    code, line = failing.end()
    assert line.startswith("conduit: ")
    bench.assert_serves(first)
    # It is not even told, so that the next successor is welcome.
    _, second = bench.serve()
    assert first.hear() == {"signal": signal.SIGTERM}
    bench.assert_serves(second)
    first.tell(0)
    assert old.end()[0] == 0
    return code, line.replace(str(old.process.pid), "PID")


def test_a_command_that_is_not_there(bench: Bench) -> None:
    assert fails(bench, command=["no-such-command"]) == (
        127,
        "conduit: no-such-command: command not found",
    )


def test_a_command_that_cannot_be_executed(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o700)
    code, line = fails(bench, command=[str(script)])
    assert code in (126, 127)
    assert f"exited with {code} before it was ready; the old one (pid PID) goes on" in line


def test_a_command_that_fails_at_once(bench: Bench) -> None:
    code, line = fails(bench, command=["/bin/sh", "-c", "exit 3"])
    assert code == 3
    assert "exited with 3 before it was ready; the old one (pid PID) goes on serving" in line


def test_a_command_that_is_killed(bench: Bench) -> None:
    code, line = fails(bench, command=["/bin/sh", "-c", "kill -SEGV $$"])
    assert code == 128 + signal.SIGSEGV
    assert "was ended by SIGSEGV before it was ready; the old one (pid PID) goes on" in line


def test_a_command_that_hangs(bench: Bench) -> None:
    code, line = fails(bench, "--timeout=0.2", command=["sleep", "1000"])
    assert code == 1
    assert "was not ready within 0.2 seconds" in line
    assert "was not seen to use its sockets: it has to take them by LISTEN_FDS" in line
    assert line.endswith("; the old one (pid PID) goes on serving")


def test_a_command_that_is_not_ready_goes_with_all_it_started(bench: Bench) -> None:
    old, first = bench.serve()
    new = bench.run()
    second = bench.command()
    second.tell("fork")
    child = second.hear()["child"]
    new.process.terminate()
    assert second.hear() == {"signal": signal.SIGTERM}
    second.tell(0)
    assert new.end()[0] == 1
    await_gone(child)
    bench.assert_serves(first)
    first.tell(0)
    assert old.end()[0] == 0


def test_a_run_killed_while_it_starts_takes_its_command_along(bench: Bench) -> None:
    old, first = bench.serve()
    new = bench.run()
    second = bench.command()
    new.process.kill()
    assert second.hear() == {"signal": signal.SIGTERM}
    second.tell(0)
    await_gone(second.start["pid"])
    bench.assert_serves(first)
    _, third = bench.serve()
    assert first.hear() == {"signal": signal.SIGTERM}
    bench.assert_serves(third)
    first.tell(0)
    assert old.end()[0] == 0


def test_a_command_does_not_serve_on_when_its_run_is_killed(bench: Bench) -> None:
    run, command = bench.serve()
    run.process.kill()
    assert command.hear() == {"signal": signal.SIGTERM}
    command.tell(0)
    await_gone(command.start["pid"])
    _, second = bench.serve()
    bench.assert_serves(second)


def test_a_signal_while_it_starts_ends_the_new_one_only(bench: Bench) -> None:
    _, first = bench.serve()
    new = bench.run()
    second = bench.command()
    new.process.terminate()
    assert second.hear() == {"signal": signal.SIGTERM}
    second.tell(["die", signal.SIGTERM])
    code, line = new.end()
    assert code == 128 + signal.SIGTERM
    assert "before it was ready" in line
    bench.assert_serves(first)


def test_a_second_successor_is_refused_at_once(bench: Bench) -> None:
    old, first = bench.serve()
    new = bench.run()
    second = bench.command()
    code, line = bench.run().end()
    assert code == 1
    assert "another takeover is under way" in line
    second.tell("ready")
    new.await_line("serves")
    assert first.hear() == {"signal": signal.SIGTERM}
    first.tell(0)
    assert old.end()[0] == 0


def test_an_address_that_is_taken(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = bench.run(f"--listen={address}").end()
    assert code == 1
    assert line == f"conduit: listening as '{address}': Address already in use [EADDRINUSE]"


# What fails in between

# Says that it is ready, once no signal but SIGKILL ends it.
DEAF = """
import os, signal, socket
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
"""


def options(directory: Path, *command: str) -> Options:
    addresses = [parse_address(f"{directory}/unix")]
    return Options(str(directory / "control"), addresses, command)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pids of what is started."""

    def note(*args: Any) -> int:
        pids.append(spawn(*args))
        return pids[-1]

    pids: list[int] = []
    spawn = processes._spawn
    monkeypatch.setattr(processes, "_spawn", note)
    return pids


def test_a_command_that_is_deaf_to_sigterm_is_killed_when_the_old_one_says_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawned: list[int]
) -> None:
    def refuse(takeover: Takeover) -> None:
        raise TakeoverError("the other side refuses: no", conduit.ErrType.FAILED_TRANSFER)

    monkeypatch.setattr(plan, "GRACE", 0.05)
    monkeypatch.setattr(Takeover, "ready", refuse)
    with pytest.raises(TakeoverError, match="no"):
        module.run(options(tmp_path, sys.executable, "-c", DEAF))
    assert len(spawned) == 2
    for pid in spawned:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert os.listdir(tmp_path) == []


def test_a_command_that_cannot_be_guarded_does_not_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawned: list[int]
) -> None:
    def spawn_one(python: str, *args: Any, **kwargs: Any) -> int:
        # As if this Python had just been removed.
        return spawn(f"{tmp_path}/python" if spawned else python, *args, **kwargs)

    spawn = os.posix_spawn
    monkeypatch.setattr(os, "posix_spawn", spawn_one)
    with pytest.raises(CommandError, match=r"sleep could not be started \(No such file"):
        module.run(options(tmp_path, "sleep", "1000"))
    [pid] = spawned
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", range(3))
def test_a_command_that_there_is_no_room_to_guard_is_not_started(
    tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch, spawned: list[int]
) -> None:
    def start(*args: Any, **kwargs: Any) -> Any:
        with room_for(room):
            return process(*args, **kwargs)

    process = processes.Process
    monkeypatch.setattr(module, "Process", start)
    with pytest.raises(CommandError, match="Too many open files"):
        module.run(options(tmp_path, "sleep", "1000"))
    assert spawned == []
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_temporary_files_notices_come_beside_the_control_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Too deep for a socket.
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with notices.Notices(str(tmp_path)) as beside:
        assert os.path.dirname(os.path.dirname(beside.path)) == str(tmp_path)
    with pytest.raises(OSError, match="the path has"):
        notices.Notices(str(deep))
    assert os.listdir(deep) == []
    assert os.listdir(tmp_path) == [deep.name]


# Under a manager


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_a_manager_is_told(bench: Bench, tmp_path: Path, abstract: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(GENEROUS)
        name = f"conduit-test-{os.getpid()}" if abstract else str(tmp_path / "manager")
        manager.bind("\0" + name if abstract else name)
        environment = {"NOTIFY_SOCKET": "@" + name if abstract else name}
        run = bench.run(environment=environment)
        command = bench.command()
        command.tell("ready")
        assert manager.recv(1000) == b"STATUS=here"
        told = manager.recv(1000).decode()
        assert told.splitlines() == ["READY=1", f"MAINPID={run.process.pid}"]
        command.tell(0)
        assert run.end()[0] == 0


def test_a_manager_that_is_gone_is_no_reason_to_stop(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    command = bench.command()
    command.tell("ready")
    run.await_line("NOTIFY_SOCKET")
    run.await_line("serves")
    command.tell(0)
    assert run.end()[0] == 0


# connect, send, receive


def test_connect_passes_a_connection_over_standard_output() -> None:
    ours, theirs = conduit.Conduit.pair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        words = [sys.executable, "-P", "-m", "conduit", "connect", "127.0.0.1", port]
        assert subprocess.run(words, stdout=theirs.fileno(), check=True).returncode == 0
        with ours.receive_conn() as conn, server.accept()[0] as accepted:
            conn.sendall(b"hello")
            assert accepted.recv(10) == b"hello"


def test_connect_says_why_it_cannot() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
        said = conduit_says("connect", "127.0.0.1", port)
    assert said.returncode == 1
    assert said.stderr == f"conduit: connecting to 127.0.0.1 port {port}: Connection refused\n"


def test_connect_needs_a_unix_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = conduit_says("connect", "127.0.0.1", str(server.getsockname()[1]))
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
    assert "standard output" in said.stderr


@pytest.mark.parametrize("given", ["file", "stdin", "dash"])
def test_send_passes_an_open_file(tmp_path: Path, given: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with conduit.Listener(tmp_path / "s") as listener, file.open("rb") as stdin:
        words = {"file": [str(file)], "stdin": [], "dash": ["-"]}[given]
        source = subprocess.DEVNULL if given == "file" else stdin
        said = conduit_says("send", str(tmp_path / "s"), *words, stdin=source)
        assert (said.returncode, said.stderr) == (0, "")
        with listener.accept(GENEROUS) as link, link.receive_file() as arrived:
            assert arrived.read() == b"content"


@pytest.mark.parametrize("words", [["nobody", "/dev/null"], ["nobody", "no-such-file"]])
def test_send_says_why_it_cannot(tmp_path: Path, words: list[str]) -> None:
    said = conduit_says("send", *words, cwd=tmp_path)
    assert said.returncode == 1
    assert len(said.stderr.splitlines()) == 1
    assert words[-1 if words[-1] == "no-such-file" else 0] in said.stderr


def receiving(path: Path, *command: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start `conduit receive`, and wait until it listens."""
    words = [sys.executable, "-P", "-m", "conduit", "receive", str(path)]
    words += ["--", *command] if command else []
    process = subprocess.Popen(words, stdout=stdout, stderr=subprocess.PIPE)
    # The path is there a moment before the socket listens.
    await_that(lambda: is_listening(path))
    return process


def test_receive_copies_what_arrives(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    process = receiving(tmp_path / "s")
    assert conduit_says("send", str(tmp_path / "s"), str(tmp_path / "file")).returncode == 0
    assert process.communicate(timeout=GENEROUS) == (content, b"")
    assert process.returncode == 0
    assert not (tmp_path / "s").exists()


def test_receive_writes_all_to_a_pipe_that_does_not_block(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    out, into = os.pipe()
    os.set_blocking(into, False)
    process = receiving(tmp_path / "s", stdout=into)
    os.close(into)
    assert conduit_says("send", str(tmp_path / "s"), str(tmp_path / "file")).returncode == 0
    with open(out, "rb") as file:
        # It cannot go on before this reads.
        wait_until_process_polls(process.pid)
        assert file.read() == content
    assert process.communicate(timeout=GENEROUS)[1] == b""
    assert process.returncode == 0


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])
def test_a_command_that_receive_becomes_may_wait_for_its_input(tmp_path: Path, kind: str) -> None:
    process = receiving(tmp_path / "s", "cat")
    other: socket.socket | None = None
    if kind == "pipe":
        out, into = os.pipe()
    elif kind == "fifo":
        os.mkfifo(tmp_path / "fifo")
        out = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        into = os.open(tmp_path / "fifo", os.O_WRONLY)
    else:
        sock, other = socket.socketpair()
        out, into = sock.detach(), other.detach()
    os.set_blocking(out, False)
    mine = os.dup(out)
    with conduit.Conduit.connect(tmp_path / "s") as link:
        if kind == "socket":
            # It has no path by which to be opened anew.
            os.write(into, b"late")
        link.transfer_fd(out)
    if kind != "socket":
        wait_until_asleep_in(process.pid, "cat")
        os.write(into, b"late")
    os.close(into)
    said = process.communicate(timeout=GENEROUS)
    assert said[0] == b"late"
    assert not os.get_blocking(mine)
    os.close(mine)


def wait_until_asleep_in(pid: int, program: str) -> None:
    """Return once a process has become a program, and waits."""
    asleep = 0
    while asleep < 200:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        asleep = asleep + 1 if name.endswith(f"({program}") and rest.split()[0] == "S" else 0
        os.sched_yield()


def test_receive_waits_for_a_descriptor_that_does_not_block(tmp_path: Path) -> None:
    process = receiving(tmp_path / "s")
    read, write = os.pipe()
    os.set_blocking(read, False)
    with conduit.Conduit.connect(tmp_path / "s") as link:
        link.transfer_fd(read)
    assert process.stdout is not None
    for piece in (b"one", b"other"):
        os.write(write, piece)
        assert process.stdout.read(len(piece)) == piece
    os.close(write)
    assert process.communicate(timeout=GENEROUS) == (b"", b"")


def test_receive_copies_from_a_terminal_until_nobody_holds_its_other_end(tmp_path: Path) -> None:
    process = receiving(tmp_path / "s")
    ours, theirs = os.openpty()
    with conduit.Conduit.connect(tmp_path / "s") as link:
        link.transfer_fd(theirs)
    os.write(ours, b"a line\n")
    assert process.stdout is not None
    assert process.stdout.read(7) == b"a line\n"
    os.close(ours)
    assert process.communicate(timeout=GENEROUS) == (b"", b"")
    assert process.returncode == 0


def test_receive_says_why_it_cannot_read(tmp_path: Path) -> None:
    process = receiving(tmp_path / "s")
    with conduit.Conduit.connect(tmp_path / "s") as link:
        link.transfer_fd(os.open(tmp_path, os.O_RDONLY))
    _, said = process.communicate(timeout=GENEROUS)
    assert process.returncode == 1
    assert b"Is a directory" in said


def test_receive_waits_once_nothing_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    real = select.select

    def write_first(*args: Any) -> Any:
        monkeypatch.undo()
        os.write(write, b"late")
        os.close(write)
        return real(*args)

    receive = Call(main, ["receive", str(tmp_path / "s")])
    assert receive.is_waiting()
    monkeypatch.setattr(select, "select", write_first)
    with conduit.Conduit.connect(tmp_path / "s") as link:
        link.transfer_fd(read)
    assert receive.result() == 0
    assert capfd.readouterr() == ("late", "")


def test_receive_gives_what_arrives_to_a_command(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("b\na\n")
    process = receiving(tmp_path / "s", "sort", "-")
    assert conduit_says("send", str(tmp_path / "s"), str(tmp_path / "file")).returncode == 0
    assert process.communicate(timeout=GENEROUS) == (b"a\nb\n", b"")


def test_a_receiving_commands_exit_code_is_its_own(tmp_path: Path) -> None:
    process = receiving(tmp_path / "s", "/bin/sh", "-c", "exit 9")
    assert conduit_says("send", str(tmp_path / "s"), "/dev/null").returncode == 0
    process.communicate(timeout=GENEROUS)
    assert process.returncode == 9


def test_receive_looks_for_its_command_first(tmp_path: Path) -> None:
    said = conduit_says("receive", str(tmp_path / "s"), "--", "no-such-command")
    assert (said.returncode, said.stderr) == (
        127,
        "conduit: no-such-command: command not found\n",
    )


def test_receive_says_that_its_command_is_no_program(tmp_path: Path) -> None:
    command = tmp_path / "command"
    command.write_text("no program, and no script that says of what")
    command.chmod(0o700)
    process = receiving(tmp_path / "s", str(command))
    out, into = os.pipe()
    with conduit.Conduit.connect(tmp_path / "s") as link:
        link.transfer_fd(into)
    said = process.communicate(timeout=GENEROUS)
    assert said == (b"", f"conduit: {command}: Exec format error\n".encode())
    assert process.returncode == 126
    assert is_at_eof(out)


def test_receive_says_when_nothing_arrives(tmp_path: Path) -> None:
    process = receiving(tmp_path / "s")
    conduit.Conduit.connect(tmp_path / "s").close()
    _, said = process.communicate(timeout=GENEROUS)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert said.startswith(b"conduit: ")


def test_receive_ends_with_control_c(tmp_path: Path) -> None:
    process = receiving(tmp_path / "s")
    wait_until_process_polls(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=GENEROUS) == (b"", b"")
    assert process.returncode == 128 + signal.SIGINT
    assert not (tmp_path / "s").exists()


# In this process


def test_the_command_line_is_a_function_that_returns_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("content")
    words = ["send", str(tmp_path / "s"), str(tmp_path / "file")]
    assert main(words) == 1
    assert capsys.readouterr().err.startswith(f"conduit: connecting to {words[1]!r}")
    with conduit.Listener(tmp_path / "s") as listener:
        # Its own command line, if none is given.
        monkeypatch.setattr(sys, "argv", ["conduit", *words])
        assert main() == 0
        with listener.accept(GENEROUS) as link, link.receive_file("r") as arrived:
            assert arrived.read() == "content"
    assert capsys.readouterr() == ("", "")


def test_version_is_told_by_the_package_and_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert conduit.__version__[0].isdigit()
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert importlib.import_module("conduit.__main__").main is main
    assert capsys.readouterr().out == f"conduit {conduit.__version__}\n"
