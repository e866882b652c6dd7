"""Links of names of the standard library, without its inventory, which needs a network."""

from __future__ import annotations

import builtins
import importlib
import sys
from typing import Any

from docutils import nodes

LIBRARY = "https://docs.python.org/3/library/"
BASES = {"bool": "functions", "float": "functions", "int": "functions", "object": "functions"}
"""Built-in types that have their entry elsewhere than with the others."""


def page_of(name: str) -> str | None:
    """Return the page of the library's manual that has an entry for a name, if one has."""
    if name == "None":
        return "constants"
    if hasattr(builtins, name):
        value = getattr(builtins, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            return "exceptions"
        return BASES.get(name, "stdtypes") if isinstance(value, type) else "functions"
    module, _, attribute = name.rpartition(".")
    if name in sys.stdlib_module_names:
        return name
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    try:
        found: object = importlib.import_module(module)
        getattr(found, attribute)
    except ModuleNotFoundError:  # an attribute of a class
        return page_of(module)
    except AttributeError:
        return None
    return module


def resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Link to the standard library's manual what is not ours."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    page = page_of(target)
    if page is None:
        return None
    anchor = f"module-{target}" if page == target else target
    link = nodes.reference("", "", internal=False, refuri=f"{LIBRARY}{page}.html#{anchor}")
    link += content
    return link


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call the above."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
