"""OpenSSH with ``ProxyUseFdpass``: its connection is made by a program with a conduit."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import reserved_port
from peers import LIMIT, accepted, find, installed, needs, needs_name, python, running, served

pytestmark = needs_name

PROXY = shlex.join(python("fdpass_proxy.py")).replace("%", "%%") + " %h %p"


def ssh(*args: str) -> list[str]:
    """The command for an ssh that takes nothing from the user's configuration."""
    options = {
        "BatchMode": "yes",
        "GlobalKnownHostsFile": "none",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ProxyCommand": PROXY,
        "ProxyUseFdpass": "yes",
        "StrictHostKeyChecking": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return [installed("ssh"), "-T", "-F", "none", *words, *args]


ENVIRONMENT = {**os.environ, "SHELL": "/bin/sh"}
"""ssh runs the proxy command in this shell."""


@needs("ssh")
def test_ssh_speaks_on_the_connection_that_a_conduit_handed_it() -> None:
    with served() as listener:
        host, port = listener.getsockname()
        with running(*ssh("-p", str(port), host), env=ENVIRONMENT) as client:
            with accepted(listener) as conn, conn.makefile("rb") as file:
                assert file.readline().startswith(b"SSH-2.0-OpenSSH")
                conn.sendall(b"SSH-1.0-none\r\n")
            _, err = client.communicate(timeout=LIMIT)
    assert client.returncode == 255
    assert "Protocol major versions differ: 2 vs. 1" in err


@needs("ssh")
def test_ssh_says_so_when_its_proxy_has_no_connection_to_hand_over() -> None:
    with reserved_port() as port:
        with running(*ssh("-p", str(port), "127.0.0.1"), env=ENVIRONMENT) as client:
            _, err = client.communicate(timeout=LIMIT)
    assert client.returncode == 255
    assert "ConnectionRefusedError" in err
    assert "proxy dialer did not pass back a connection" in err


class Server:
    """An sshd that lets the user of this test in, with a key made for it."""

    def __init__(self, directory: Path) -> None:
        self._config = directory / "sshd_config"
        self._host_key = directory / "host_key"
        self.user_key = directory / "user_key"
        self.known_hosts = directory / "known_hosts"
        self._authorized = directory / "authorized_keys"
        self.port = 0
        for key in (self._host_key, self.user_key):
            command = [installed("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=LIMIT)
        self._authorized.write_text(public(self.user_key))
        self.known_hosts.write_text(f"throw-away {public(self._host_key)}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run it on a port of its own."""
        if not os.getuid():
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        command = [installed("sshd"), "-D", "-e", "-f", str(self._config)]
        with reserved_port() as self.port:
            self._configure()
            with running(*command) as process:
                assert process.stderr is not None
                said = ""
                while "Server listening on" not in said:
                    line = process.stderr.readline()
                    assert line, said
                    said += line
                try:
                    yield
                finally:
                    process.terminate()
                    # Its end is that of all its children too: they hold the pipe.
                    process.communicate(timeout=LIMIT)

    def _configure(self) -> None:
        self._config.write_text(
            f"""\
ListenAddress 127.0.0.1:{self.port}
HostKey "{self._host_key}"
PidFile none
AuthorizedKeysFile "{self._authorized}"
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""
        )


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    with server.running():
        yield server


def user() -> pwd.struct_passwd:
    return pwd.getpwuid(os.getuid())


@pytest.mark.skipif(
    any(find(program) is None for program in ("ssh", "sshd", "ssh-keygen")),
    reason="not installed: ssh, sshd or ssh-keygen",
)
def test_a_whole_login_runs_over_the_connection_that_a_conduit_handed_over(server: Server) -> None:
    if os.path.basename(user().pw_shell) in ("nologin", "false"):
        pytest.skip(f"{user().pw_name} is not to log in")
    if not os.path.isdir(user().pw_dir):
        pytest.skip(f"{user().pw_name} has no home directory, which the shell says")
    command = ssh(
        *("-p", str(server.port), "-i", str(server.user_key), "-l", user().pw_name),
        *("-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "HostKeyAlias=throw-away"),
        *("127.0.0.1", 'tr a-z A-Z; echo "from ${SSH_CLIENT%% *}" >&2; exit 7'),
    )
    with running(*command, stdin=subprocess.PIPE, env=ENVIRONMENT) as client:
        out, err = client.communicate("through the proxy\n" * 10_000, timeout=LIMIT)
    assert client.returncode == 7, err
    assert out == "THROUGH THE PROXY\n" * 10_000
    assert err == "from 127.0.0.1\n"
