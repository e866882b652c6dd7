"""What a user installs: the sdist and the wheel, built from a clean copy of the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.package

ROOT = Path(__file__).resolve().parent.parent

# Run by the installed package alone: no Cython, no compiler, no sources in sight.
TRANSFER = """
import importlib.util, os
from conduit import Conduit

assert importlib.util.find_spec("Cython") is None
ours, theirs = Conduit.pair()
with ours, theirs:
    reader, writer = os.pipe()
    ours.transfer_fd(writer)
    with theirs.receive_file("w", encoding="utf-8") as file:
        file.write("arrived")
    with open(reader, encoding="utf-8") as file:
        print(file.read())
"""


def copy_of_sources(directory: Path) -> Path:
    """Copy the tree without what builds and tools have made in it."""
    made = shutil.ignore_patterns(
        ".*", "build", "dist", "htmlcov", "*.egg-info", "*.c", "*.so", "floor", "__pycache__"
    )
    return shutil.copytree(ROOT, directory / "conduit", ignore=made)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist from the sources, and the wheel from nothing but the sdist."""
    source = copy_of_sources(tmp_path_factory.mktemp("source"))
    output = tmp_path_factory.mktemp("output")
    subprocess.run([sys.executable, "-m", "build", "--outdir", output, source], check=True)
    (sdist,) = output.glob("*.tar.gz")
    (wheel,) = output.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_the_sources_and_nothing_made(distributions: tuple[Path, Path]) -> None:
    sdist, _ = distributions
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "*.pyx", "*.pxd", "*.h", "py.typed")
        for file in (ROOT / "conduit").glob(pattern)
    }
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.py", "tox.ini"}
    wanted |= {"examples/demo/sender.py", "tests/test_packaging.py"}
    assert wanted <= names
    assert [name for name in names if name.endswith((".c", ".so", ".pyc"))] == []


def test_wheel_holds_what_is_used_and_no_more(distributions: tuple[Path, Path]) -> None:
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith("net_conduit-")}
    wanted = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "*.pxd", "*.h", "py.typed")
        for file in (ROOT / "conduit").glob(pattern)
    }
    compiled = {name for name in names if name.endswith(".so")}
    modules = sorted(file.stem for file in (ROOT / "conduit").glob("*.pyx"))
    assert sorted(Path(name).name.partition(".")[0] for name in compiled) == modules
    assert names == wanted | compiled


def test_wheel_works_without_cython_or_a_compiler(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wheel = distributions
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # No compiler is found on this PATH.
    environment = {**os.environ, "PATH": str(python.parent)}
    for arguments in (
        ["-m", "pip", "install", "--no-index", "--no-deps", "--only-binary=:all:", wheel],
        ["-m", "pip", "check"],
    ):
        subprocess.run([python, *arguments], check=True, cwd=tmp_path, env=environment)
    result = subprocess.run(
        [python, "-W", "error", "-c", TRANSFER],
        check=True,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert result.stdout == "arrived\n"


def test_editable_install_keeps_its_types(tmp_path: Path) -> None:
    source = copy_of_sources(tmp_path)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--editable", source], check=True)
    subprocess.run([python, "-W", "error", "-c", "import conduit"], check=True, cwd=tmp_path)
    subprocess.run([sys.executable, ROOT / "tools" / "check_types.py", python], check=True)


def test_version_of_the_distribution_is_that_of_the_package(
    distributions: tuple[Path, Path],
) -> None:
    sdist, wheel = distributions
    assert sdist.name == f"net_conduit-{conduit_version()}.tar.gz"
    assert wheel.name.startswith(f"net_conduit-{conduit_version()}-")


def conduit_version() -> str:
    """Read ``__version__`` from the source, since the package is not installed here."""
    source = (ROOT / "conduit" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__.* = "(.+)"$', source, re.MULTILINE)
    return str(version)
