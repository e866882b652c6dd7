"""The compiled modules; everything else about the package is in pyproject.toml.

Environment variables, for the project's own checks:
    CONDUIT_PORTABLE=1: compile the branches for systems that lack what Linux has.
    CONDUIT_TRACE=1: compile so that coverage sees the lines of the .pyx files.
    CONDUIT_SANITIZE=address,undefined, or thread: compile for the sanitizers of the C compiler.
"""

import os
import sys

from setuptools import Extension, setup

macros: list[tuple[str, str | None]] = []
flags: list[str] = []
link_flags: list[str] = []
directives: dict[str, object] = {}
if os.environ.get("CONDUIT_PORTABLE"):
    macros.append(("CONDUIT_PORTABLE", "1"))
if os.environ.get("CONDUIT_TRACE"):
    macros += [("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    directives["linetrace"] = True
if sanitizers := os.environ.get("CONDUIT_SANITIZE"):
    flags += [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g", "-O1"]
    if sanitizers != "thread":
        # ThreadSanitizer always goes on after a report.
        flags.append("-fno-sanitize-recover=all")
    link_flags += flags
elif not os.environ.get("CONDUIT_TRACE"):
    # Python's own flags ask for debug symbols, which are two thirds of what would be installed.
    flags.append("-g0")
    if sys.platform.startswith("linux"):
        link_flags.append("-Wl,--strip-all")

extensions = [
    Extension(
        f"conduit.{name}",
        [f"conduit/{name}.pyx"],
        depends=[
            "conduit/_posix.h",
            "conduit/_posix.pxd",
            "conduit/_syscalls.pxd",
            "conduit/_handle.pxd",
        ],
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=link_flags,
    )
    for name in ("_syscalls", "_handle", "_conduit")
]
for extension in extensions:
    extension.cython_directives = directives  # type: ignore[attr-defined]

setup(ext_modules=extensions)
