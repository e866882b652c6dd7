"""What a user installs: the sdist and the wheel, built from a clean copy of the sources."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from wheels import check_contents, try_installed

pytestmark = pytest.mark.package

ROOT = Path(__file__).resolve().parent.parent


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
    check_contents(wheel)


def test_wheel_works_without_cython_or_a_compiler(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wheel = distributions
    assert "conduit works" in try_installed(Path(sys.executable), wheel, tmp_path)


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
