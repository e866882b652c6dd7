"""Whether a release has a wheel for every Python that pyproject.toml names."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "Programming Language :: Python :: 3."
FREE_THREADED_SINCE = 14
PLATFORMS = {
    "linux": [
        f"{kind}_{arch}" for kind in ("manylinux", "musllinux") for arch in ("x86_64", "aarch64")
    ],
    "macos": ["macosx_x86_64", "macosx_arm64"],
}


def main() -> None:
    """Compare what cibuildwheel would build with the classifiers."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        classifiers = tomllib.load(file)["project"]["classifiers"]
    minors = [int(name.removeprefix(PREFIX)) for name in classifiers if name.startswith(PREFIX)]
    pythons = [f"cp3{minor}" for minor in minors]
    pythons += [f"cp3{minor}t" for minor in minors if minor >= FREE_THREADED_SINCE]
    for platform, tags in PLATFORMS.items():
        command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
        listed = subprocess.run(
            [*command, "--platform", platform, ROOT], stdout=subprocess.PIPE, text=True, check=True
        )
        built = set(listed.stdout.split())
        wanted = {f"{python}-{tag}" for python in pythons for tag in tags}
        if built != wanted:
            missing, besides = sorted(wanted - built), sorted(built - wanted)
            sys.exit(f"{platform}: not built: {missing}; built besides: {besides}")
        print(f"{platform}: {len(built)} wheels")


if __name__ == "__main__":
    main()
