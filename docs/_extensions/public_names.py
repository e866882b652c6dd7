"""The reference: names as users import them, and what links to them."""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
from typing import Any

from docutils import nodes
from sphinx.ext.napoleon import Config, GoogleDocstring

import conduit

MODULES = (
    "conduit",
    "conduit.aio",
    "conduit.takeover",
    "conduit.systemd",
    "conduit.multiprocessing",
    "conduit.channel",
    "conduit.wire",
)
"""What programs import from; a short name is looked for in this order."""


def simplify(app: Any) -> None:
    """Put what is imported lazily where users find it, and keep one of several signatures."""
    objects = app.env.autoapi_all_objects
    for name in conduit.__all__:
        if f"conduit.{name}" not in objects:
            objects[f"conduit.{name}"] = objects[f"{getattr(conduit, name).__module__}.{name}"]
    for found in objects.values():
        # The last overload is the most general one; the others say the same for fewer modes.
        if getattr(found, "overloads", None) and found.type != "class":
            arguments, found.return_annotation = found.overloads[-1]
            found.args = _with_defaults(found.id, arguments)
            found.overloads = []


def _with_defaults(name: str, arguments: str) -> str:
    """Add the defaults that an overload leaves to another one, which has them."""
    for parameter in inspect.signature(pkgutil.resolve_name(name)).parameters.values():
        if parameter.default is not parameter.empty:
            without = rf"\b({parameter.name}: [^=,\[\]]*)(?=,|$)"
            arguments = re.sub(without, rf"\1 = {parameter.default!r}", arguments)
    return arguments


def write_defaults(
    app: Any, what: str, name: str, obj: Any, options: Any, arguments: str, returned: str
) -> tuple[str, str]:
    """Write defaults as people do: permissions in octal, and those that a stub leaves out."""

    def default(found: re.Match[str]) -> str:
        value = inspect.signature(pkgutil.resolve_name(name)).parameters[found[1]].default
        return found[0].replace("...", getattr(value, "name", repr(value)))

    arguments = re.sub(r"\bmode: int = \d+", lambda found: octal(found[0]), arguments or "")
    return re.sub(r"(\w+): int = \.\.\.", default, arguments), returned


def octal(argument: str) -> str:
    """Write the default of an argument in octal."""
    before, default = argument.split(" = ")
    return f"{before} = {int(default):#o}"


def read_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Read a docstring as Google's style has it. A property's has no type before its colon."""
    what = "method" if what == "property" else what
    config = Config(napoleon_custom_sections=[("Attributes", "params_style")])
    lines[:] = GoogleDocstring(lines, config, app, what, name, obj, options).lines()


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link a short name, or one in the module that defines it, to the public one."""
    if node.get("refdomain") != "py":
        return None
    link = functools.partial(_link, app, node, content)
    target = node["reftarget"].removesuffix("()")
    module, _, name = target.rpartition(".")
    if module == "_typeshed":
        return link("reference/types", name.lower())
    places = [f"{node.get('py:module')}.{node.get('py:class')}", *MODULES, "conduit.Error"]
    if target.startswith("conduit."):
        target = name
    objects = env.domains.python_domain.objects
    for place in places:
        if found := objects.get(f"{place}.{target}"):
            return link(found.docname, found.node_id)
    return None


def _link(app: Any, node: Any, content: Any, page: str, anchor: str) -> Any:
    uri = app.builder.get_relative_uri(node["refdoc"], page)
    link = nodes.reference("", "", internal=True, refuri=f"{uri}#{anchor}")
    link += content
    return link


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call the above."""
    app.connect("builder-inited", simplify, priority=900)
    app.connect("autodoc-process-signature", write_defaults)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
