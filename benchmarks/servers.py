"""How each server is run and restarted: under `conduit run`, by itself, and by its rivals.

Its words are what one types in the directory ``examples/servers``; PORT stands for the port,
PYTHON for the Python that has the servers, and DIRECTORY for one where files can be made.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restart import Site


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        name: what it is called.
        package: the one on PyPI that has to be installed; empty if it is a program of the system.
        command: its words under `conduit run`.
        alone: its words where it opens its socket itself; empty for `command` with the port.
        options: of `conduit run`.
        note: why its own shutdown loses requests, or what else is to be known.
        is_clean: whether it answers all that it has accepted, when it is told to stop.
        needs: a program of the system.
        prepare: what is run beforehand.
    """

    name: str
    package: str
    command: str
    alone: str = ""
    options: str = ""
    note: str = ""
    is_clean: bool = True
    needs: str = ""
    prepare: str = ""

    @property
    def stop_signal(self) -> int:
        """What tells it to finish."""
        words = self.options.split()
        named = words[words.index("--stop-signal") + 1] if "--stop-signal" in words else "TERM"
        return signal.Signals[f"SIG{named}"]

    def version(self) -> str:
        """Its version; empty if it is not installed."""
        return version_of(self.package, self.needs)

    def line(self) -> str:
        """What is typed to run it under `conduit run`."""
        listen = "--control ./control --listen 127.0.0.1:8000"
        command = self.command.replace("PORT", "8000").replace("DIRECTORY", ".")
        options = f" {self.options}" if self.options else ""
        return f"conduit run {listen}{options} -- {command}"


@dataclass(frozen=True)
class Rival:
    """Another way to restart a server.

    Attributes:
        name: what it is called.
        server: which server is restarted.
        command: the words that start it.
        restart: begins a restart.
        package: on PyPI, without which there is no such way.
        needs: a program of the system.
    """

    name: str
    server: str
    command: str
    restart: Callable[[Site], None]
    package: str = ""
    needs: str = ""

    def version(self) -> str:
        """Its version; empty if it is not installed."""
        return version_of(self.package, self.needs)


_ASK_VERSION = {
    "nginx": "nginx -v",
    "haproxy": "haproxy -v",
    "node": "node --version",
    "go": "go version",
    "start_server": "start_server --version",
}


def version_of(package: str, needs: str) -> str:
    """Return the version of a package or program; empty if it is not installed."""
    if package:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""
    if shutil.which(needs) is None:
        return ""
    told = subprocess.run(
        shlex.split(_ASK_VERSION[needs]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
    words = told.replace("/", " ").replace("go1", "1").replace("v20", "20").split()
    return next((word for word in words if word[0].isdigit() and "." in word), "?")


_GUNICORN = "gunicorn --preload --workers 2 --no-control-socket --log-level warning app:wsgi"
_UVICORN = "uvicorn --log-level warning --no-access-log"
_HYPERCORN = "hypercorn --log-level warning app:asgi"
_UWSGI = "uwsgi --master --processes 2 --disable-logging --log-5xx --module app:wsgi"
_UWSGI_STOP = "--hook-master-start 'unix_signal:15 gracefully_kill_them_all'"
_TWIST = "env PYTHONPATH=. twist --log-level warn web --wsgi app.wsgi --listen"
_DAPHNE = "daphne --verbosity 0 app:asgi"

SERVERS = [
    Server("gunicorn", "gunicorn", _GUNICORN, f"{_GUNICORN} --bind 127.0.0.1:PORT"),
    Server(
        "gunicorn, threads",
        "gunicorn",
        f"{_GUNICORN} --threads 4",
        f"{_GUNICORN} --threads 4 --bind 127.0.0.1:PORT",
    ),
    Server(
        "uvicorn",
        "uvicorn",
        f"{_UVICORN} app:asgi --fd {{fd}}",
        f"{_UVICORN} app:asgi --port PORT",
        is_clean=False,
        note="closes, at shutdown, connections that it has accepted and whose request it has not "
        "read; `examples/serve_uvicorn.py` does not",
    ),
    Server(
        "uvicorn, serve_uvicorn.py",
        "uvicorn",
        "python ../serve_uvicorn.py",
        "uvicorn --log-level warning --no-access-log --port PORT --app-dir .. serve_uvicorn:app",
    ),
    Server(
        "hypercorn",
        "hypercorn",
        f"{_HYPERCORN} --bind fd://{{fd}}",
        f"{_HYPERCORN} --bind 127.0.0.1:PORT",
        is_clean=False,
    ),
    Server(
        "granian",
        "granian",
        "python serve_granian.py",
        "granian --interface asgi --log-level warning --host 127.0.0.1 --port PORT app:asgi",
        is_clean=False,
        note="has no option for a socket that is passed, so the program reaches into it; closes, "
        "when it ends, connections that it has accepted",
    ),
    Server(
        "daphne",
        "daphne",
        f"{_DAPHNE} --fd {{fd}}",
        f"{_DAPHNE} --port PORT",
        is_clean=False,
        note="closes, when it ends, all that it has accepted",
    ),
    Server(
        "waitress",
        "waitress",
        "python serve_waitress.py",
        options="--stop-signal INT",
        is_clean=False,
        note="closes, when it ends, all that it has accepted; without the option SIGTERM kills it",
    ),
    Server("aiohttp", "aiohttp", "python serve_aiohttp.py"),
    Server("tornado", "tornado", "python serve_tornado.py"),
    Server(
        "Twisted",
        "twisted",
        f"{_TWIST} systemd:domain=INET:index=0",
        f"{_TWIST} tcp:PORT:interface=127.0.0.1",
        is_clean=False,
        note="closes, when it ends, all that it has accepted; at times it hangs then, and was "
        "killed after 12 seconds where nothing else answered",
    ),
    Server(
        "sanic",
        "sanic",
        "python serve_sanic.py",
        is_clean=False,
        note="closes, at shutdown, connections that it has accepted and whose request it has not "
        "read",
    ),
    Server(
        "Flask's (werkzeug)",
        "flask",
        "env WERKZEUG_RUN_MAIN=true WERKZEUG_SERVER_FD={fd} flask --app flask_app run",
        "flask --app flask_app run --port PORT",
        options="--stop-signal INT",
        is_clean=False,
        note="does not wait for requests that are under way; the variables are those of its own "
        "reloader",
    ),
    Server(
        "nginx",
        "",
        "env 'NGINX={fd};' nginx -p DIRECTORY -c DIRECTORY/nginx.conf",
        "nginx -p DIRECTORY -c DIRECTORY/nginx.conf",
        options="--stop-signal QUIT",
        needs="nginx",
    ),
    Server(
        "HAProxy",
        "",
        "env BIND=fd@{fd} haproxy -W -f haproxy.cfg",
        "env BIND=127.0.0.1:PORT haproxy -W -f haproxy.cfg",
        options="--stop-signal USR1",
        needs="haproxy",
    ),
    Server("Node", "", "node serve.js", needs="node"),
    Server(
        "uwsgi",
        "pyuwsgi",
        f"{_UWSGI} {_UWSGI_STOP} --http-socket fd://{{fd}}",
        f"{_UWSGI} {_UWSGI_STOP} --http-socket 127.0.0.1:PORT",
    ),
    Server(
        "Go",
        "",
        "DIRECTORY/serve",
        needs="go",
        prepare="go build -o DIRECTORY/serve serve.go",
    ),
]


def _signal(name: str) -> Callable[[Site], None]:
    """Restart by a signal to the first process."""
    return lambda site: site.process.send_signal(signal.Signals[name])


def _beside(site: Site) -> None:
    """Start another beside it, and end the old one once the new one answers."""
    old = site.process
    site.start()
    site.await_change(answers=1)
    old.send_signal(site.stop_signal)


def _usr2(site: Site) -> None:
    """As gunicorn's documentation has it: USR2, wait for the new master, then TERM for the old."""
    path, beside = site.directory / "pid", site.directory / "pid.2"
    # The one before takes this name once it notices that it is alone.
    site.await_that(lambda: path.exists() and not beside.exists())
    old = int(path.read_text())
    os.kill(old, signal.SIGUSR2)
    site.await_that(beside.exists)
    site.await_change(answers=1)
    os.kill(old, signal.SIGTERM)


def _circus(site: Site) -> None:
    site.run("circusctl --endpoint ipc://DIRECTORY/endpoint reload --waiting app")


def _chain(site: Site) -> None:
    # Ignored until the chain reload before has ended, which uwsgi checks once a second.
    time.sleep(2.5)
    (site.directory / "fifo").write_text("c")


def _pass(_: Site) -> None:
    """Leave it as it is, to show what the load alone does."""


_GUNICORN_ALONE = f"{_GUNICORN} --bind 127.0.0.1:PORT"

RIVALS = [
    Rival("no restart", "gunicorn", _GUNICORN_ALONE, _pass, "gunicorn"),
    Rival(
        "SO_REUSEPORT, new beside old",
        "gunicorn",
        f"{_GUNICORN_ALONE} --reuse-port",
        _beside,
        "gunicorn",
    ),
    Rival("SO_REUSEPORT, new beside old", "HAProxy", "", _beside, "", "haproxy"),
    Rival("its USR2", "gunicorn", f"{_GUNICORN_ALONE} --pid DIRECTORY/pid", _usr2, "gunicorn"),
    Rival(
        "its HUP",
        "gunicorn",
        _GUNICORN_ALONE.replace("--preload ", ""),
        _signal("SIGHUP"),
        "gunicorn",
    ),
    Rival(
        "its HUP, `--workers 2`",
        "uvicorn",
        f"{_UVICORN} app:asgi --port PORT --workers 2",
        _signal("SIGHUP"),
        "uvicorn",
    ),
    Rival(
        # It executes itself anew, and would not find the Python of a virtual environment.
        "its HUP",
        "uwsgi",
        f"{_UWSGI} --binary-path PYTHON --http-socket 127.0.0.1:PORT",
        _signal("SIGHUP"),
        "pyuwsgi",
    ),
    Rival(
        "its chain reload (`c` to the master FIFO)",
        "uwsgi",
        f"{_UWSGI} --lazy-apps --master-fifo DIRECTORY/fifo --http-socket 127.0.0.1:PORT",
        _chain,
        "pyuwsgi",
    ),
    Rival("circus `reload`", "gunicorn", "circusd DIRECTORY/circus.ini", _circus, "circus"),
    Rival(
        "Server::Starter",
        "gunicorn",
        "start_server --port 127.0.0.1:PORT --interval 1 -- "
        f"""sh -c 'exec {_GUNICORN} --bind "fd://${{SERVER_STARTER_PORT##*=}}"'""",
        _signal("SIGHUP"),
        "",
        "start_server",
    ),
    Rival("its reload (HUP)", "nginx", "", _signal("SIGHUP"), "", "nginx"),
    Rival("its reload (USR2)", "HAProxy", "", _signal("SIGUSR2"), "", "haproxy"),
]
