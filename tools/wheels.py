"""Build and check a wheel for every CPython that is here: python tools/wheels.py [DIRECTORY].

The Pythons are those on the PATH and pyenv's, free-threaded ones included. Each wheel is built
from the sdist, gets the oldest manylinux tag that its symbols allow, holds what is used and no
more, and moves descriptors in a new environment with no compiler in sight. They end up in
DIRECTORY, or in dist.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
ASK = (
    "import sys, sysconfig, venv, ensurepip;"
    "print(*sys.version_info[:2], int(bool(sysconfig.get_config_var('Py_GIL_DISABLED'))));"
    "print(sys.implementation.name)"
)


def pythons() -> dict[str, Path]:
    """One Python of each version and kind that can make an environment: python3.14t, its path."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    directories = [Path(entry) for entry in os.environ["PATH"].split(os.pathsep) if entry]
    directories += sorted(pyenv.glob("versions/*/bin"))
    found: dict[str, Path] = {}
    for directory in directories:
        for python in sorted(directory.glob("python3.*")):
            if not python.name.removeprefix("python3.").removesuffix("t").isdecimal():
                continue
            answer = subprocess.run(
                [python, "-c", ASK],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                check=False,
            )
            if answer.returncode or answer.stdout.split()[3:] != ["cpython"]:
                continue
            major, minor, free_threaded = map(int, answer.stdout.split()[:3])
            if (major, minor) >= OLDEST:
                found.setdefault(f"python{major}.{minor}{'t' * free_threaded}", python)
    return dict(sorted(found.items()))


def check_contents(wheel: Path) -> None:
    """Assert that a wheel holds what is used and no more, compiled without debug symbols."""
    with zipfile.ZipFile(wheel) as archive:
        names = {
            name
            for name in archive.namelist()
            if not name.startswith("net_conduit-") and not name.endswith("/")
        }
        compiled = {name: archive.read(name) for name in names if name.endswith(".so")}
    wanted = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "*.pxd", "*.h", "py.typed")
        for file in (ROOT / "conduit").rglob(pattern)
    }
    modules = sorted(file.stem for file in (ROOT / "conduit").rglob("*.pyx"))
    found = sorted(Path(name).name.partition(".")[0] for name in compiled)
    assert found == modules, f"compiled: {found}, not {modules}"
    wrong = sorted(names ^ (wanted | set(compiled)))
    assert not wrong, f"missing, or more than is used: {wrong}"
    for name, code in compiled.items():
        assert b".debug_info" not in code, f"{name} has debug symbols"


def try_installed(python: Path, wheel: Path, directory: Path) -> str:
    """Install a wheel where neither Cython nor a compiler is, and use it; what that printed."""
    subprocess.run([python, "-m", "venv", directory / "venv"], check=True)
    installed = directory / "venv" / "bin" / "python"
    environment = {**os.environ, "PATH": str(installed.parent)}
    program = ROOT / "tools" / "try_installed.py"
    printed = ""
    calls: list[list[str | Path]] = [
        ["-m", "pip", "--quiet", "install", "--no-index", "--no-deps", wheel],
        ["-m", "pip", "check"],
        ["-W", "error", program],
    ]
    for arguments in calls:
        printed = subprocess.run(
            [installed, *arguments],
            check=True,
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    return printed.strip()


def build_one(name: str, python: Path, sdist: Path, scratch: Path, output: Path) -> None:
    """Build, repair and check the wheel of one Python."""
    subprocess.run([python, "-m", "venv", scratch / "venv"], check=True)
    pip: list[str | Path] = [scratch / "venv" / "bin" / "python", "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", scratch, sdist], check=True)
    (wheel,) = scratch.glob("*.whl")
    if sys.platform == "linux":
        repaired = scratch / "repaired"
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(
            [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", repaired, wheel],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (wheel,) = repaired.glob("*.whl")
    check_contents(wheel)
    said = try_installed(python, wheel, scratch / "repaired")
    wheel.replace(output / wheel.name)
    size = (output / wheel.name).stat().st_size / 1e3
    print(f"{name}: {wheel.name} ({size:.0f} kB): {said.partition(':')[0]}", flush=True)


def main() -> None:
    """Build them all, and fail if one is not right."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    output.mkdir(parents=True, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        build: list[str | Path] = [sys.executable, "-m", "build", "--sdist", ROOT]
        build += ["--outdir", scratch]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (sdist,) = scratch.glob("*.tar.gz")
        for name, python in pythons().items():
            (scratch / name).mkdir()
            try:
                build_one(name, python, sdist, scratch / name, output)
            except (AssertionError, subprocess.CalledProcessError) as exc:
                wrong.append(name)
                print(f"{name}: {exc}", flush=True)
    sys.exit(f"no right wheel for {', '.join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
