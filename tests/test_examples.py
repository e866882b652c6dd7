"""The examples and the README do what they say."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import GENEROUS, run_python

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
README = (HERE.parent / "README.md").read_text()
REQUESTS = 3000


def readme_examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", readme_examples(), ids=lambda code: str(len(code)))
def test_an_example_of_the_readme_runs(code: str) -> None:
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_has_its_examples() -> None:
    assert len(readme_examples()) == 6


@pytest.mark.parametrize(
    ("name", "lines"), [("into_asyncio", 3), ("into_trio", 1), ("into_anyio", 1)]
)
def test_a_received_connection_goes_straight_into_the_loop(name: str, lines: int) -> None:
    done = run_python((EXAMPLES / f"{name}.py").read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("b'hello\\n'") == lines


def test_the_broker_gives_what_is_allowed_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", EXAMPLES / "broker.py"],
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    read, bound, not_opened, not_bound = done.stdout.splitlines()
    assert read.endswith("for those who are given it")
    assert int(bound.rpartition(" ")[2])
    assert "shadow is not in" in not_opened
    assert "port 22 is not allowed" in not_bound


async def ask(port: int, request: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d\n" % request)
    pid, _, answer = (await reader.readline()).partition(b" ")
    writer.close()
    await writer.wait_closed()
    assert int(answer) == request
    return pid.decode()


async def ask_all(port: int) -> set[str]:
    some = asyncio.Semaphore(50)

    async def one(request: int) -> str:
        async with some:
            return await ask(port, request)

    return set(await asyncio.gather(*map(one, range(REQUESTS))))


@pytest.mark.slow
def test_the_acceptor_loses_none_of_thousands_of_requests() -> None:
    acceptor = subprocess.Popen(
        [sys.executable, "-P", "-W", "error", EXAMPLES / "acceptor.py", "--workers=3"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with acceptor:
        try:
            assert acceptor.stdout is not None
            port = int(acceptor.stdout.readline().split()[-1])
            assert len(asyncio.run(ask_all(port))) == 3
            acceptor.send_signal(signal.SIGINT)
            assert acceptor.wait(GENEROUS) == 0
        finally:
            acceptor.kill()
