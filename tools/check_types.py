"""Check that type checkers understand an installed conduit, and judge it alike.

    python tools/check_types.py [PYTHON]

mypy, pyright and pyrefly, each at its strictest, check the programs in ``tests/typing/``: they
must find nothing in ``right.py``, and in ``wrong.py`` an error on each line that ends in
``# error`` and on no other. Besides, pyright must know the type of every public name.
PYTHON is the interpreter that has conduit installed, this one unless another is given.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent.parent / "tests" / "typing"

Line = tuple[str, int]
"""The name of a file, and the number of a line in it."""


def expected() -> set[Line]:
    """Return the lines that are marked as wrong."""
    return {
        (program.name, number)
        for program in PROGRAMS.glob("*.py")
        for number, line in enumerate(program.read_text(encoding="utf-8").splitlines(), 1)
        if line.endswith("  # error")
    }


def of_mypy(output: str) -> dict[Line, str]:
    """Read a JSON object a line."""
    found = [json.loads(line) for line in output.splitlines()]
    return {(e["file"], e["line"]): e["message"] for e in found if e["severity"] == "error"}


def of_pyright(output: str) -> dict[Line, str]:
    """Read pyright's report, which counts lines from 0."""
    found = json.loads(output)["generalDiagnostics"]
    return {(Path(e["file"]).name, e["range"]["start"]["line"] + 1): e["message"] for e in found}


def of_pyrefly(output: str) -> dict[Line, str]:
    """Read pyrefly's report."""
    found = json.loads(output)["errors"]
    return {(Path(e["path"]).name, e["line"]): e["concise_description"] for e in found}


# The arguments of each; PYTHON follows.
CHECKERS: dict[str, tuple[list[str], Callable[[str], dict[Line, str]]]] = {
    "mypy": (["--strict", "--output=json", ".", "--python-executable"], of_mypy),
    "pyright": (["--outputjson", ".", "--pythonpath"], of_pyright),
    "pyrefly": (["check", "--output-format=json", "--python-interpreter-path"], of_pyrefly),
}


def main(python: str = sys.executable) -> int:
    """Run every checker, print what is not as it should be, and return the exit code."""
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        # --verifytypes knows no --pythonpath, and asks the first Python on the PATH.
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        # Without this, pyright asks the network for a newer version of itself.
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    wanted = expected()
    failed = False
    # Away from the sources, so that the installed package is what they find.
    with tempfile.TemporaryDirectory() as directory:
        for program in PROGRAMS.glob("*.py"):
            shutil.copy(program, directory)
        Path(directory, "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
        Path(directory, "pyrefly.toml").write_text('preset = "strict"')

        def start(*command: str) -> "subprocess.Popen[str]":
            return subprocess.Popen(
                [scripts / command[0], *command[1:]],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=directory,
                env=environment,
            )

        running = {
            name: start(name, *arguments, python) for name, (arguments, _) in CHECKERS.items()
        }
        complete = start("pyright", "--verifytypes", "conduit", "--ignoreexternal")
        for name, process in running.items():
            output, complaints = process.communicate()
            # 1 says that it found errors.
            if process.returncode != 1:
                print(f"{name} failed with {process.returncode}:\n{output}{complaints}")
                failed = True
                continue
            found = CHECKERS[name][1](output)
            for file, line in sorted(found.keys() - wanted):
                print(f"tests/typing/{file}:{line}: {name}: {found[file, line]}")
            for file, line in sorted(wanted - found.keys()):
                print(f"tests/typing/{file}:{line}: {name} misses an error")
            failed = failed or found.keys() != wanted
        output, complaints = complete.communicate()
        if complete.returncode:
            print(f"{output}{complaints}")
            failed = True
    if not failed:
        print(f"{', '.join(CHECKERS)}: all {len(wanted)} errors found, and no other")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
