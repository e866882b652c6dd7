"""Cython's plugin for coverage, made fit for tests with signals.

As a program, it removes from the current directory the data of each process in which a signal
handler raised within the plugin after all: coverage has given it up there, so that the file knows
nothing of the .pyx lines, and cannot be combined with the others.
"""

from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from coverage import CoverageData  # type: ignore[import-not-found]
from coverage.exceptions import CoverageException  # type: ignore[import-not-found]
from Cython.Coverage import CythonModuleTracer, coverage_init

__all__ = ["coverage_init"]

# Coverage calls this before each line of a .pyx file. Were it in Python, a signal handler would run
# in it, and coverage would swallow what that raises and give up the plugin.
tracer: Any = CythonModuleTracer
tracer.line_number_range = attrgetter("f_lineno", "f_lineno")


def main() -> None:
    """Remove what cannot be combined."""
    for path in Path().glob(".coverage.*"):
        data = CoverageData(str(path))
        # One that was killed while it wrote is passed over by coverage itself.
        with suppress(CoverageException):
            data.read()
            if any(
                name.endswith(".pyx") and not data.file_tracer(name)
                for name in data.measured_files()
            ):
                path.unlink()
        data.close()


if __name__ == "__main__":
    main()
