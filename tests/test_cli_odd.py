"""What nobody expects around the command line: of a machine, a manager, COMMAND or who answers."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Bench, Run, await_that, conduit_says, is_listening, python
from helpers import GENEROUS, in_child
from sides import (
    NOBODY,
    SETGID,
    SETUID,
    beside,
    is_capable,
    unshared,
    wait_until_process_polls,
)

from conduit import Conduit
from conduit.channel import Channel
from conduit.cli import inspection, main, processes
from conduit.cli.addresses import parse_address
from conduit.cli.messages import plain
from conduit.cli.notices import Notices, _speaks_for
from conduit.cli.sockets import Opened
from conduit.peer import Peer
from conduit.takeover.talk import TYPE

READY = """
import os, socket, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    time.sleep(1000)
"""


def run_below(bench: Bench, around: list[str], *options: str, command: list[str]) -> Run:
    """A `conduit run` that another program becomes, or starts."""
    control = f"--control={bench.directory}/control"
    run = Run(["run", control, *options, "--", *command], around=around)
    bench.stack.callback(bench._end, run)
    return run


def passing(path: str, name: str, meanwhile: str = "") -> list[str]:
    """A program that listens at a path, and passes that as a service manager does."""
    return python(f"""if 1:
        import os, socket, sys
        sock = socket.socket(socket.AF_UNIX)
        sock.bind({path!r})
        sock.listen()
        above = os.dup(sock.fileno())
        sock.close()
        os.dup2(above, 3)
        {meanwhile}
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES={name!r})
        os.execvp(sys.argv[1], sys.argv[1:])
    """)


# What /proc shows


SELECT = """
import ctypes
bits = ctypes.create_string_buffer(1 << 13)
bits[0] = 1 << 3
ctypes.CDLL(None).select(1 << 30, bits, None, None, None)
"""


@pytest.mark.skipif(
    os.uname().machine not in inspection._SELECT or sys.maxsize < 1 << 32,
    reason="what waits is seen on x86-64 and arm64 only",
)
def test_a_select_of_more_descriptors_than_there_are_is_looked_at(bench: Bench) -> None:
    run = bench.run("--ready=accepting", command=python(SELECT))
    run.await_line("serves")
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("memory", [None, b"odd"], ids=["no address", "less than there was"])
def test_what_a_process_gives_to_a_system_call_may_be_anything(
    memory: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if memory is not None:
        monkeypatch.setattr(inspection, "_memory", lambda *_: memory)
    code = "import ctypes; ctypes.CDLL(None).poll(ctypes.c_void_p(-1), 0, -1)"
    with socket.socket() as sock:
        inode = os.fstat(sock.fileno()).st_ino
        with subprocess.Popen(python(code), pass_fds=[sock.fileno()]) as polling:
            try:
                wait_until_process_polls(polling.pid)
                seen = inspection.see([polling.pid], frozenset([inode]))
            finally:
                polling.kill()
    assert seen == inspection.Sight(frozenset([inode]), frozenset())


def test_a_stat_that_is_none_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.getpid() in inspection.family(os.getpid(), -1)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *_: io.BytesIO(b"1 (odd"))
        found = inspection.family(os.getpid(), -1)
    assert found == set()


def test_sockets_that_were_not_seen_may_be_where_nobody_could_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_fds(pid: int) -> dict[int, tuple[str, int]]:
        if pid == 1:
            raise PermissionError
        if pid == 2:
            raise FileNotFoundError
        return {3: ("socket", 77)}

    monkeypatch.setattr(inspection, "_open_fds", open_fds)
    monkeypatch.setattr(inspection, "_blocked_on", lambda _: iter(()))
    assert inspection.see([1, 3], frozenset([77])).having == frozenset([77])
    assert inspection.see([1, 3], frozenset([77, 78])).having is None
    assert inspection.see([2, 3], frozenset([77, 78])).having == frozenset([77])
    assert inspection.see([1, 2], frozenset([77])).having is None


def test_a_zombie_hides_nothing() -> None:
    def look() -> None:
        with subprocess.Popen(["true"]) as ended, socket.socket() as sock:
            os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
            inode = os.fstat(sock.fileno()).st_ino
            pids = inspection.family(os.getpid(), -1)
            assert {ended.pid, os.getpid()} <= pids
            assert inspection.see(pids, frozenset([inode, 1 << 62])).having == frozenset([inode])

    # Root would be shown that it has nothing open.
    with beside(look, user=NOBODY if is_capable(SETGID, SETUID) else None):
        pass


def test_what_is_gone_hides_nothing() -> None:
    assert inspection._has_ended(1 << 22)


def test_the_proc_of_another_pid_namespace_tells_nothing(bench: Bench) -> None:
    around = unshared("--pid", "--fork", "--kill-child")
    run = run_below(bench, around, f"--listen={bench.unix}", command=python(READY))
    run.await_line("serves")
    run.process.terminate()


REMOVER = """
import os, socket, sys
s = socket.socket(fileno=3)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
s.accept()[0].sendall(b"hello")
os.unlink(sys.argv[1])
"""


def test_the_path_of_a_socket_of_another_network_namespace_is_put_back(bench: Bench) -> None:
    around = [*passing(bench.unix, "web"), *unshared("--net")]
    run = run_below(bench, around, "--restart=always", command=[*python(REMOVER), bench.unix])
    for _ in range(2):
        run.await_line("serves")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(GENEROUS)
            client.connect(bench.unix)
            assert client.recv(10) == b"hello"
        run.await_line("has been put back")
    run.await_line("serves")
    run.process.terminate()
    run.end()


# Files and descriptors


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_path_that_cannot_be_looked_at_any_more_is_given_up(bench: Bench, when: str) -> None:
    directory = bench.directory / "d"
    directory.mkdir()
    # A file takes the place of the directory.
    replace = f"os.rename({str(directory)!r}, {str(directory)!r} + '2'); "
    replace += f"open({str(directory)!r}, 'w').close()"
    around = passing(f"{directory}/s", "web", replace if when == "before" else "")
    run = run_below(bench, around, command=python(READY))
    run.await_line("serves")
    if when == "meanwhile":
        directory.rename(f"{directory}2")
        directory.touch()
    said = conduit_says("reload", "--control", f"{bench.directory}/control")
    assert said.returncode == 0, said.stderr
    run.process.terminate()
    assert run.end()[0] == 128 + signal.SIGTERM


def test_notices_end_though_their_path_cannot_be_removed() -> None:
    with Notices(None) as notices:
        directory = Path(notices.path).parent
        moved = directory.rename(f"{directory}.moved")
        directory.touch()
    shutil.rmtree(moved)
    directory.unlink()


def test_sockets_that_are_announced_and_not_there_are_refused(bench: Bench) -> None:
    announcing = ["/bin/sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh"]
    run = run_below(bench, announcing, command=python(READY))
    code, line = run.end()
    assert code == 1
    assert "LISTEN_FDS is '1', but descriptor 3 is not open" in line


@pytest.mark.parametrize("missing", [["/dev/fd"], ["/proc/self/fd"], ["/proc/self/fd", "/dev/fd"]])
def test_what_is_open_is_withheld_as_far_as_the_system_tells(
    missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listdir(path: str) -> list[str]:
        if path in missing:
            raise FileNotFoundError
        return names(path)

    def child() -> None:
        given = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(given, True)
        processes.withhold()
        assert os.get_inheritable(given) is (len(missing) == 2)

    names = os.listdir
    monkeypatch.setattr(os, "listdir", listdir)
    assert in_child(child) == 0


# Names, addresses and the environment


def test_a_name_as_long_as_a_manager_allows_is_one(bench: Bench) -> None:
    name = "x" * 255
    around = passing(f"{bench.directory}/s", name)
    run = run_below(bench, around, "--ready=0.1", command=python(READY))
    run.await_line("serves")
    said = conduit_says("status", "--control", f"{bench.directory}/control")
    assert f"\n{name}  unix" in said.stdout
    run.process.terminate()
    run.end()


def test_a_host_too_long_for_a_name_needs_one() -> None:
    host = "a." * 128
    with pytest.raises(ValueError, match="give it a name, as in web="):
        parse_address(f"{host}:80")
    assert parse_address(f"web={host}:80").host == host


def test_sockets_of_other_families_are_shown_as_python_tells_them() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        told = Opened("key", "name", sock).status()
    assert (told["type"], told["address"], told["queue"]) == ("AF_NETLINK", "(0, 0)", None)


def test_a_variable_without_a_name_is_not_passed_on(bench: Bench) -> None:
    code = """if 1:
        import ctypes, os, sys
        def array(words):
            return (ctypes.c_char_p * (len(words) + 1))(*words, None)
        words = [os.fsencode(word) for word in sys.argv[1:]]
        environment = [name + b"=" + value for name, value in os.environb.items()]
        ctypes.CDLL(None).execve(words[0], array(words), array([b"=C:=C:", *environment]))
    """
    run = run_below(bench, python(code), f"--listen={bench.unix}", command=python(READY))
    run.await_line("serves")
    run.process.terminate()
    run.end()


@pytest.mark.parametrize("home", [None, sys.base_prefix])
def test_a_python_that_is_told_where_it_lies_hears_it(
    home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(program: str, words: list[str], *_: object, **__: object) -> int:
        given.extend(words)
        return 7

    given: list[str] = []
    monkeypatch.setattr(os, "posix_spawn", spawn)
    environment = {} if home is None else {"PYTHONHOME": home}
    assert processes._spawn("pass", ["word"], environment, []) == 7
    assert given[1] == ("-I" if home is None else "-P")


@pytest.mark.parametrize("port", ["65536", "121901", "9" * 5000, "+80", " 80", ""])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "127.0.0.1", port]) == 1
    assert "is no port" in capsys.readouterr().err


# What is shown


def test_control_characters_are_shown_as_escapes_and_the_bytes_of_paths_as_they_are() -> None:
    assert plain("naïve веб\u3000\xa0 \\n") == "naïve веб\u3000\xa0 \\n"
    assert plain("a\nb\t\x1b[31m\x9b\u2028\u202e\ud800\udfff\udcff\0") == (
        "a\\nb\\t\\x1b[31m\\x9b\\u2028\\u202e\\ud800\\udfff\udcff\\x00"
    )


def test_words_of_several_lines_are_shown_in_one(bench: Bench) -> None:
    run = bench.run("--ready=0.1", command=["/bin/sh", "-c", "sleep 1000\n\x1b[31m"])
    run.await_line("serves")
    said = conduit_says("status", "--control", f"{bench.directory}/control")
    assert "/bin/sh -c sleep 1000\\n\\x1b[31m\n" in said.stdout
    run.process.terminate()
    run.end()


def test_what_another_locale_cannot_write_is_shown_as_escapes(bench: Bench) -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    control = ["--control", f"{bench.directory}/control"]
    utf_8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"}
    listen = f"--listen=naïve={bench.unix}"
    run = bench.run(listen, command=python(READY), environment=utf_8)
    run.await_line("serves")
    for words in (["status"], ["reload"]):
        said = conduit_says(*words, *control, env=ascii_only)
        assert (said.returncode, said.stderr) == (0, "")
        assert words == ["reload"] or "\nna\\xefve   unix " in said.stdout
    # It has no bytes for what it would have to tell COMMAND.
    again = conduit_says("run", *control, "--", *python(READY), env=ascii_only)
    assert again.returncode == 1
    assert "can't encode" in again.stderr
    assert len(again.stderr.splitlines()) == 1
    run.process.terminate()
    run.end()


ODD = "\x1b]0;owned\x07\ud800"

STATUS: dict[str, Any] = {
    "kind": "status",
    "version": "1",
    "pid": 1,
    "control": "x",
    "since": 0,
    "restarts": 0,
    "reloads": 0,
    "generations": [],
    "sockets": [],
}

GENERATION = {"number": 1, "state": ODD, "seconds": 1, "pid": 1, "command": [ODD]}


def answered(path: Path, answer: object, *words: str) -> int:
    """What a command line returns if whoever listens at a path gives an answer."""

    def give() -> None:
        with socket.socket(socket.AF_UNIX, TYPE) as server:
            server.bind(str(path))
            server.listen()
            with Channel(Conduit.from_conn(server.accept()[0])) as channel:
                channel.receive()
                channel.send(answer)

    with beside(give):
        await_that(lambda: is_listening(path))
        return main([*words, "--control", str(path)])


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("stop", {"kind": "end", "text": ODD, "code": 1}),
        ("stop", {"kind": "refused", "reason": ODD}),
        ("stop", {"kind": "end"}),
        ("stop", {"kind": "end", "text": 5, "code": 0}),
        ("stop", {"kind": "end", "text": "t", "code": "x"}),
        ("stop", {"kind": "end", "text": "t", "code": 256}),
        ("stop", STATUS),
        ("status", {"kind": "end", "text": "t", "code": 0}),
        ("status", {"kind": "progress", "text": "t"}),
        ("stop", {"kind": "progress"}),
        ("stop", [1]),
        ("stop", {}),
        ("status", {"kind": "status"}),
        ("status", {**STATUS, "since": 1e300}),
        ("status", {**STATUS, "generations": [{**GENERATION, "seconds": 10**400}]}),
        ("status", {**STATUS, "generations": [{**GENERATION, "command": [1]}]}),
        ("status", {**STATUS, "generations": [[]]}),
        ("status", {**STATUS, "sockets": [{"name": "x"}]}),
    ],
)
def test_an_odd_answer_is_one_line_and_a_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], word: str, answer: object
) -> None:
    assert answered(tmp_path / "s", answer, word) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err[:-1].isprintable()


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("stop", {"kind": "end", "text": ODD, "code": 0}),
        ("status", {**STATUS, "version": ODD, "generations": [GENERATION]}),
        # Bytes of a path that are one character together.
        ("status", {**STATUS, "version": f"{ODD} \udcc2\udc9b"}),
    ],
)
def test_what_others_say_is_shown_and_not_obeyed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], word: str, answer: object
) -> None:
    assert answered(tmp_path / "s", answer, word) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "\\x1b]0;owned\\x07\\ud800" in out
    assert out.replace("\n", "").isprintable()
    assert "\\x9b" in out or "\udc9b" not in str(answer)


# Other users


def test_of_notices_that_cannot_be_read_one_line_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Notices(None) as notices, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(bytes(5000), notices.path)
        sender.sendto(b"READY=1", notices.path)
        assert [notice.said for notice in notices.take(1)] == [{"READY": "1"}]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_user_who_is_not_mapped_does_not_speak_for_one_that_looks_the_same() -> None:
    code = """if 1:
        from conduit.cli.notices import _speaks_for
        from conduit.peer import Peer
        print(_speaks_for(Peer(1 << 22, 65534, 65534), 1 << 22))
    """
    words = [*unshared("--user", "--map-user=65534"), *python(code)]
    said = subprocess.run(words, capture_output=True, text=True, timeout=GENEROUS, check=True)
    assert said.stdout == "False\n"
    assert _speaks_for(Peer(1 << 22, 0, 0), 1 << 22)
