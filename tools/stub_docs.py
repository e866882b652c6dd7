"""Copy the docstrings of the compiled modules into their stubs, where editors look for them.

    python tools/stub_docs.py            write them into conduit/*.pyi
    python tools/stub_docs.py --check    change nothing; fail if a stub has others

The docstrings of the ``.pyx`` files are the only source. The modules must be compiled and
importable, as they are in the tree after ``python setup.py build_ext --inplace``.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Definition(NamedTuple):
    """A class or function in a stub, and the docstring of the compiled one (None without)."""

    name: str
    node: ast.ClassDef | ast.FunctionDef
    doc: str | None


def stubs() -> Iterator[tuple[Path, ModuleType]]:
    """Go through the stubs of the package, each with its compiled module."""
    for path in sorted((ROOT / "conduit").rglob("*.pyi")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield path, importlib.import_module(name)


def definitions(body: list[ast.stmt], owner: object, prefix: str = "") -> Iterator[Definition]:
    """Go through what a stub defines, in its order.

    Special methods are left out: what they do is Python's contract. A name that is defined
    several times, as overloads and the setter of a property are, has its docstring at the first.
    """
    seen: set[str] = set()
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("__"):
            continue
        compiled = inspect.getattr_static(owner, node.name)
        if isinstance(compiled, classmethod | staticmethod):
            compiled = compiled.__func__
        doc = compiled.__doc__ if node.name not in seen else None
        seen.add(node.name)
        yield Definition(prefix + node.name, node, doc and inspect.cleandoc(doc))
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, compiled, f"{prefix}{node.name}.")


def differences(stub: str, module: ModuleType) -> list[str]:
    """Return the names whose docstring in the stub is not the compiled one."""
    return [
        name
        for name, node, doc in definitions(ast.parse(stub).body, module)
        if ast.get_docstring(node) != doc
    ]


def with_docstrings(stub: str, module: ModuleType) -> str:
    """Return the text of a stub with the compiled docstrings in place of its own."""
    text = stub.encode()  # ast counts columns in bytes
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    # From the end on, so that the positions of what is left to do stay true.
    for _, node, doc in reversed(list(definitions(ast.parse(stub).body, module))):
        first = node.body[0]
        replaced = isinstance(first, ast.Expr)  # a docstring or the three dots
        position = first
        if isinstance(first, ast.ClassDef | ast.FunctionDef) and first.decorator_list:
            position = first.decorator_list[0]  # type: ignore[assignment]
        begin = end = text.rindex(b":", 0, starts[position.lineno - 1] + position.col_offset) + 1
        if replaced:
            end = starts[(first.end_lineno or 0) - 1] + (first.end_col_offset or 0)
        members = len(node.body) - replaced
        new = ""
        if doc is not None:
            new = _literal(doc, node.col_offset + 4) + ("\n" if members and not replaced else "")
        elif not members:
            new = " ..."
        text = text[:begin] + new.encode() + text[end:]
    return text.decode()


def _literal(doc: str, column: int) -> str:
    margin = "\n" + " " * column
    text = doc.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    first, *rest = text.split("\n")
    lines = [margin + line if line else "\n" for line in rest]
    return f'{margin}"""{first}{"".join(lines)}{margin if rest else ""}"""'


def main(arguments: list[str]) -> int:
    """Write the stubs, or check them, and return the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    sys.path.insert(0, str(ROOT))
    wrong = []
    for path, module in stubs():
        stub = path.read_text(encoding="utf-8")
        names = differences(stub, module)
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names]
        if names and not arguments:
            path.write_text(with_docstrings(stub, module), encoding="utf-8")
    if arguments and wrong:
        print(*wrong, sep="\n")
        print("their docstrings are not the compiled ones; run python tools/stub_docs.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
