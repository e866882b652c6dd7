"""What other tests stand on: a helper's failure is seen, and what checks print is summed up."""

from __future__ import annotations

import os

import pytest
from checks import Report
from sides import beside
from tsan import is_ours, reports

import conduit


def test_a_child_that_fails_ends_the_wait_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("the helper cannot work here")

    ours, theirs = conduit.Conduit.pair()
    with ours, theirs, pytest.raises(AssertionError, match="ended with 1"), beside(fail):
        ours.receive_fd()
    assert "the helper cannot work here" in capfd.readouterr().err


def test_a_child_that_returns_leaves_the_block_alone() -> None:
    reader, writer = os.pipe()

    def tell() -> None:
        os.write(writer, b"x")

    with beside(tell):
        os.close(writer)
        assert os.read(reader, 2) == b"x"
        assert os.read(reader, 2) == b""
    os.close(reader)


def test_the_summary_adds_up_runs_and_says_what_was_skipped() -> None:
    report = Report()
    for line in [
        "py312: skipped because could not find python interpreter with spec(s): py312",
        "not run: i386: no root could be made",
        "============================= test session starts ==============================",
        "SKIPPED [3] tests/interop/test_netcat.py:30: not installed: nc",
        "================ 10 passed, 3 skipped in 239.40s (0:03:59) =================",
        "===== test session starts =====",
        "=== \x1b[31m1 failed\x1b[0m, 4 passed, 3 skipped, 2 errors in 0.50s ===",
        "tests/test_aio.py ...===== test session starts =====",  # beside another run
        "...=== 5 passed, 1 skipped in 1.00s ===",
        "===== test session starts =====",
        "2 passed in 0.10s",  # a quiet run, which does not say that it starts
        "conduit/errors.py         92      0     34      0   100%",
        "conduit/_conduit.pyx     588      2      0      0    99%   97-98",
        "  py: OK (295.83=setup[53.06]+cmd[242.77] seconds)",
        "  lint: FAIL code 1 (48.24 seconds)",
    ]:
        report.read(line)
    assert report.lines() == [
        "skipped 3: not installed: nc",
        "not run: py312: could not find python interpreter with spec(s): py312",
        "not run: i386: no root could be made",
        "not reached: conduit/_conduit.pyx: 97-98",
        "failed: lint",
        "failed: 1 runs of pytest ended without a summary",
        "21 passed, 4 failed, 7 skipped",
    ]


OURS = "__pyx_f_number conduit/_handle.c:9 (_handle.cpython-313t-x86_64-linux-gnu.so+0x1)"
LIST = "list_item Objects/listobject.c:689 (python3.13t+0x16936c)"
ALLOCATE = "PyType_GenericAlloc Objects/typeobject.c:2081 (python3.13t+0x1f8363)"
MEMSET = "memset sanitizer_common_interceptors.inc:799 (libtsan.so.2+0x5cbc4)"
INTERN = "intern_common Objects/unicodeobject.c:15308 (python3.13t+0x220f21)"
LOOP = "_PyEval_EvalFrameDefault Python/generated_cases.c.h:813 (python3.13t+0x2e9c36)"


@pytest.mark.parametrize(
    ("one", "other", "ours"),
    [
        ([OURS, LOOP], [LIST, LOOP], True),
        ([LIST, LOOP], [MEMSET, OURS, LOOP], True),
        ([LIST, OURS, LOOP], [ALLOCATE, OURS, LOOP], True),
        # Memory that is used again: the interpreter's affair, whatever it is for.
        ([MEMSET, ALLOCATE, OURS, LOOP], [LIST, LOOP], False),
        ([LIST, LOOP, OURS], [LIST, LOOP, OURS], False),
        # CPython's own.
        ([LIST, INTERN, OURS, LOOP], [INTERN, OURS, LOOP], False),
        ([LIST, OURS, LOOP], [INTERN, OURS, LOOP], True),
    ],
)
def test_a_race_is_ours_if_our_modules_have_part_in_it(
    one: list[str], other: list[str], ours: bool
) -> None:
    def stack(head: str, frames: list[str]) -> list[str]:
        return [head, *(f"    #{place} {frame}" for place, frame in enumerate(frames)), ""]

    log = [
        "==================",
        "WARNING: ThreadSanitizer: data race (pid=1)",
        *stack("  Write of size 8 at 0x7f3b200104b0 by thread T28:", one),
        *stack("  Previous atomic read of size 8 at 0x7f3b200104b0 by main thread:", other),
        *stack("  Thread T28 (tid=5812, running) created by main thread at:", [OURS]),
        "SUMMARY: ThreadSanitizer: data race Objects/listobject.c:689 in list_item",
        "==================",
    ]
    [report] = reports("\n".join(log))
    assert is_ours(report) is ours
