"""Real servers under `conduit run`, restarted while clients send requests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import restart
import servers
from helpers import GENEROUS

RESTARTS = 2

CLEAN = [server for server in servers.SERVERS if server.is_clean]
NAMED = {server.name: server for server in CLEAN}

pytestmark = pytest.mark.slow


def assert_no_request_fails(server: servers.Server, way: str) -> None:
    # Without a pause between requests some are always under way.
    result = restart.measure(server, way, restarts=RESTARTS, pause=0.1, thinking=0.0)
    if result.trouble == "not installed":
        pytest.skip("the server is not installed")
    assert result.trouble == ""
    assert [count.failed for count in result.counts] == [0, 0], result
    # Of the kept connections, all may have gone to one of the new processes.
    assert result.new is not None
    assert result.new.processes > 1


@pytest.mark.parametrize("server", CLEAN, ids=lambda server: server.name)
def test_no_request_fails_while_a_server_is_reloaded(server: servers.Server) -> None:
    assert_no_request_fails(server, restart.RELOAD)


def test_no_request_fails_while_the_line_is_run_again() -> None:
    assert_no_request_fails(NAMED["uvicorn, serve_uvicorn.py"], restart.TAKEOVER)


def test_gunicorn_is_not_ready_with_an_application_that_cannot_be_imported(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    words = [sys.executable, "-P", "-m", "conduit", "run", "--control", str(tmp_path / "control")]
    words += [f"--listen={tmp_path}/server", "--", sys.executable, "-m", "gunicorn"]
    words += ["--config", "gunicorn.conf.py", "no_such_module:app"]
    ended = subprocess.run(
        words,
        cwd=restart.PROGRAMS.parent,
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert ended.returncode != 0
    assert "before it was ready" in ended.stderr.splitlines()[-1]
