"""What is still open when the interpreter exits: a ResourceWarning if asked for, or nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import GENEROUS

pytestmark = pytest.mark.slow

MADE = {
    "Conduit": "kept, _ = Conduit.pair(); _.close()",
    "borrowing Conduit": "kept = Conduit(0)",
    "Descriptor": "kept = Descriptor(os.dup(0))",
    "Message": """
    one, other = Conduit.pair()
    with one, other:
        one.transfer(0, keep=True)
        kept = other.receive()
""",
    "Listener": "kept = Listener(path)",
    "AsyncConduit": "kept, _ = AsyncConduit.pair(); _._conduit.close()",
    "AsyncListener": "kept = AsyncListener(path)",
    "Takeover": "kept = Takeover(path).__enter__()",
}
"""How to make what is left open, by its class."""

WARNS = set(MADE) - {"borrowing Conduit", "Takeover"}
"""Those that own a descriptor which is closed with the object."""

CODE = """
import atexit, os, sys, warnings
import conduit
from conduit import Conduit, Descriptor, ErrType, Listener
from conduit.aio import AsyncConduit, AsyncListener
from conduit.takeover import Takeover

def made(path):
    {}
    return kept

names = [f"{{sys.argv[1]}}/{{number}}" for number in range(7)]
# Each dies at another moment of the exit.
atexit.register(repr, made(names[0]))
in_a_global_variable = made(names[1])
conduit._conduit.kept = made(names[2])
warnings.kept = made(names[3])
sys.kept = made(names[4])
ErrType.kept = made(names[5])
cycle = [made(names[6])]
cycle.append(cycle)
"""


def errors_of(what: str, directory: object, *options: str) -> list[str]:
    """The lines a program prints that ends with such objects open."""
    done = subprocess.run(
        [sys.executable, "-P", *options, "-c", CODE.format(MADE[what].strip()), str(directory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GENEROUS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr.splitlines()


@pytest.mark.parametrize("what", MADE)
def test_an_object_left_open_at_exit_prints_nothing(what: str, tmp_path: object) -> None:
    assert errors_of(what, tmp_path) == []


@pytest.mark.parametrize("what", MADE)
def test_an_object_left_open_at_exit_prints_only_a_resource_warning_in_dev_mode(
    what: str, tmp_path: object
) -> None:
    lines = errors_of(what, tmp_path, "-X", "dev")
    # Python's own advice, given while it still can.
    advice = "ResourceWarning: Enable tracemalloc to get the object allocation traceback"
    said = [line for line in lines if line != advice]
    assert all("ResourceWarning: unclosed <conduit." in line for line in said), said
    # Some live longer than the means to warn of them.
    assert bool(said) == (what in WARNS)
    assert len(said) <= 7
