"""Compile the modules for systems that are not here: python tools/cross.py [SYSTEM...].

The C that Cython makes, and conduit/_posix.h with it, is compiled against each system's own C
headers, which come with the compiler (ziglang), and every warning is an error. Nothing is linked
or run. Python's headers are those of the Python that runs this, which are the same on every
system but for one file, pyconfig.h: it is written here for each system, as far as the headers and
Cython's C ask for it, and the compiler checks each size it states against the system's own type.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = [
    "aarch64-macos",
    "x86_64-macos",
    "x86_64-freebsd",
    "x86_64-netbsd",
    "x86_64-openbsd",
    "x86_64-linux-musl",
    "aarch64-linux-musl",
    "x86-linux-gnu",
]
WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Werror",
    # Cython's C has functions for what a module may need, with one signature for every use.
    "-Wno-unused-function",
    "-Wno-unused-parameter",
    # It fills the tables of a type in up to what it needs; C sets the rest to zero.
    "-Wno-missing-field-initializers",
]
# CMSG_NXTHDR of musl compares a size with a difference of pointers, wherever it is used.
MUSL_WARNINGS = ["-Wno-sign-compare"]
# Sizes that the compiler itself states, and those of a system's types.
BUILT_IN = {
    "SHORT": "short",
    "INT": "int",
    "LONG": "long",
    "LONG_LONG": "long long",
    "FLOAT": "float",
    "DOUBLE": "double",
    "LONG_DOUBLE": "long double",
    "SIZE_T": "size_t",
    "WCHAR_T": "wchar_t",
    "POINTER": "void *",
}
# Each is as large as one of those on every system of the list.
LIKE = {
    "UINTPTR_T": ("uintptr_t", "POINTER"),
    "PTHREAD_T": ("pthread_t", "POINTER"),
    "TIME_T": ("time_t", "LONG"),
    "PID_T": ("pid_t", "INT"),
    "OFF_T": ("off_t", "LONG_LONG"),
}
# What configure finds on all of them. The macros that open a system's extensions are those that
# it defines everywhere; _POSIX_C_SOURCE and _XOPEN_SOURCE, which hide them, on Linux alone.
PYCONFIG = """\
#define _GNU_SOURCE 1
#define _DARWIN_C_SOURCE 1
#define _NETBSD_SOURCE 1
#define __BSD_VISIBLE 1
#define _FILE_OFFSET_BITS 64
#if defined(__linux__)
#define _POSIX_C_SOURCE 200809L
#define _XOPEN_SOURCE 700
#endif
#define HAVE_UNISTD_H 1
#define HAVE_SYS_TIME_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_STDDEF_H 1
#define HAVE_WCHAR_H 1
#define HAVE_PTHREAD_H 1
#define HAVE_FORK 1
#define HAVE_STD_ATOMIC 1
#define HAVE_BUILTIN_ATOMIC 1
#define HAVE_SSIZE_T 1
#define HAVE_LONG_LONG 1
#define WITH_PYMALLOC 1
#define WITH_DOC_STRINGS 1
"""


def compile_c(system: str, *arguments: str | Path) -> str:
    """Run the compiler for a system and return what it printed; RuntimeError if it failed."""
    result = subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", system, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{system}: {' '.join(map(str, arguments))}\n{result.stdout}")
    return result.stdout


def write_headers(system: str, directory: Path) -> None:
    """Write Python's headers for a system, and have the compiler check the sizes they state."""
    shutil.copytree(sysconfig.get_path("include"), directory)
    macros = dict(
        line.removeprefix("#define ").split(" ", 1)
        for line in compile_c(system, "-E", "-dM", "-x", "c", os.devnull).splitlines()
        if line.startswith("#define __SIZEOF_")
    )
    sizes = {name: (type_, macros[f"__SIZEOF_{name}__"]) for name, type_ in BUILT_IN.items()}
    sizes |= {name: (type_, sizes[like][1]) for name, (type_, like) in LIKE.items()}
    sizes["VOID_P"] = sizes.pop("POINTER")
    config = [PYCONFIG, *(f"#define SIZEOF_{name} {size}\n" for name, (_, size) in sizes.items())]
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        config.append("#define Py_GIL_DISABLED 1\n")
    (directory / "pyconfig.h").write_text("".join(config))
    probe = directory.with_suffix(".c")
    checks = [
        f'_Static_assert(sizeof({type_}) == SIZEOF_{name}, "{type_}");\n'
        for name, (type_, _) in sizes.items()
    ]
    probe.write_text("#include <Python.h>\n#include <pthread.h>\n" + "".join(checks))
    compile_c(system, "-c", "-isystem", directory, probe, "-o", probe.with_suffix(".o"))


def check(system: str, sources: list[Path], scratch: Path) -> str:
    """Compile every module for a system; what is wrong, or nothing."""
    warnings = WARNINGS + MUSL_WARNINGS if system.endswith("-musl") else WARNINGS
    headers = scratch / system
    # What warnings Python's own headers give is not for us to mend.
    include: list[str | Path] = ["-I", ROOT / "conduit", "-isystem", headers]
    try:
        write_headers(system, headers)
        for source in sources:
            output = scratch / f"{system}-{source.stem}.o"
            compile_c(system, *warnings, "-O1", "-c", *include, source, "-o", output)
    except RuntimeError as exc:
        return str(exc)
    return ""


def main() -> None:
    """Make the C once, and compile it for the systems that are named, or for all."""
    systems = sys.argv[1:] or SYSTEMS
    # The compiler builds parts of itself at first, which takes a minute, and keeps them.
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(ROOT / "build" / "zig"))
    os.environ.setdefault("ZIG_LOCAL_CACHE_DIR", str(ROOT / "build" / "zig"))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        modules = sorted((ROOT / "conduit").glob("*.pyx"))
        cython = [sys.executable, "-m", "cython", "-o", f"{scratch}/"]
        subprocess.run([*cython, *modules], check=True, cwd=ROOT)
        sources = [scratch / f"{module.stem}.c" for module in modules]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            wrong = list(pool.map(lambda system: check(system, sources, scratch), systems))
    for system, said in zip(systems, wrong, strict=True):
        print(said or f"{system}: {len(sources)} modules compile without a warning")
    sys.exit(any(wrong))


if __name__ == "__main__":
    main()
