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
from pathlib import Path

import pytest
from commands import Bench, await_that, children
from helpers import GENEROUS
from sides import SYS_ADMIN, is_capable

DOCS = Path(__file__).parents[1] / "docs"
SYSTEMD = "/lib/systemd/systemd"


def control_groups() -> Path | None:
    """Where groups of processes can be made, if they can."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(path, os.W_OK):
            return Path(path)
    return None


pytestmark = pytest.mark.slow

needs_namespaces = pytest.mark.skipif(
    not is_capable(SYS_ADMIN) or shutil.which("unshare") is None,
    reason="only an administrator (CAP_SYS_ADMIN) has namespaces",
)


def version() -> int:
    """Return that of systemd; 0 if there is none."""
    if not os.path.exists(SYSTEMD):
        return 0
    told = subprocess.run([SYSTEMD, "--version"], capture_output=True, text=True, check=True).stdout
    return int(told.split()[1])


# Later ones do not start with so little; tests/interop meets them.
needs_systemd = pytest.mark.skipif(
    not 0 < version() < 258 or control_groups() is None,
    reason="there is no systemd before 258, or no cgroup2 to give it",
)

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
while came not in (ready := select.select([server, came], [], [])[0]):
    try:
        server.accept()[0].sendall(version.encode())
    except BlockingIOError:
        pass
"""

BOOT = """\
mount --make-rprivate /
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system /run/lock
umount /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec {systemd} --system --unit=default.target --log-target=console --show-status=no
"""


class Systemd:
    """A systemd that is process 1 of namespaces of its own, with the units of a directory."""

    def __init__(self, units: Path, stack: contextlib.ExitStack) -> None:
        for target in ("default", "basic", "sysinit", "shutdown"):
            (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        groups = control_groups()
        assert groups is not None
        group = groups / f"conduit-test-{os.getpid()}"
        group.mkdir()
        stack.callback(self._remove, group)
        self.log = stack.enter_context((units / "log").open("w+"))
        isolate = "unshare --fork --kill-child --pid --mount --uts --ipc --cgroup --mount-proc"
        self.process = subprocess.Popen(
            [
                *("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec {isolate} sh -c "$0"'),
                BOOT.format(systemd=SYSTEMD),
            ],
            env={**os.environ, "SYSTEMD_UNIT_PATH": str(units), "container": "other"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        stack.callback(self._end)
        await_that(lambda: bool(children(self.process.pid)))
        [self.pid] = children(self.process.pid)
        await_that(lambda: self.call("is-system-running").stdout.strip() == "running")

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run systemctl."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C"]
        return subprocess.run(
            [*enter, "systemctl", *words],
            capture_output=True,
            text=True,
            timeout=GENEROUS,
            check=False,
        )

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    @staticmethod
    def _remove(group: Path) -> None:
        await_that(lambda: "populated 0" in (group / "cgroup.events").read_text())
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)


class Service:
    """The unit of the docs, with a server that tells its version."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (directory / "serve").write_text(f"#!{sys.executable}\n{SERVE}")
        (directory / "serve").chmod(0o755)
        self.install("1")
        page = (DOCS / "howto" / "under-systemd.md").read_text()
        unit = re.findall(r"^```ini\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
        for written, here in (
            ("/opt/app/bin/conduit", f"{sys.executable} -P -m conduit"),
            ("/opt/app/bin/serve", str(directory / "serve")),
            ("0.0.0.0:8000", f"127.0.0.1:{self.port}"),
        ):
            assert written in unit
            unit = unit.replace(written, here)
        path = os.environ.get("PYTHONPATH", "")
        (directory / "app.service").write_text(f"{unit}Environment=PYTHONPATH={path}\n")
        self.stack = stack

    def boot(self) -> Systemd:
        return Systemd(self.directory, self.stack)

    def install(self, version: str) -> None:
        (self.directory / "version").write_text(version)

    def ask(self) -> str:
        """The version that answers; OSError if none does."""
        with socket.create_connection(("127.0.0.1", self.port), GENEROUS) as client:
            client.settimeout(GENEROUS)
            return client.recv(100).decode()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with contextlib.ExitStack() as stack:
        yield Service(tmp_path, stack)


@contextlib.contextmanager
def load(service: Service) -> Iterator[list[str]]:
    """Ask all the time; what answered, or how it failed."""

    def run() -> None:
        while not is_over:
            try:
                answers.append(service.ask() or "nothing")
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


@needs_namespaces
@needs_systemd
def test_ten_reloads_of_the_unit_of_the_docs_lose_no_request(service: Service) -> None:
    systemd = service.boot()
    assert systemd.call("start", "app").returncode == 0
    with load(service) as answers:
        for version in map(str, range(2, 12)):
            service.install(version)
            assert systemd.call("reload", "app").returncode == 0
    assert set(answers) == set(map(str, range(1, 12)))
    assert systemd.call("is-active", "app").stdout == "active\n"
    assert systemd.call("stop", "app").returncode == 0
    assert systemd.call("show", "-p", "Result", "app").stdout == "Result=success\n"


@needs_namespaces
@needs_systemd
def test_a_version_that_fails_fails_the_reload_and_leaves_the_old_one(service: Service) -> None:
    systemd = service.boot()
    systemd.call("start", "app")
    service.install("broken")
    assert systemd.call("reload", "app").returncode != 0
    assert service.ask() == "1"
    assert systemd.call("is-active", "app").stdout == "active\n"
    service.install("2")
    assert systemd.call("reload", "app").returncode == 0
    await_that(lambda: service.ask() == "2")


@needs_namespaces
@needs_systemd
def test_what_crashes_is_started_again_by_systemd(service: Service) -> None:
    systemd = service.boot()
    systemd.call("start", "app")
    assert systemd.call("kill", "--signal=KILL", "--kill-who=main", "app").returncode == 0
    await_that(lambda: systemd.call("show", "-p", "NRestarts", "app").stdout == "NRestarts=1\n")
    await_that(lambda: systemd.call("is-active", "app").stdout == "active\n")
    assert service.ask() == "1"


@needs_namespaces
@needs_systemd
def test_sockets_that_systemd_opened_are_used_and_outlive_a_restart(service: Service) -> None:
    unit = f"[Socket]\nListenStream=127.0.0.1:{service.port}\nFileDescriptorName=http\n"
    (service.directory / "app.socket").write_text(unit)
    systemd = service.boot()
    assert systemd.call("start", "app.socket").returncode == 0
    with load(service) as answers:
        # The first client has it started.
        await_that(lambda: "1" in answers)
        service.install("2")
        assert systemd.call("restart", "app").returncode == 0
        await_that(lambda: "2" in answers)
    assert set(answers) == {"1", "2"}


@needs_namespaces
@needs_systemd
def test_with_the_store_no_connection_is_refused_by_a_crash_or_a_restart(service: Service) -> None:
    path = service.directory / "app.service"
    unit = path.read_text().replace("conduit run ", "conduit run --fdstore ")
    path.write_text(f"{unit}FileDescriptorStoreMax=16\n")
    systemd = service.boot()
    assert systemd.call("start", "app").returncode == 0
    with load(service) as answers:
        await_that(lambda: "1" in answers)
        service.install("2")
        systemd.call("kill", "--signal=KILL", "--kill-who=main", "app")
        await_that(lambda: "2" in answers)
        service.install("3")
        assert systemd.call("restart", "app").returncode == 0
        await_that(lambda: "3" in answers)
    # What the server had accepted when it was killed is lost with it.
    assert not [answer for answer in answers if "refused" in answer]
    assert systemd.call("show", "-p", "NFileDescriptorStore", "app").stdout.endswith("=1\n")


@needs_namespaces
def test_process_1_of_a_container_is_reloaded_by_a_signal(bench: Bench, service: Service) -> None:
    isolate = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc"]
    page = (DOCS / "howto" / "in-a-container.md").read_text().replace("\\\n", "")
    here = {
        "conduit": [sys.executable, "-P", "-m", "conduit"],
        "/run/control": [str(bench.directory / "c")],
        "http=0.0.0.0:8000": [f"http=127.0.0.1:{service.port}"],
        "/srv/app/serve": [str(service.directory / "serve")],
    }
    written = json.loads(page.partition("ENTRYPOINT ")[2].partition("]")[0] + "]")
    words = [each for word in written for each in here.pop(word, [word])]
    assert not here
    process = subprocess.Popen([*isolate, *words])
    try:
        await_that(lambda: bool(children(process.pid)))
        [one] = children(process.pid)
        await_that(lambda: is_answered(service))
        service.install("2")
        with load(service) as answers:
            os.kill(one, signal.SIGHUP)
            await_that(lambda: "2" in answers)
        assert set(answers) <= {"1", "2"}
        os.kill(one, signal.SIGTERM)
        assert process.wait(GENEROUS) == 0
    finally:
        process.kill()
        process.wait()


def test_the_lines_by_hand_do_what_they_say(service: Service) -> None:
    page = (DOCS / "howto" / "by-hand.md").read_text()
    lines = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0].splitlines()
    run, reload, status, stop = (
        line.partition("#")[0]
        .replace("127.0.0.1:8000", f"127.0.0.1:{service.port}")
        .replace("conduit ", f"{sys.executable} -P -m conduit ", 1)
        for line in lines
    )
    home = {**os.environ, "HOME": str(service.directory)}

    def type_in(line: str) -> str:
        return subprocess.run(
            line,
            cwd=service.directory,
            env=home,
            shell=True,
            text=True,
            stdout=subprocess.PIPE,
            timeout=GENEROUS,
            check=True,
        ).stdout

    # In the background of the shell: its end is awaited here.
    running = subprocess.Popen(
        run.rstrip(" &"), cwd=service.directory, env=home, shell=True, start_new_session=True
    )
    try:
        await_that(lambda: is_answered(service))
        service.install("2")
        type_in(reload)
        await_that(lambda: service.ask() == "2")
        assert "./serve" in type_in(status)
        type_in(stop)
        assert running.wait(GENEROUS) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def is_answered(service: Service) -> bool:
    try:
        return service.ask() == "1"
    except ConnectionRefusedError:
        return False
