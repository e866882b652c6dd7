"""The documentation as it is built: its links lead somewhere, and it has every public name."""

from __future__ import annotations

import html
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import conduit

pytestmark = pytest.mark.site

DOCS = Path(__file__).parent.parent / "docs"

# What is public in modules that list no names.
UNLISTED = [
    "conduit.aio.AsyncChannel",
    "conduit.aio.AsyncConduit",
    "conduit.aio.AsyncListener",
    "conduit.aio.AsyncReader",
    "conduit.aio.AsyncTakeover",
    "conduit.aio.detach_stream",
    "conduit.channel.close_descriptors",
    "conduit.wire.Assembler",
    "conduit.wire.frame",
    "conduit.wire.split",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, with every warning as an error."""
    output = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    done = subprocess.run(
        [*command, "-d", output / "doctrees", DOCS, output / "html"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or done.stderr:
        pytest.fail(done.stdout + done.stderr)
    return output / "html"


def documented(site: Path) -> set[str]:
    """Return the Python names that have an entry, from the inventory for other projects."""
    inventory = (site / "objects.inv").read_bytes()
    lines = zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()
    return {name for name, kind in (line.split()[:2] for line in lines) if kind.startswith("py:")}


def public_names() -> Iterator[str]:
    """Go through the names that modules list, and those of their classes' methods."""
    names = {*UNLISTED, *(f"conduit.{name}" for name in conduit.__all__)}
    for found in pkgutil.walk_packages(conduit.__path__, "conduit."):
        if "__main__" not in found.name:
            module = importlib.import_module(found.name)
            names |= {f"{found.name}.{name}" for name in getattr(module, "__all__", ())}
    for name in sorted(names):
        yield name
        module_name, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module_name), attribute)
        if inspect.isclass(value):
            yield from (f"{name}.{each}" for each in vars(value) if not each.startswith("_"))


def test_every_public_name_has_an_entry_in_the_reference(site: Path) -> None:
    assert set(public_names()) - documented(site) == set()


_ENTRY = re.compile(r'<dl class="py (\w+)">\s*<dt[^>]* id="([\w.]+)">(.*?)</dt>', re.DOTALL)


def test_every_signature_has_types_and_the_defaults_that_calls_have(site: Path) -> None:
    wrong = []
    entries = [each for file in site.rglob("*.html") for each in _ENTRY.findall(file.read_text())]
    assert entries
    for kind, name, heading in entries:
        found = re.findall(r'<em class="sig-param">(.*?)</em>', heading, re.DOTALL)
        texts = [html.unescape(re.sub(r"<[^>]+>", "", each)) for each in found]
        complete = all(":" in text or text in ("*", "/") for text in texts)
        if kind in ("method", "function"):
            complete &= "sig-return" in heading
            parameters = inspect.signature(pkgutil.resolve_name(name)).parameters.values()
            optional = {each.name for each in parameters if each.default is not each.empty}
            complete &= {text.partition(":")[0] for text in texts if "=" in text} == optional
        if not complete:
            wrong.append(f"{name}({', '.join(texts)})")
    assert wrong == []


class _Page(HTMLParser):
    """The anchors of a page, and where it links to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors = {""}
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        if tag == "a":
            self.links.add(values.get("href", ""))
        elif tag in ("img", "script", "link"):
            self.loads.add(values.get("src") or values.get("href", ""))


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    pages = {file: _Page(file) for file in site.rglob("*.html") if "_static" not in file.parts}
    broken = []
    for file, page in pages.items():
        for link in page.links | page.loads:
            path, anchor = urldefrag(link.partition("?")[0] if "#" not in link else link)
            if "://" in link:
                continue
            target = (file.parent / unquote(path)).resolve() if path else file
            found = target.is_file() and (
                target not in pages or unquote(anchor) in pages[target].anchors
            )
            if not found:
                broken.append(f"{file.relative_to(site)}: {link}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    files = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    assert [link for file in files for link in _Page(file).loads if "//" in link] == []
