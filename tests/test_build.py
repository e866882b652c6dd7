"""The modules are compiled as the environment says; see setup.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import PORTABLE

from conduit import _conduit, _handle, _syscalls

MODULES = [_syscalls, _handle, _conduit]
SANITIZED = os.environ.get("CONDUIT_SANITIZE")


def symbols(module: object) -> bytes:
    return Path(str(getattr(module, "__file__", None))).read_bytes()


@pytest.mark.skipif(not PORTABLE, reason="CONDUIT_PORTABLE is not set")
def test_the_portable_build_calls_nothing_that_only_linux_has() -> None:
    assert b"eventfd" not in symbols(_handle)
    assert b"accept4" not in symbols(_syscalls)


@pytest.mark.skipif(not SANITIZED, reason="CONDUIT_SANITIZE is not set")
@pytest.mark.parametrize("module", MODULES)
def test_the_sanitizers_are_compiled_in(module: object) -> None:
    assert b"__asan_report_load" in symbols(module)
    assert b"__ubsan_handle" in symbols(module)
