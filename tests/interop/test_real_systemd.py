"""conduit.systemd in services of a real systemd: activation, readiness, the store, the watchdog."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import await_that
from peers import LIMIT
from real_systemd import Service, Systemd, booted

EXAMPLES = Path(__file__).parents[2] / "examples"

SIMPLE = """
[Service]
ExecStart=@SERVICE@
"""

NOTIFY = """
[Service]
Type=notify
ExecStart=@SERVICE@
"""

STORING = """
[Service]
Type=notify
ExecStart=@SERVICE@
FileDescriptorStoreMax=10
Restart=on-failure
RestartSec=0
"""

pytestmark = pytest.mark.slow

NOTHING = {"names": [], "kinds": [], "private": True, "variables": []}


def say(systemd: Systemd, path: str, text: str) -> socket.socket:
    """Connect to a socket of a unit, which starts its service, and say something."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT)
    sock.connect(str(systemd.directory / path))
    sock.sendall(text.encode())
    return sock


def test_a_service_gets_its_sockets_with_their_names_and_who_waits_at_them() -> None:
    units = {
        "app.service": SIMPLE,
        "app.socket": "[Socket]\nListenStream=@DIR@/one\nListenStream=@DIR@/two\n"
        "FileDescriptorName=web\n",
        "default.target": "[Unit]\nDefaultDependencies=no\nWants=app.socket\n",
    }
    with booted(units) as systemd, say(systemd, "two", "hello") as client:
        service = systemd.service()
        assert service.hello == {
            "names": ["web", "web"], "kinds": ["socket"] * 2, "private": True, "variables": [],
        }  # fmt: skip
        assert service.call("answer", 1) == "hello"
        assert client.recv(100) == b"web"


def test_sockets_of_several_units_are_told_apart_by_their_names() -> None:
    units = {
        "app.service": SIMPLE + "Sockets=admin.socket web.socket\n",
        "web.socket": "[Socket]\nListenStream=@DIR@/web\nService=app.service\n"
        "FileDescriptorName=web\n",
        "admin.socket": "[Socket]\nListenStream=@DIR@/admin\nService=app.service\n",
        "default.target": "[Unit]\nDefaultDependencies=no\nWants=web.socket admin.socket\n",
    }
    with booted(units) as systemd, say(systemd, "web", "to web") as client:
        service = systemd.service()
        names = service.hello["names"]
        # The name of the unit, where it gives no other.
        assert sorted(names) == ["admin.socket", "web"]
        assert service.call("answer", names.index("web")) == "to web"
        assert client.recv(100) == b"web"


def test_a_service_for_each_connection_gets_it_as_connection() -> None:
    units = {
        "app@.service": SIMPLE,
        "app.socket": "[Socket]\nListenStream=@DIR@/one\nAccept=yes\n",
        "default.target": "[Unit]\nDefaultDependencies=no\nWants=app.socket\n",
    }
    with booted(units) as systemd, say(systemd, "one", "hello"):
        assert systemd.service().hello["names"] == ["connection"]


def test_nothing_is_taken_by_a_child_of_the_process_that_the_sockets_are_meant_for() -> None:
    units = {
        "app.service": "[Service]\nExecStart=sh -c '@SERVICE@; true'\n",
        "app.socket": "[Socket]\nListenStream=@DIR@/one\n",
        "default.target": "[Unit]\nDefaultDependencies=no\nWants=app.socket\n",
    }
    with booted(units) as systemd, say(systemd, "one", "hello"):
        assert systemd.service().hello == NOTHING


def test_a_service_without_sockets_gets_none() -> None:
    with booted({"app.service": SIMPLE}) as systemd:
        systemd.run("systemctl", "start", "app")
        assert systemd.service().hello == NOTHING


def start(systemd: Systemd) -> tuple[Service, subprocess.Popen[str]]:
    """Begin to start the service ``app``, which is not ready yet."""
    command = systemd.command("systemctl", "start", "app")
    starting = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True)
    return systemd.service(), starting


def start_ready(systemd: Systemd) -> Service:
    service, starting = start(systemd)
    assert service.call("notify", "READY=1")
    assert starting.wait(LIMIT) == 0
    return service


def test_a_service_is_active_once_it_says_that_it_is_ready() -> None:
    with booted({"app.service": NOTIFY}) as systemd:
        service, starting = start(systemd)
        assert systemd.show("app", "ActiveState") == "activating"
        assert service.call("notify", "READY=1\nSTATUS=Bereit für 7 Gäste")
        assert starting.wait(LIMIT) == 0
        assert systemd.show("app", "ActiveState") == "active"
        assert systemd.show("app", "StatusText") == "Bereit für 7 Gäste"


def test_what_was_sent_before_a_barrier_is_processed_after_it() -> None:
    with booted({"app.service": NOTIFY}) as systemd:
        service = start_ready(systemd)
        for turn in range(20):
            assert service.call("notify", f"STATUS={turn}")
            assert service.call("barrier", LIMIT)
            assert systemd.show("app", "StatusText") == str(turn)


def test_the_longest_state_that_notify_takes_is_read() -> None:
    with booted({"app.service": NOTIFY}) as systemd:
        service = start_ready(systemd)
        text = "x" * (4096 - len("STATUS="))
        assert service.call("notify", f"STATUS={text}")
        assert service.call("barrier", LIMIT)
        assert systemd.show("app", "StatusText") == text


@pytest.mark.parametrize("how", ["crash", "restart"])
def test_what_is_stored_comes_back_after_a(how: str) -> None:
    with booted({"app.service": STORING}) as systemd:
        service = start_ready(systemd)
        assert service.hello == NOTHING
        assert service.call("store", "state", "seven guests")
        assert service.call("store", "log of today", "what was said")
        assert service.call("barrier", LIMIT)
        assert systemd.show("app", "NFileDescriptorStore") == "2"
        restarting = None
        if how == "crash":
            os.kill(service.pid, signal.SIGKILL)
        else:
            restarting = subprocess.Popen(systemd.command("systemctl", "restart", "app"))
        service.wait_until_gone()
        successor = systemd.service()
        assert successor.hello["variables"] == []
        assert successor.hello["private"]
        assert successor.hello["kinds"] == ["memfd", "memfd"]
        names = successor.hello["names"]
        assert sorted(names) == ["log of today", "state"]
        assert successor.call("content", names.index("state")) == "seven guests"
        assert successor.call("content", names.index("log of today")) == "what was said"
        assert successor.call("notify", "READY=1")
        assert restarting is None or restarting.wait(LIMIT) == 0


def test_what_is_removed_from_the_store_does_not_come_back() -> None:
    with booted({"app.service": STORING}) as systemd:
        service = start_ready(systemd)
        for name in ("kept", "removed", "removed"):
            assert service.call("store", name, name)
        assert service.call("unstore", "removed")
        assert service.call("barrier", LIMIT)
        assert systemd.show("app", "NFileDescriptorStore") == "1"
        os.kill(service.pid, signal.SIGKILL)
        service.wait_until_gone()
        assert systemd.service().hello["names"] == ["kept"]


def test_the_manager_drops_a_dead_pipe_from_the_store_unless_it_is_not_to_poll_it() -> None:
    with booted({"app.service": STORING}) as systemd:
        service = start_ready(systemd)
        assert service.call("store_dead_pipe", "dropped", True)
        assert service.call("store_dead_pipe", "kept", False)
        assert service.call("barrier", LIMIT)
        os.kill(service.pid, signal.SIGKILL)
        service.wait_until_gone()
        assert systemd.service().hello["names"] == ["kept"]


def test_the_watchdog_leaves_alone_who_tells_it_in_time_and_ends_who_does_not() -> None:
    watched = NOTIFY + "WatchdogSec=5\nWatchdogSignal=SIGKILL\n"
    with booted({"app.service": watched}) as systemd:
        service = start_ready(systemd)
        assert service.call("watchdog_interval") == 5.0
        service.call("feed", 7)
        service.wait_until_gone()
        await_that(lambda: systemd.show("app", "Result") == "watchdog")


ASK = """
import contextlib, socket, sys

def ask(text):
    # To be refused is an error; to be cut off by the end of a server is not, nor is to ask again.
    with socket.create_connection(("127.0.0.1", 8007), timeout=20) as sock:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(text)
            return sock.makefile("rb").read() == text

for turn in range(int(sys.argv[1])):
    while not ask(b"%d\\n" % turn):
        pass
    print(turn, flush=True)
"""


def test_the_example_serves_from_its_first_connection_on_and_refuses_none_in_a_restart() -> None:
    units = {path.name: path.read_text() for path in EXAMPLES.glob("systemd_server.s*")}
    shipped = "/usr/bin/python3 /srv/"
    assert shipped in units["systemd_server.service"]
    here = f"{sys.executable} -W error {EXAMPLES}/"
    units["systemd_server.service"] = units["systemd_server.service"].replace(shipped, here)
    units["default.target"] = (
        "[Unit]\nDefaultDependencies=no\nWants=systemd_server.socket\nAfter=systemd_server.socket\n"
    )
    with booted(units) as systemd:
        assert systemd.show("systemd_server", "ActiveState") == "inactive"
        client = systemd.command(sys.executable, "-c", ASK, "100")
        with subprocess.Popen(client, stdout=subprocess.PIPE, text=True) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == "0\n"
            assert systemd.show("systemd_server", "ActiveState") == "active"
            before = systemd.show("systemd_server", "MainPID")
            systemd.run("systemctl", "stop", "systemd_server.service")
            assert asking.stdout.read().split()[-1] == "99"
            assert asking.wait(LIMIT) == 0
        assert systemd.show("systemd_server", "MainPID") != before
