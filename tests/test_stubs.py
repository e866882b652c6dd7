"""The stubs of the compiled modules, and what the modules tell about themselves, agree."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import conduit
from conduit import Conduit, Descriptor, Message

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("cls", "self")
CLASSES = [Conduit, Descriptor, Message]


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stub_docs", ROOT / "tools" / "stub_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stub_docs = tool()
STUBS: list[tuple[Path, ModuleType]] = list(stub_docs.stubs())
each_stub = pytest.mark.parametrize(
    ("path", "module"), STUBS, ids=[module.__name__ for _, module in STUBS]
)


def test_every_compiled_module_has_a_stub() -> None:
    compiled = {path.stem for path in (ROOT / "conduit").rglob("*.pyx")}
    assert compiled == {path.stem for path, _ in STUBS}


@each_stub
def test_stub_has_the_docstrings_of_the_compiled_module(path: Path, module: ModuleType) -> None:
    assert stub_docs.differences(path.read_text(encoding="utf-8"), module) == []


@each_stub
def test_tool_writes_missing_docstrings_and_replaces_wrong_ones(
    path: Path, module: ModuleType
) -> None:
    stub = path.read_text(encoding="utf-8")
    lines = stub.encode().splitlines(keepends=True)
    # From the end on: one line for each docstring, or none.
    found = [node for _, node, doc in stub_docs.definitions(ast.parse(stub).body, module) if doc]
    for count, node in enumerate(reversed(found)):
        docstring = node.body[0]
        new = b"" if count % 2 and len(node.body) > 1 else b'"""Wrong."""\n'
        lines[docstring.lineno - 1 : docstring.end_lineno] = [b" " * docstring.col_offset + new]
    spoilt = b"".join(lines).decode()
    names = [name for name, _, doc in stub_docs.definitions(ast.parse(stub).body, module) if doc]
    assert stub_docs.differences(spoilt, module) == names
    mended = stub_docs.with_docstrings(spoilt, module)
    assert stub_docs.differences(mended, module) == []
    assert ast.dump(ast.parse(mended)) == ast.dump(ast.parse(stub))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_public_name_of_a_compiled_class_is_documented(cls: type) -> None:
    public = [name for name in vars(cls) if not name.startswith("_")]
    assert public
    assert [name for name in public if not inspect.getdoc(getattr(cls, name))] == []


def signatures(module: ModuleType) -> Iterator[tuple[str, ast.FunctionDef, Any]]:
    """Each function that a stub declares once, with the compiled one."""
    (path,) = [path for path, other in STUBS if other is module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies: list[tuple[object, list[ast.stmt]]] = [(module, tree.body)]
    bodies += [(getattr(module, n.name), n.body) for n in tree.body if isinstance(n, ast.ClassDef)]
    for owner, body in bodies:
        for node in body:
            if not isinstance(node, ast.FunctionDef) or node.name in ("__init__", "__new__"):
                continue
            names = [ast.unparse(decorator) for decorator in node.decorator_list]
            if "overload" in names or any("property" in n or "setter" in n for n in names):
                continue
            yield f"{getattr(owner, '__name__', '')}.{node.name}", node, getattr(owner, node.name)


def annotations_of(node: ast.FunctionDef) -> dict[str, str]:
    arguments = [*node.args.args, *node.args.kwonlyargs]
    arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
    found = {argument.arg: argument.annotation for argument in arguments if argument.annotation}
    assert node.returns is not None
    return {name: ast.unparse(annotation) for name, annotation in found.items()} | {
        "return": ast.unparse(node.returns)
    }


@each_stub
def test_annotations_of_compiled_functions_are_those_of_the_stub(
    path: Path, module: ModuleType
) -> None:
    # Those that C calls too (cpdef, __iter__) hold none. In Python, `cls` and `self` have one.
    found = {
        name: {arg: a for arg, a in getattr(f, "__annotations__", {}).items() if arg not in FIRST}
        for name, _, f in signatures(module)
    }
    expected = {name: annotations_of(node) for name, node, _ in signatures(module) if found[name]}
    assert {name: annotations for name, annotations in found.items() if annotations} == expected


@pytest.mark.parametrize("cls", CLASSES)
def test_signature_of_a_compiled_class_is_that_of_the_stub(cls: type) -> None:
    (path,) = [path for path, module in STUBS if module.__name__ == cls.__module__]
    (body,) = [
        node.body
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    ]
    (node,) = [
        node
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__new__")
    ]
    # As the function would be in Python.
    node.name, node.returns = "function", ast.Constant(None)
    scope: dict[str, Any] = {}
    code = f"from __future__ import annotations\n{ast.unparse(node)}"
    exec(code, scope)  # the stub is the project's own
    _, *parameters = inspect.signature(scope["function"]).parameters.values()
    signature = inspect.signature(cls)
    assert list(signature.parameters.values()) == parameters
    assert signature.return_annotation == "None"


@pytest.mark.parametrize(
    ("cls", "args", "kwargs"),
    [
        (Conduit, (), {}),
        (Conduit, (1 << 20,), {}),
        (Conduit, (), {"fd": 1 << 20, "name": "a"}),
        (Conduit, (1 << 20, "a", 1), {}),
        (Conduit, (1 << 20,), {"other": 1}),
        (Descriptor, (), {}),
        (Descriptor, (1 << 20, "a", 1), {}),
        (Descriptor, (), {"number": 1}),
        (Message, (), {}),
        (Message, (b"", ()), {}),
        (Message, (), {"data": b"", "fds": ()}),
        (Message, (b"", (), 1), {}),
        (Message, (), {"bytes": b""}),
    ],
)
def test_compiled_class_takes_the_arguments_its_signature_tells(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        inspect.signature(cls).bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(TypeError):
            cls(*args, **kwargs)
    else:
        cls(*args, **kwargs)


def test_defaults_in_a_signature_are_the_values_themselves() -> None:
    parameters = inspect.signature(Conduit.receive).parameters
    assert parameters["max_data"].default == 65536
    assert parameters["max_fds"].default == conduit.MAX_FDS
    assert "<SocketKind.SOCK_STREAM: 1>" in str(inspect.signature(Conduit.connect))


def test_instance_has_no_signature() -> None:
    with Message() as message:
        assert not hasattr(message, "__signature__")
        with pytest.raises(TypeError, match="not a callable"):
            inspect.signature(message)  # type: ignore[arg-type]


def test_import_of_conduit_imports_little_that_socket_does_not() -> None:
    code = (
        "import socket, sys; before = set(sys.modules); import conduit; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    # Coverage, where it looks into processes, imports more.
    environment = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    output = subprocess.check_output([sys.executable, "-P", "-c", code], text=True, env=environment)
    imported = {name for name in output.split() if not name.startswith(("_cython", "cython"))}
    # What `socket` imports as well, in Python 3.11 all of it, in 3.15 hardly any.
    small = {"collections", "itertools", "keyword", "math", "operator", "reprlib", "select"}
    private = {"_collections", "_math_integer", "_operator"}
    assert imported <= {"conduit", "__future__", "gc"} | small | private
