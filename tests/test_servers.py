"""Real servers under `conduit run`, restarted while a real load generator sends requests."""

from __future__ import annotations

import importlib.util
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

pytestmark = pytest.mark.skipif(bool(restart.missing()), reason=restart.missing() or "-")


@pytest.mark.parametrize("name", list(restart.SERVERS))
def test_no_request_fails_while_a_server_is_replaced(name: str) -> None:
    server = restart.SERVERS[name]
    figures = restart.measure(server, "takeover", restarts=RESTARTS, pause=0.3)
    print(figures)
    assert figures.failed == 0
    assert figures.served > 100
    assert figures.versions > RESTARTS
