"""Real servers under `conduit run`, restarted while a real load generator sends requests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "restart.py"
RESTARTS = 3


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("restart", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["restart"] = module
    spec.loader.exec_module(module)
    return module


restart = load_script()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(restart.missing()), reason=restart.missing() or "-"),
]


@pytest.mark.parametrize("way", ["reload", "takeover"])
@pytest.mark.parametrize("name", list(restart.SERVERS))
def test_no_request_fails_while_a_server_is_replaced(name: str, way: str) -> None:
    server = restart.SERVERS[name]
    figures = restart.measure(server, way, restarts=RESTARTS, pause=0.3)
    print(figures)
    assert figures.failed == 0
    assert figures.served > 100
    assert figures.versions > RESTARTS


def test_gunicorn_is_not_ready_with_an_application_that_cannot_be_imported(tmp_path: Path) -> None:
    words = [sys.executable, "-P", "-m", "conduit", "run", "--control", str(tmp_path / "control")]
    words += [f"--listen={tmp_path}/server", "--", sys.executable, "-m", "gunicorn"]
    words += ["--config", "gunicorn.conf.py", "no_such_module:app"]
    ended = subprocess.run(
        words, cwd=restart.EXAMPLES, capture_output=True, text=True, timeout=20, check=False
    )
    assert ended.returncode != 0
    assert "before it was ready" in ended.stderr.splitlines()[-1]
