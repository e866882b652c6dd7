"""Cython's plugin for coverage, made fit for tests with signals."""

from operator import attrgetter
from typing import Any

from Cython.Coverage import CythonModuleTracer, coverage_init

__all__ = ["coverage_init"]

# Coverage calls this before each line of a .pyx file. Were it in Python, a signal handler would run
# in it, and coverage would swallow what that raises and give up the plugin.
tracer: Any = CythonModuleTracer
tracer.line_number_range = attrgetter("f_lineno", "f_lineno")
