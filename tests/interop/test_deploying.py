"""The docs' ways to deploy: under a real systemd, as process 1 of a container, by hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from commands import await_that, children
from helpers import GENEROUS, reserved_port
from real_systemd import Systemd, booted, version
from sides import SYS_ADMIN, is_capable

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.slow

# Answers each connection with the version that stands beside it, and loses none when it ends.
SERVE = """\
import os, select, signal, socket, sys
version = open(os.path.join(os.path.dirname(sys.argv[0]), "version")).read()
if version == "broken":
    sys.exit("this version is broken")
came, comes = os.pipe()
os.set_blocking(comes, False)
signal.set_wakeup_fd(comes)
signal.signal(signal.SIGTERM, lambda *_: None)
server = socket.socket(fileno=3)
server.setblocking(False)
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
fed, pause = 0, None
if os.environ.get("WATCHDOG_PID") == str(os.getpid()) and version != "hangs":
    pause = int(os.environ["WATCHDOG_USEC"]) / 5e6
while came not in (ready := select.select([server, came], [], [], pause)[0]):
    if pause:
        fed += 1
        manager.sendto(b"WATCHDOG=1\\nSTATUS=fed %d" % fed, os.environ["NOTIFY_SOCKET"])
    try:
        server.accept()[0].sendall(version.encode())
    except BlockingIOError:
        pass
"""

RELOADING = "Type=notify-reload", "ReloadSignal=SIGCONT"

TYPES = [
    pytest.param((), id="notify"),
    pytest.param(
        RELOADING,
        marks=pytest.mark.skipif(version() < 253, reason="systemd knows it from 253 on"),
        id="notify-reload",
    ),
]
"""What the docs say to write instead of ``Type=notify``."""


class App:
    """The service of the docs, with a server that tells its version.

    Attributes:
        units: the unit, by its file name.
        page: which has it.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        (directory / "serve.py").write_text(SERVE)
        # No "#!" line finds an interpreter whose path has a space.
        serve = f'#!/bin/sh\nexec "{sys.executable}" "{directory}/serve.py"\n'
        (directory / "serve").write_text(serve)
        (directory / "serve").chmod(0o755)
        self.install("1")
        page = (DOCS / "howto" / "under-systemd.md").read_text()
        unit = re.findall(r"^```ini\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
        self.units = {"app.service": unit}
        self.page = page
        self.write("/opt/app/bin/conduit", f'"{sys.executable}" -P -m conduit')
        self.write("/opt/app/bin/serve", str(directory / "serve"))
        self.write("0.0.0.0:8000", f"127.0.0.1:{self.port}")

    def write(self, before: str, after: str) -> None:
        """Change the unit."""
        assert before in self.units["app.service"]
        self.units["app.service"] = self.units["app.service"].replace(before, after)

    def write_type(self, lines: tuple[str, ...]) -> None:
        assert all(f"`{line}`" in self.page for line in lines)
        if lines:
            self.write("Type=notify", "\n".join(lines))

    @contextlib.contextmanager
    def booted(self) -> Iterator[Systemd]:
        with booted(self.units, own_network=False) as systemd:
            yield systemd

    def install(self, version: str) -> None:
        (self.directory / "version").write_text(version)

    def ask(self) -> str:
        """The version that answers; OSError if none does."""
        with socket.create_connection(("127.0.0.1", self.port), GENEROUS) as client:
            client.settimeout(GENEROUS)
            return client.recv(100).decode()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with reserved_port() as port:
        yield App(tmp_path, port)


@contextlib.contextmanager
def load(app: App) -> Iterator[list[str]]:
    """Ask all the time; what answered, or how it failed."""

    def run() -> None:
        while not is_over:
            try:
                answers.append(app.ask() or "nothing")
            except OSError as exc:
                answers.append(repr(exc))

    answers: list[str] = []
    is_over: list[bool] = []
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        is_over.append(True)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("lines", TYPES)
def test_ten_reloads_of_the_unit_of_the_docs_lose_no_request(
    app: App, lines: tuple[str, ...]
) -> None:
    app.write_type(lines)
    with app.booted() as systemd:
        systemd.run("systemctl", "start", "app")
        with load(app) as answers:
            await_that(lambda: "1" in answers)
            for version in map(str, range(2, 12)):
                app.install(version)
                systemd.run("systemctl", "reload", "app")
                await_that(partial(answers.__contains__, version))
        assert set(answers) == set(map(str, range(1, 12)))
        assert systemd.show("app", "ActiveState") == "active"
        systemd.run("systemctl", "stop", "app")
        assert systemd.show("app", "Result") == "success"


@pytest.mark.parametrize("lines", TYPES)
def test_a_version_that_fails_fails_the_reload_and_leaves_the_old_one(
    app: App, lines: tuple[str, ...]
) -> None:
    app.write_type(lines)
    with app.booted() as systemd:
        systemd.run("systemctl", "start", "app")
        app.install("broken")
        assert systemd.call("systemctl", "reload", "app").returncode != 0
        assert app.ask() == "1"
        assert systemd.show("app", "ActiveState") == "active"
        app.install("2")
        systemd.run("systemctl", "reload", "app")
        await_that(lambda: app.ask() == "2")


def test_what_crashes_is_started_again_by_systemd(app: App) -> None:
    with app.booted() as systemd:
        systemd.run("systemctl", "start", "app")
        systemd.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "app")
        await_that(lambda: systemd.show("app", "NRestarts") == "1")
        await_that(lambda: systemd.show("app", "ActiveState") == "active")
        assert app.ask() == "1"


def test_the_watchdog_hears_of_the_server_and_has_one_that_hangs_started_again(app: App) -> None:
    app.write("Type=notify", "Type=notify\nWatchdogSec=5")
    with app.booted() as systemd:
        systemd.run("systemctl", "start", "app")
        # For longer than the watchdog waits.
        await_that(lambda: int("0" + systemd.show("app", "StatusText").removeprefix("fed ")) > 6)
        app.install("hangs")
        systemd.run("systemctl", "reload", "app")
        assert systemd.show("app", "NRestarts") == "0"
        app.install("2")
        await_that(lambda: systemd.show("app", "NRestarts") == "1")
        await_that(lambda: systemd.show("app", "ActiveState") == "active")
        assert app.ask() == "2"


def test_sockets_that_systemd_opened_are_used_and_outlive_a_restart(app: App) -> None:
    unit = f"[Socket]\nListenStream=127.0.0.1:{app.port}\nFileDescriptorName=http\n"
    app.units["app.socket"] = unit
    with app.booted() as systemd:
        systemd.run("systemctl", "start", "app.socket")
        with load(app) as answers:
            # The first client has it started.
            await_that(lambda: "1" in answers)
            app.install("2")
            systemd.run("systemctl", "restart", "app")
            await_that(lambda: "2" in answers)
        assert set(answers) == {"1", "2"}


def test_with_the_store_no_connection_is_refused_by_a_crash_or_a_restart(app: App) -> None:
    app.write("conduit run ", "conduit run --fdstore ")
    app.write("Type=notify", "Type=notify\nFileDescriptorStoreMax=16")
    with app.booted() as systemd:
        systemd.run("systemctl", "start", "app")
        with load(app) as answers:
            await_that(lambda: "1" in answers)
            app.install("2")
            systemd.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "app")
            await_that(lambda: "2" in answers)
            app.install("3")
            systemd.run("systemctl", "restart", "app")
            await_that(lambda: "3" in answers)
        # What the server had accepted when it was killed is lost with it.
        assert not [answer for answer in answers if "refused" in answer]
        await_that(lambda: systemd.show("app", "NFileDescriptorStore") == "1")


@pytest.mark.skipif(
    not is_capable(SYS_ADMIN) or shutil.which("unshare") is None,
    reason="only an administrator (CAP_SYS_ADMIN) has namespaces",
)
def test_process_1_of_a_container_is_reloaded_by_a_signal(tmp_path: Path, app: App) -> None:
    isolate = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"]
    page = (DOCS / "howto" / "in-a-container.md").read_text().replace("\\\n", "")
    here = {
        "conduit": [sys.executable, "-P", "-m", "conduit"],
        "/run/control": [str(tmp_path / "c")],
        "http=0.0.0.0:8000": [f"http=127.0.0.1:{app.port}"],
        "/srv/app/serve": [str(app.directory / "serve")],
    }
    written = json.loads(page.partition("ENTRYPOINT ")[2].partition("]")[0] + "]")
    words = [each for word in written for each in here.pop(word, [word])]
    assert not here
    process = subprocess.Popen([*isolate, *words])
    try:
        await_that(lambda: bool(children(process.pid)))
        [one] = children(process.pid)
        await_that(lambda: is_answered(app))
        app.install("2")
        with load(app) as answers:
            os.kill(one, signal.SIGHUP)
            await_that(lambda: "2" in answers)
        assert set(answers) <= {"1", "2"}
        os.kill(one, signal.SIGTERM)
        assert process.wait(GENEROUS) == 0
    finally:
        process.kill()
        process.wait()


def test_the_lines_by_hand_do_what_they_say(app: App) -> None:
    page = (DOCS / "howto" / "by-hand.md").read_text()
    lines = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0].splitlines()
    run, reload, status, stop = (
        line.partition("#")[0]
        .replace("127.0.0.1:8000", f"127.0.0.1:{app.port}")
        .replace("conduit ", f'"{sys.executable}" -P -m conduit ', 1)
        for line in lines
    )
    home = {**os.environ, "HOME": str(app.directory)}

    def type_in(line: str) -> str:
        return subprocess.run(
            line,
            cwd=app.directory,
            env=home,
            shell=True,
            text=True,
            stdout=subprocess.PIPE,
            timeout=GENEROUS,
            check=True,
        ).stdout

    # In the background of the shell: its end is awaited here.
    running = subprocess.Popen(
        run.rstrip(" &"), cwd=app.directory, env=home, shell=True, start_new_session=True
    )
    try:
        await_that(lambda: is_answered(app))
        app.install("2")
        type_in(reload)
        await_that(lambda: app.ask() == "2")
        assert "./serve" in type_in(status)
        type_in(stop)
        assert running.wait(GENEROUS) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def is_answered(app: App) -> bool:
    try:
        return app.ask() == "1"
    except ConnectionRefusedError:
        return False
