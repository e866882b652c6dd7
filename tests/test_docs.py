"""The documentation against the repository, and the examples of all pages run."""

from __future__ import annotations

import ast
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import performance
import pytest
from diagrams import CONVERSATION, DIAGRAMS
from helpers import GENEROUS, needs_descriptors, patient, run_python

import conduit
from conduit.errors import ErrType
from conduit.takeover.protocol import Conversation, Side, State

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
TEXT = (DOCS / "hazards.md").read_text()
INDEX = (TESTS / "hazards.md").read_text()

PUBLIC = "conduit.errors"

ROW = r"[A-Z]{1,2}\d{1,2}[a-z]?|FT|NFS"
EXAMPLES = [
    example
    for page in sorted(DOCS.rglob("*.md"))
    for example in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
]


RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


def index() -> dict[str, str]:
    """The last column of each row, by its ID."""
    rows = re.findall(rf"^\| ({ROW}) \|[^|]*\| (.*) \|$", INDEX, re.MULTILINE)
    lines = re.findall(r"^\|", INDEX, re.MULTILINE)
    assert len(rows) == len(lines) - 2, "a line of the index is malformed"
    assert len(dict(rows)) == len(rows), "a row stands twice"
    return dict(rows)


def named() -> set[tuple[str, str]]:
    """Each row with each test that the index names for it."""
    return {
        (row, test)
        for row, column in index().items()
        for test in re.findall(r"`(test_\w+\.py::test_\w+)`", column)
    }


def marked() -> set[tuple[str, str]]:
    """Each row with each test that is marked with it."""
    found = set()
    for file in TESTS.rglob("test_*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.hazard":
                    test = f"{file.relative_to(TESTS)}::{function.name}"
                    found |= {(ast.literal_eval(row), test) for row in mark.args}
    return found


def test_every_test_that_the_index_names_is_marked_with_its_row() -> None:
    assert named() - marked() == set()


def test_every_row_that_a_test_is_marked_with_is_in_the_index() -> None:
    assert {row for row, _ in marked()} - set(index()) == set()


def test_every_row_has_a_test_or_says_why_not() -> None:
    tested = {row for row, _ in named()}
    reasons = ("cannot occur", "not provoked")
    assert [
        row for row, column in index().items() if (row in tested) == column.startswith(reasons)
    ] == []


def test_every_row_is_explained_to_users() -> None:
    lists = re.findall(rf"\(((?:{ROW})(?:,\s+(?:{ROW}))*)\)", TEXT)
    explained = {row for one in lists for row in re.findall(ROW, one)}
    assert explained == set(index())


def test_the_map_of_the_tests_has_every_file_and_no_other() -> None:
    table = (TESTS / "README.md").read_text()
    mapped = re.findall(r"`((?:interop/)?\w+\.py)`", table)
    assert len(set(mapped)) == len(mapped), "a file stands twice"
    files = [*TESTS.glob("*.py"), *TESTS.glob("interop/test_*.py")]
    assert set(mapped) ^ {str(file.relative_to(TESTS)) for file in files} == set()


def test_the_source_layout_has_every_file_of_the_package() -> None:
    layout = (TESTS.parent / "CONTRIBUTING.md").read_text().partition("\ntests/")[0]
    package = TESTS.parent / "conduit"
    files = {file.name for pattern in ("*.py", "*/*.py") for file in package.glob(pattern)}
    files |= {file.name for file in package.glob("*.pyx")}
    assert sorted(name for name in files if name not in layout) == []


def test_every_error_has_a_row_that_says_what_one_owns_afterwards() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    classes = {
        each.__name__ for each in conduit.Error.__subclasses__() if each.__module__ == PUBLIC
    }
    assert classes | set(ErrType.__members__) <= rows


@pytest.mark.parametrize("name", DIAGRAMS)
def test_a_diagram_is_what_its_program_draws(name: str) -> None:
    assert (DOCS / name).read_text() == str(DIAGRAMS[name]())


def test_the_diagram_of_a_takeover_is_a_conversation_that_the_protocol_allows() -> None:
    sides = {side: Conversation(side) for side in Side}
    for name, words in CONVERSATION:
        for kind in words.split(", ") if name else ():
            speaker = Side[name.upper()]
            sides[speaker].say(kind)
            (listener,) = (side for side in Side if side is not speaker)
            assert sides[listener].hear({"kind": kind}) == kind
    assert {side.state for side in sides.values()} == {State.OVER}


def test_the_page_of_the_figures_has_a_place_for_each_part() -> None:
    page = (DOCS / "performance.md").read_text()
    assert re.findall("<!-- figures: (.*) -->", page) == [*performance.PARTS]


@needs_descriptors(4096)
def test_figures_are_written_into_their_places_in_the_page(tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text("<!-- figures: memory -->\n<!-- end -->\nstays")
    options = ["--only", "memory", "--write", str(tmp_path)]
    done = subprocess.run([sys.executable, performance.__file__, *options], check=False)
    assert done.returncode == 0
    lines = (tmp_path / "performance.md").read_text().splitlines()
    assert lines[:3] == ["<!-- figures: memory -->", "", "| object | bytes | descriptors |"]
    assert any(re.fullmatch(r"\| `Descriptor` \| [\d,]+ \| 1 \|", line) for line in lines)
    assert lines[-2:] == ["<!-- end -->", "stays"]


def test_the_server_of_the_page_on_run_serves_and_ends_under_it(tmp_path: Path) -> None:
    (code,) = re.findall(
        r"^```py\n(.*?)^```$", (DOCS / "run.md").read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "serve.py").write_text(code)
    serve = [sys.executable, "-P", "-W", "error", str(tmp_path / "serve.py")]
    options = ["--control", f"{tmp_path}/control", "--listen", f"{tmp_path}/socket"]
    run = [sys.executable, "-P", "-m", "conduit", "run", *options, "--", *serve]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "serves" in line, line
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(GENEROUS)
                client.connect(f"{tmp_path}/socket")
                assert client.recv(100) == b"version 1\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(GENEROUS) == 0
            assert "Warning" not in process.stderr.read()
        finally:
            process.terminate()


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_runs_without_a_warning(example: str, tmp_path: Path) -> None:
    # As a file, which a process that is spawned imports; where that finds no uncompiled modules.
    (tmp_path / "example.py").write_text(patient(example))
    done = run_python(RUN, str(tmp_path / "example.py"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
